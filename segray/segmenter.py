"""Segmenter: network + input spec + classes; regions of images in, masks and statistics of windows out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
import torch
from torch import nn

from segray.blend import axis_weights
from segray.errors import ModelError
from segray.grid import Window, read_extent, reflect, tile_count, touching
from segray.inputs import InputSpec, prepare
from segray.masks import IGNORE
from segray.regions import Region, WindowMask, whole_image

PRECISIONS = ("bf16", "fp32")
# Confidences are summed as integers of this unit: a sum of integers does not depend on its order.
CONFIDENCE_UNIT = 1 / 65535
WAITING_BATCHES = 4  # batches' worth of regions that may wait for one to be full


def default_precision(device_type: str) -> str:
    """bf16 on GPUs and on CPUs with bf16 instructions, where it is 2 to 3.6 times as fast; else fp32."""
    if device_type != "cpu":
        return "bf16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Segmenter:
    """Segments regions tile by tile; a pixel's class depends on its image and the model, and on nothing else.

    network: (N, C, H, W) float -> (N, K, H, W) logits; put into eval mode here. precision: bf16 (autocast) or fp32.
    batch_size: tiles a forward pass. static_batch: the one batch size that the network takes, if it takes just one.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: InputSpec,
        *,
        num_classes: int,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        blend: str = "taper",
        batch_size: int = 1,
        static_batch: int | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {' or '.join(PRECISIONS)}, not {precision!r}")
        self.device = torch.device(device)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.spec, self.num_classes, self.blend = spec, num_classes, blend
        self.precision = precision
        self.batch_size = static_batch or batch_size
        # A GPU picks its kernel by the batch's shape, and kernels differ in the last bit: there every batch is full.
        self.pad_batch = self.device.type != "cpu" or static_batch is not None

    def segment(self, regions: Iterable[Region]) -> Iterator[list[WindowMask]]:
        """The masks of each region's windows, in order; batches run across regions, so that small images fill them."""
        waiting: list[_Canvas] = []
        batch: list[tuple[_Canvas, int, int]] = []
        for region in regions:
            canvas = _Canvas(region, self)
            waiting.append(canvas)
            for row, col in canvas.tiles():
                batch.append((canvas, row, col))
                if len(batch) == self.batch_size:
                    self._run(batch)
                    batch = []
            if len(waiting) > WAITING_BATCHES * self.batch_size and batch:  # images without data fill no batch
                self._run(batch)
                batch = []
            while len(waiting) > 1 and waiting[0].missing == 0:
                yield waiting.pop(0).finish()
        if batch:
            self._run(batch)
        for canvas in waiting:
            yield canvas.finish()

    def mask_image(self, pixels_CHW: np.ndarray, valid_HW: np.ndarray) -> np.ndarray:
        """(H, W) uint8 mask of a whole image from the bands of the input spec."""
        return next(self.segment([whole_image(pixels_CHW, valid_HW)]))[0].mask

    @torch.inference_mode()
    def probabilities(self, pixels_NCHW: torch.Tensor, valid_NHW: torch.Tensor) -> torch.Tensor:
        """(N, K, H, W) float32 class probabilities of tiles of source pixels."""
        self.network.eval()
        x = prepare(pixels_NCHW, valid_NHW, self.spec).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(x)
        if logits.shape != (x.shape[0], self.num_classes, *x.shape[2:]):
            raise ModelError(
                f"the network gives {tuple(logits.shape)} for tiles of {tuple(x.shape)}; it should give "
                f"(N, {self.num_classes}, H, W) logits, one for each class of model.json"
            )
        return logits.float().softmax(dim=1)

    def try_a_tile(self) -> None:
        """ModelError unless the network takes a batch of tiles of the input spec and gives logits for them."""
        size, bands = self.spec.tile, len(self.spec.bands)
        pixels = torch.zeros((self.batch_size, bands, size, size), device=self.device)
        try:
            self.probabilities(pixels, pixels[:, 0] == 0)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            shape = f"{bands} x {size} x {size}"
            raise ModelError(f"the network takes no tiles of {shape}: {reason}; give another --tile") from error

    def _run(self, batch: list[tuple[_Canvas, int, int]]) -> None:
        pixels, valid = zip(*(canvas.tile(row, col) for canvas, row, col in batch))
        missing = self.batch_size - len(batch) if self.pad_batch else 0
        pixels_NCHW = torch.from_numpy(np.stack([*pixels, *[pixels[0]] * missing])).to(self.device)
        valid_NHW = torch.from_numpy(np.stack([*valid, *[valid[0]] * missing])).to(self.device)
        for (canvas, row, col), probability in zip(batch, self.probabilities(pixels_NCHW, valid_NHW)):
            canvas.add(row, col, probability)


