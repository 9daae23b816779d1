"""A row of tiles being joined: blended with weights, or each cropped to the pixels that are its own.

Along each axis at most two tiles meet. Tiles are summed into rows first, then rows into each other, so every sum has
two terms and is the same in either order.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch

from segray.blend import axis_weights
from segray.grid import Lattice, reflect
from segray.masks import IGNORE
from segray.transfer import to_device


class TileAxis:
    """The tiles of a region along one axis of an image of `size` pixels: the pixels they are made of, their weights.

    offset: the pixel of the image at which the region's arrays begin.
    """

    def __init__(
        self,
        tiles: range,
        lattice: Lattice,
        *,
        size: int,
        offset: int,
        device: torch.device,
    ) -> None:
        self.tiles, self.lattice, self.size, self.offset, self.device = tiles, lattice, size, offset, device
        self.count = lattice.count(size)
        self.near, self.far = _ramps(lattice, device)
        start, stop = tiles[0] * lattice.stride, tiles[-1] * lattice.stride + lattice.tile
        # Where the pixels of all tiles, also those beyond the image's edges, lie in the region's arrays.
        self.host_index = torch.from_numpy(reflect(start, stop, size) - offset)
        self.index = to_device([self.host_index.numpy()], device)[0] if stop > size else None

    def part(self, tile: int, *, host: bool = False) -> slice | torch.Tensor:
        """Where a tile's pixels lie in the region's arrays: a slice, or indices where it is reflected."""
        start = tile * self.lattice.stride
        if start + self.lattice.tile <= self.size:
            return slice(start - self.offset, start - self.offset + self.lattice.tile)
        left = start - self.tiles[0] * self.lattice.stride
        return (self.host_index if host else self.index)[left : left + self.lattice.tile]

    @cached_property
    def weights(self) -> torch.Tensor:
        """(tiles, 1, 1, tile) weights."""
        tile, overlap = self.lattice.tile, self.lattice.overlap
        weights = torch.ones((len(self.tiles), 1, 1, tile), device=self.device)
        # The outer overlaps of the first and last tile, whose partners are not here, lie outside the block.
        weights[1:, ..., :overlap] = self.near
        weights[:-1, ..., tile - overlap :] = self.far
        return weights

    def own(self, tile: int) -> range:
        """The pixels of the image to which no other tile's centre is nearer: every pixel belongs to one tile."""
        stride, near = self.lattice.stride, self.lattice.overlap // 2
        first = tile * stride + near if tile else 0
        return range(first, self.size if tile == self.count - 1 else (tile + 1) * stride + near)


# Images of one size share it: making one takes longer than segmenting a small image.
tile_axis = lru_cache(maxsize=64)(TileAxis)


class BlendedRow:
    """A row of tiles whose probabilities are summed with weights: (K, tile, width) float32."""

    def __init__(self, rows: TileAxis, cols: TileAxis, num_classes: int) -> None:
        self.rows, self.cols, self.lattice = rows, cols, cols.lattice
        width = (len(cols.tiles) - 1) * self.lattice.stride + self.lattice.tile
        self.sum = torch.zeros((num_classes, self.lattice.tile, width), device=cols.device)

    def add(self, col: int, probability_NKPP: torch.Tensor, best_NPP: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Add N consecutive tiles, the first in column `col`; the tensor is overwritten."""
        first, count = col - self.cols.tiles[0], len(probability_NKPP)
        probability_NKPP *= self.cols.weights[first : first + count]
        for odd in range(min(2, count)):  # every second tile at a time, since those do not overlap
            tiles = probability_NKPP[odd::2].permute(1, 2, 0, 3)
            spread(self.sum, first + odd, tiles.shape[2], self.lattice).add_(tiles)

    def join(self, above: BlendedRow) -> None:
        """Add the row above's share of the pixels that both cover."""
        self.sum[:, : self.lattice.overlap].mul_(self.rows.near[:, None]).add_(above.sum)

    def end(self) -> None:
        """Keep only what the row below will ask for."""
        self.sum = self.sum[:, self.lattice.stride :] * self.rows.far[:, None]

    def best(self, part: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """Confidence and label of a part of the row."""
        return top_class(self.sum[part], dim=0)


class CroppedRow:
    """A row of tiles of which each decides its own pixels: their confidence and label, (tile, width)."""

    def __init__(self, rows: TileAxis, cols: TileAxis, num_classes: int) -> None:
        self.cols, self.lattice = cols, cols.lattice
        width = (len(cols.tiles) - 1) * self.lattice.stride + self.lattice.tile
        self.confidence = torch.zeros((self.lattice.tile, width), device=cols.device)
        self.label = torch.full((self.lattice.tile, width), IGNORE, dtype=torch.uint8, device=cols.device)

    def add(self, col: int, probability_NKPP: torch.Tensor, best_NPP: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Add N consecutive tiles, the first in column `col`."""
        (near, far), tile, first = self.lattice.margins, self.lattice.tile, col - self.cols.tiles[0]
        count = len(probability_NKPP)
        for row, found in zip((self.confidence, self.label), best_NPP):
            for odd in range(min(2, count)):
                tiles = found[odd::2].transpose(0, 1)
                places = spread(row, first + odd, tiles.shape[1], self.lattice)
                places[..., near : tile - far] = tiles[..., near : tile - far]
            if col == 0:
                row[:, :near] = found[0, :, :near]
            if col + count == self.cols.count:
                right = (first + count - 1) * self.lattice.stride + tile
                row[:, right - far : right] = found[-1, :, tile - far :]

    def join(self, above: CroppedRow) -> None:
        """Take over the pixels that belong to the row above."""
        near = self.lattice.margins[0]
        self.confidence[:near], self.label[:near] = above.confidence[:near], above.label[:near]

    def end(self) -> None:
        """Keep only what the row below will ask for."""
        stride = self.lattice.stride
        self.confidence, self.label = self.confidence[stride:].clone(), self.label[stride:].clone()

    def best(self, part: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """Confidence and label of a part of the row."""
        return self.confidence[part], self.label[part]


ROWS = {"taper": BlendedRow, "crop": CroppedRow}


def spread(row: torch.Tensor, first: int, count: int, lattice: Lattice) -> torch.Tensor:
    """(..., P, count, P) view of a row: the places of every second tile, beginning with the `first`."""
    step, left = 2 * lattice.stride, first * lattice.stride
    return row[..., left : left + (count - 1) * step + lattice.tile].unfold(-1, lattice.tile, step)


def top_class(probability: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value along a dimension and, as uint8, the first index that has it."""
    if probability.device.type != "cpu":
        value, index = probability.max(dim)
        return value, index.to(torch.uint8)
    first, *others = probability.unbind(dim)  # on CPUs, argmax takes up to 100 times as long as this
    value, label = first, torch.zeros(first.shape, dtype=torch.uint8)
    for index, other in enumerate(others, 1):
        label = torch.maximum(label, (other > value).view(torch.uint8).mul_(index))
        value = torch.maximum(value, other)
    return value, label


def best_class(probability_NKPP: torch.Tensor, label_NPP: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The confidence and the class of each pixel of tiles: the given class, or the most probable one."""
    confidence, label = top_class(probability_NKPP, dim=1)
    return confidence, label if label_NPP is None else label_NPP


@lru_cache(maxsize=16)
def _ramps(lattice: Lattice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The (overlap,) weights at the beginning and at the end of a tile with neighbours."""
    weights = torch.from_numpy(axis_weights(lattice, first=False, last=False)).to(device)
    return weights[: lattice.overlap], weights[lattice.tile - lattice.overlap :]
