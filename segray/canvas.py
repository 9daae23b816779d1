"""The canvas of a region: tiles of pixels out, probabilities in, masks and statistics of windows out.

The pixels of a row of tiles are decided as soon as the next row cannot change them; `rows` says how tiles are joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, product

import numpy as np
import torch

from segray.counts import class_counts
from segray.details import Details, as_bits
from segray.grid import Lattice, Window, read_extent
from segray.masks import IGNORE
from segray.regions import CONFIDENCE_UNIT, Region, WindowMask
from segray.rows import ROWS, BlendedRow, CroppedRow, best_class, spread, tile_axis
from segray.seams import AGREE, ALONE, DISAGREE, meet, place
from segray.transfer import to_device, to_host

COUNTED_TOGETHER = 8  # windows; counting takes a byte per pixel and class


class Canvas:
    """One region on a device. Beside pixels and mask it takes at most (K, tile, width of all tile columns) float32.

    pixels, valid: the region's, on its device; valid is None if all are. detailed: the results include the confidence
    of each pixel, at 2 bytes each, and the logits that `details` is given.
    """

    def __init__(
        self,
        region: Region,
        lattice: Lattice,
        pixels: torch.Tensor,
        valid: torch.Tensor | None,
        *,
        num_classes: int,
        detailed: bool = False,
    ) -> None:
        _check_extent(region, lattice)
        block, extent, device = region.block, region.extent, pixels.device
        self.lattice, self.num_classes, self.device = lattice, num_classes, device
        self.block, self.windows = block, region.windows
        rows = lattice.touching(block.row_off, block.row_off + block.height, region.height)
        cols = lattice.touching(block.col_off, block.col_off + block.width, region.width)
        self.row_axis = tile_axis(rows, lattice, size=region.height, offset=extent.row_off, device=device)
        self.col_axis = tile_axis(cols, lattice, size=region.width, offset=extent.col_off, device=device)
        self.details = Details(block, self.row_axis, self.col_axis) if detailed else None
        self.dtype = torch.from_numpy(region.pixels).dtype
        self.pixels, self.valid = pixels, valid
        self.tiles = self._with_data(None if region.valid is None else torch.from_numpy(region.valid))
        rows_of_block, cols_of_block = block.within(extent)
        self.block_valid = None if self.valid is None else self.valid[rows_of_block, cols_of_block]
        self.missing = len(self.tiles)
        # an image of one tile and one window: many of them are decided at once (see `decide_singles`)
        whole = Window(0, 0, region.height, region.width)
        self.single = len(rows) * len(cols) == self.missing == 1 and region.windows == (whole,)
        self.row = rows[0]  # the row of tiles that is being filled
        self.joined: BlendedRow | CroppedRow | None = None  # its tiles, None while it has none
        self.above: tuple[BlendedRow | CroppedRow, torch.Tensor, torch.Tensor] | None = None  # what the row above left
        self.mask: torch.Tensor | None = None  # of the block, until finished
        self.masks: list[torch.Tensor] = []  # of its windows, on the host
        self.arrived: torch.cuda.Event | None = None  # when the results are on the host

    def tile(self, row: int, col: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(C, P, P) pixels and (P, P) validity (None: all valid) of a tile, reflected beyond the image's edges."""
        rows, cols = self.row_axis.part(row), self.col_axis.part(col)
        pixels = _take(self.pixels, rows, cols)
        valid = None if self.valid is None else _take(self.valid, rows, cols)
        return pixels.view(self.dtype), valid

    def beyond(self) -> torch.Tensor | None:
        """(P, P) bool of a single tile: pixels without data or beyond the image; None if there are none."""
        height, width = self.block.height, self.block.width
        tile = self.lattice.tile
        if self.valid is None and height == width == tile:
            return None
        beyond = torch.ones((tile, tile), dtype=torch.bool, device=self.device)
        beyond[:height, :width] = False if self.block_valid is None else ~self.block_valid
        return beyond

    @torch.inference_mode()
    def add(self, row: int, col: int, probability_NKPP: torch.Tensor, label_NPP: torch.Tensor | None = None) -> None:
        """Add N consecutive tiles of a row, the first in column `col`; rows come in order. Overwrites the tensor.

        label_NPP: (N, P, P) uint8 classes of the tiles, if not those of the largest probabilities.
        """
        self._advance(row)
        if self.joined is None:
            self._open_row()
        count, first = len(probability_NKPP), col - self.col_axis.tiles[0]
        self.missing -= count
        best = best_class(probability_NKPP, label_NPP)
        for odd in range(min(2, count)):  # every second tile at a time, since those do not overlap
            labels = best[1][odd::2].transpose(0, 1)
            places = (spread(row, first + odd, labels.shape[1], self.lattice) for row in (self.label, self.seam))
            place(*places, labels, self.lattice.overlap)
        self.joined.add(col, probability_NKPP, best)

    @torch.inference_mode()
    def finish(self) -> None:
        """Decide what is left once every tile is added; on a GPU, start the results' transfer to the host."""
        if not self.single:
            self._start()
            self._advance(self.row_axis.tiles[-1] + 1)
            # window by window, so that each mask is contiguous
            parts = [self.mask[window.within(self.block)].flatten() for window in self.windows]
            steps = [] if self.details is None else [self.details.of_windows(self.windows)]
            (masks, self.tallies, *steps), self.arrived = to_host(torch.cat(parts), self.tallies, *steps)
            self.masks, self.mask = self._parted(masks), None
            if self.details is not None:
                self.details.steps = self._parted(*steps)
        self.pixels = self.valid = self.block_valid = self.joined = self.above = None

    def results(self) -> list[WindowMask]:
        """The masks of the windows, after `finish`; can be called once."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found = zip(self.masks, self.tallies.numpy())
        results = [self._result(number, mask.numpy(), tally) for number, (mask, tally) in enumerate(found)]
        self.masks, self.details = [], None
        return results

    def _with_data(self, valid: torch.Tensor | None) -> list[tuple[int, int]]:
        """(row, column) of the tiles that hold a valid pixel, in scan order."""
        if valid is None:
            return list(product(self.row_axis.tiles, self.col_axis.tiles))
        rows = [(row, self.row_axis.part(row, host=True)) for row in self.row_axis.tiles]
        cols = [(col, self.col_axis.part(col, host=True)) for col in self.col_axis.tiles]
        return [(row, col) for row, down in rows for col, across in cols if _take(valid, down, across).any()]

    def _start(self) -> None:
        if self.mask is None:
            kind = {"device": self.device}
            self.mask = torch.full((self.block.height, self.block.width), IGNORE, dtype=torch.uint8, **kind)
            # per window: pixels of each class, sum of confidences, pixels on which several tiles agree, disagree
            self.tallies = torch.zeros((len(self.windows), self.num_classes + 3), dtype=torch.float64, **kind)

    def _open_row(self) -> None:
        self._start()
        self.joined = ROWS[self.lattice.blend](self.row_axis, self.col_axis, self.num_classes)
        width = (len(self.col_axis.tiles) - 1) * self.lattice.stride + self.lattice.tile
        shape, kind = (self.lattice.tile, width), {"dtype": torch.uint8, "device": self.device}
        self.label, self.seam = torch.full(shape, IGNORE, **kind), torch.full(shape, ALONE, **kind)

    def _advance(self, row: int) -> None:
        """Decide the rows of tiles above `row`, as later tiles cannot change them."""
        while self.row < row:
            if self.joined is not None:  # a row without tiles has no data, nor do its overlaps
                self._close_row()
            self.joined = None
            self.row += 1

    def _close_row(self) -> None:
        stride, overlap = self.lattice.stride, self.lattice.overlap
        last = self.row == self.row_axis.tiles[-1]
        if self.above is not None:
            joined, label, seam = self.above
            self.joined.join(joined)
            meet(self.label[:overlap], self.seam[:overlap], label, seam)
        self._decide(self.lattice.tile if last else stride)
        self.above = None
        if not last:
            self.joined.end()
            self.above = self.joined, self.label[stride:].clone(), self.seam[stride:].clone()

    def _decide(self, height: int) -> None:
        """Set labels and statistics of the row's first `height` rows of pixels, as far as they lie in the block."""
        block, top = self.block, self.row * self.lattice.stride
        left = block.col_off - self.col_axis.tiles[0] * self.lattice.stride
        start, stop = max(top, block.row_off), min(top + height, block.row_off + block.height)
        if start >= stop:
            return
        part = np.s_[..., start - top : stop - top, left : left + block.width]
        confidence, label = self.joined.best(part)
        steps, seam = _steps(confidence), self.seam[part]
        rows = slice(start - block.row_off, stop - block.row_off)
        if self.block_valid is not None:
            missing = ~self.block_valid[rows]
            label, steps = label.masked_fill_(missing, IGNORE), steps.masked_fill_(missing, 0)
            seam = seam.masked_fill(missing, ALONE)
        self.mask[rows] = label
        if self.details is not None:
            self.details.put(rows, steps)
        for first, inside, width in _neighbours(self.windows, start, stop, block.col_off):
            parts = (array[inside].unfold(1, width, width).transpose(0, 1) for array in (label, steps, seam))
            tallies = self._tally(*parts)
            self.tallies[first : first + len(tallies)] += tallies

    def _tally(self, label_NHW: torch.Tensor, steps_NHW: torch.Tensor, seam_NHW: torch.Tensor) -> torch.Tensor:
        counts = class_counts(torch.cat([label_NHW, seam_NHW]), max(self.num_classes, DISAGREE + 1))
        of_classes, seams = counts.chunk(2)
        totals = steps_NHW.sum(dim=(1, 2), dtype=torch.float64)[:, None]
        return torch.cat([of_classes[:, : self.num_classes], totals, seams[:, AGREE : DISAGREE + 1]], dim=1)

    def _parted(self, values: torch.Tensor) -> list[torch.Tensor]:
        """What lies one window after the other, as (h, w) of each."""
        parts = values.split([window.pixels for window in self.windows])
        return [part.view(window.height, window.width) for part, window in zip(parts, self.windows)]

    def _result(self, number: int, mask: np.ndarray, tally: np.ndarray) -> WindowMask:
        counts = tally[: self.num_classes].astype(np.int64)
        confidence, agree, disagree = (float(value) for value in tally[self.num_classes :])
        pixels = int(counts.sum())
        window = self.windows[number]
        return WindowMask(
            window=window,
            mask=mask,
            pixel_counts=counts,
            valid_pixels=pixels,
            confidence=confidence * CONFIDENCE_UNIT / pixels if pixels else None,
            seam_disagreement=disagree / (agree + disagree) if agree + disagree else None,
            **(self.details.of(number, window) if self.details else {}),
        )