class _Canvas:
    """The sums of weighted probabilities of one region, a strip of one tile's height at a time.

    Tiles must be added in scan order, so that every pixel sums its tiles in one order wherever the region begins. A
    strip is (K, tile, width of all tile columns) float32: memory does not depend on the region's height.
    """

    def __init__(self, region: Region, segmenter: Segmenter) -> None:
        spec = segmenter.spec
        self.region, self.tile_size, self.overlap = region, spec.tile, spec.overlap
        self.stride = spec.tile - spec.overlap
        self.segmenter, self.blend = segmenter, segmenter.blend
        block, lattice = region.block, {"tile": spec.tile, "overlap": spec.overlap}
        _check_extent(region, lattice)
        self.rows = touching(block.row_off, block.row_off + block.height, size=region.height, **lattice)
        self.cols = touching(block.col_off, block.col_off + block.width, size=region.width, **lattice)
        self.row_count = tile_count(region.height, **lattice)
        self.col_count = tile_count(region.width, **lattice)
        self.mask = np.full((block.height, block.width), IGNORE, np.uint8)
        self.confidence = np.zeros((block.height, block.width), np.uint16)
        self.seam = np.zeros((block.height, block.width), np.uint8)  # 1: several tiles, 2: and they disagree
        rows, cols = block.within(region.extent)
        self.valid = region.valid[rows, cols]
        self.row = self.rows[0]
        self.strip: torch.Tensor | None = None
        self.missing = 0

    def tiles(self) -> Iterator[tuple[int, int]]:
        """(row, column) indices of the tiles that hold a valid pixel, in scan order."""
        for row, col in product(self.rows, self.cols):
            if self._source(self.region.valid, row, col).any():
                self.missing += 1
                yield row, col

    def tile(self, row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
        """(C, P, P) pixels and (P, P) validity of one tile, reflected beyond the image's edges."""
        return self._source(self.region.pixels, row, col), self._source(self.region.valid, row, col)

    def _source(self, array: np.ndarray, row: int, col: int) -> np.ndarray:
        extent, size = self.region.extent, self.tile_size
        top, left = row * self.stride, col * self.stride
        if top + size <= self.region.height and left + size <= self.region.width:
            top, left = top - extent.row_off, left - extent.col_off
            return array[..., top : top + size, left : left + size]
        rows = reflect(top, top + size, self.region.height) - extent.row_off
        cols = reflect(left, left + size, self.region.width) - extent.col_off
        return array[..., rows[:, None], cols]

    @torch.inference_mode()
    def add(self, row: int, col: int, probability_KHW: torch.Tensor) -> None:
        """Blend one tile's (K, P, P) probabilities in."""
        self._advance(row)
        self.missing -= 1
        left = (col - self.cols[0]) * self.stride
        part = np.s_[..., left : left + self.tile_size]
        down = self._weights(row, self.row_count).to(probability_KHW.device)
        across = self._weights(col, self.col_count).to(probability_KHW.device)
        self.strip[part] += probability_KHW * (down[:, None] * across)
        label, seen = probability_KHW.argmax(dim=0).to(torch.uint8), self.label[part]
        first = seen == IGNORE
        self.seam_strip[part] = torch.where(first, 0, torch.where(seen == label, self.seam_strip[part].clamp(min=1), 2))
        self.label[part] = torch.where(first, label, seen)

    @torch.inference_mode()
    def finish(self) -> list[WindowMask]:
        """The masks of the region's windows; every tile has been added."""
        self._advance(self.rows[-1] + 1)
        self.mask[~self.valid] = IGNORE
        return [self._window_mask(window) for window in self.region.windows]

    def _weights(self, index: int, count: int) -> torch.Tensor:
        first, last = index == 0, index == count - 1
        return torch.from_numpy(axis_weights(self.tile_size, self.overlap, first=first, last=last, blend=self.blend))

    def _advance(self, row: int) -> None:
        """Emit the rows that no tile of tile row `row` or below can change."""
        if self.strip is None:
            self._new_strips()
        while self.row < row:
            final = self.row == self.rows[-1]
            self._emit(self.tile_size if final else self.stride)
            for strip, empty in ((self.strip, 0), (self.label, IGNORE), (self.seam_strip, 0)):
                strip[..., : self.overlap, :] = strip[..., self.stride :, :].clone()
                strip[..., self.overlap :, :] = empty
            self.row += 1

    def _new_strips(self) -> None:
        width = (len(self.cols) - 1) * self.stride + self.tile_size
        shape, device = (self.tile_size, width), self.segmenter.device
        self.strip = torch.zeros((self.segmenter.num_classes, *shape), device=device)
        self.label = torch.full(shape, IGNORE, dtype=torch.uint8, device=device)
        self.seam_strip = torch.zeros(shape, dtype=torch.uint8, device=device)

    def _emit(self, height: int) -> None:
        """Decide the first `height` rows of the strip, as far as they lie in the block."""
        block, top, left = self.region.block, self.row * self.stride, self.cols[0] * self.stride
        start, stop = max(top, block.row_off), min(top + height, block.row_off + block.height)
        if start >= stop:
            return
        part = np.s_[..., start - top : stop - top, block.col_off - left : block.col_off - left + block.width]
        target = np.s_[start - block.row_off : stop - block.row_off]
        confidence, label = self.strip[part].max(dim=0)
        self.mask[target] = label.to(torch.uint8).cpu().numpy()
        steps = (confidence / CONFIDENCE_UNIT).round().clamp(0, 65535).to(torch.int32)
        self.confidence[target] = steps.cpu().numpy()
        self.seam[target] = self.seam_strip[part].cpu().numpy()

    def _window_mask(self, window: Window) -> WindowMask:
        part = window.within(self.region.block)
        mask, valid, seam = self.mask[part], self.valid[part], self.seam[part]
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: self.segmenter.num_classes]
        valid_pixels = int(valid.sum())
        overlapping = int(((seam > 0) & valid).sum())
        total = int(self.confidence[part][valid].sum(dtype=np.int64))
        return WindowMask(
            window=window,
            mask=mask,
            pixel_counts=counts.astype(np.int64),
            valid_pixels=valid_pixels,
            confidence=total * CONFIDENCE_UNIT / valid_pixels if valid_pixels else None,
            seam_disagreement=int(((seam == 2) & valid).sum()) / overlapping if overlapping else None,
        )


def _check_extent(region: Region, lattice: dict[str, int]) -> None:
    needed = read_extent(region.block, height=region.height, width=region.width, **lattice)
    rows, cols = needed.within(region.extent)
    if min(rows.start, cols.start) < 0 or rows.stop > region.extent.height or cols.stop > region.extent.width:
        raise ValueError(f"the pixels of a region cover {region.extent}, but its tiles are made of {needed}")