def canvases(
    regions: Sequence[Region],
    lattice: Lattice,
    *,
    num_classes: int,
    device: torch.device,
    copies: torch.cuda.Stream | None = None,
    detailed: bool = False,
) -> list[Canvas]:
    """A canvas for each region; their pixels travel to the device together. copies: see `to_device`."""
    arrays = [array for region in regions for array in (region.pixels, region.valid) if array is not None]
    moved = iter(to_device(arrays, device, copies))
    options = {"num_classes": num_classes, "detailed": detailed}
    return [
        Canvas(region, lattice, next(moved), None if region.valid is None else next(moved), **options)
        for region in regions
    ]


@torch.inference_mode()
def decide_singles(
    singles: Sequence[Canvas], probability_NKPP: torch.Tensor, label_NPP: torch.Tensor | None = None
) -> None:
    """Decide images of one tile each, all at once: one by one, a GPU would wait for the launch of each step.

    label_NPP: see `Canvas.add`.
    """
    num_classes = probability_NKPP.shape[1]
    confidence, label = best_class(probability_NKPP, label_NPP)
    steps = _steps(confidence)
    for number, canvas in enumerate(singles):
        if (missing := canvas.beyond()) is not None:
            label[number].masked_fill_(missing, IGNORE)
            steps[number].masked_fill_(missing, 0)
    sums = steps.sum(dim=(1, 2), dtype=torch.float64)[:, None]
    tallies = torch.cat([class_counts(label, num_classes), sums, sums.new_zeros(len(singles), 2)], dim=1)
    more = [] if singles[0].details is None else [as_bits(steps)]
    (masks, tallies, *more), arrived = to_host(label, tallies, *more)
    for number, canvas in enumerate(singles):
        inside = np.s_[number, : canvas.block.height, : canvas.block.width]
        canvas.masks, canvas.tallies = [masks[inside]], tallies[number, None]
        canvas.arrived, canvas.missing = arrived, 0
        if canvas.details is not None:
            canvas.details.steps = [more[0][inside]]


def _steps(confidence: torch.Tensor) -> torch.Tensor:
    """Confidences as whole multiples of `CONFIDENCE_UNIT`; changed in place."""
    return confidence.div_(CONFIDENCE_UNIT).round_().clamp_(max=1 / CONFIDENCE_UNIT)


def _take(array: torch.Tensor, rows: slice | torch.Tensor, cols: slice | torch.Tensor) -> torch.Tensor:
    array = array[..., rows, :] if isinstance(rows, slice) else array.index_select(-2, rows)
    return array[..., cols] if isinstance(cols, slice) else array.index_select(-1, cols)


def _neighbours(
    windows: Sequence[Window], start: int, stop: int, left: int
) -> Iterator[tuple[int, tuple[slice, slice], int]]:
    """Groups of windows side by side, of one size, that contain some of the rows [start, stop); all in scan order.

    Gives the number of the first, where they lie in an array of just these rows from column `left` on, and the width of
    each. A GPU counts a group of windows in as many steps as a single one.
    """
    found = [
        (number, window)
        for number, window in enumerate(windows)
        if window.row_off < stop and window.row_off + window.height > start
    ]

    def kind(place: tuple[int, Window]) -> tuple[int, ...]:
        number, window = place
        return number // COUNTED_TOGETHER, window.row_off, window.height, window.width

    for _, group in groupby(found, key=kind):
        alike = list(group)
        (first, one), (_, last) = alike[0], alike[-1]
        rows = slice(max(one.row_off, start) - start, one.row_off + one.height - start)
        yield first, (rows, slice(one.col_off - left, last.col_off + last.width - left)), one.width


def _check_extent(region: Region, lattice: Lattice) -> None:
    needed = read_extent(region.block, height=region.height, width=region.width, lattice=lattice)
    rows, cols = needed.within(region.extent)
    if min(rows.start, cols.start) < 0 or rows.stop > region.extent.height or cols.stop > region.extent.width:
        raise ValueError(f"the pixels of a region cover {region.extent}, but its tiles are made of {needed}")
