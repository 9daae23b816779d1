"""The lattice of an image: windows that are written, tiles that the network sees, extents that are read.

All lengths and offsets are pixels. The axis order is (row, column) everywhere, as in rasterio's windows. Tiles have
size P and stride S = P - overlap and are anchored at the image's pixel (0, 0); the first tile that reaches the image's
edge is the last one, and what it lacks beyond the edge is the image reflected. Hence the tiles that make up the mask of
a pixel depend on the image's size and the model alone, never on windows or shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of an image in pixels: rows [row_off, row_off + height), columns [col_off, col_off + width)."""

    row_off: int
    col_off: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """The rows, as a slice of the image."""
        return slice(self.row_off, self.row_off + self.height)

    @property
    def cols(self) -> slice:
        """The columns, as a slice of the image."""
        return slice(self.col_off, self.col_off + self.width)

    @property
    def pixels(self) -> int:
        """The area in pixels."""
        return self.height * self.width

    def within(self, outer: Window) -> tuple[slice, slice]:
        """(rows, columns) of this window in an array that holds just `outer`."""
        row, col = self.row_off - outer.row_off, self.col_off - outer.col_off
        return slice(row, row + self.height), slice(col, col + self.width)


def check_lattice(tile: int, overlap: int) -> None:
    """ValueError unless 1 <= tile and 0 <= overlap <= tile / 2: at most two tiles then meet along an axis."""
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, not {tile}")
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap must be 0 to half of the tile ({tile // 2} pixels), not {overlap}")


def tile_count(size: int, tile: int, overlap: int) -> int:
    """How many tiles cover an axis of `size` pixels: the last is the first that reaches the edge."""
    return 1 if size <= tile else -((tile - size) // (tile - overlap)) + 1


def touching(start: int, stop: int, *, size: int, tile: int, overlap: int) -> range:
    """Indices of the tiles that hold a pixel of [start, stop) on an axis of `size` pixels."""
    stride = tile - overlap
    first = max(0, (start - tile) // stride + 1)
    last = min(tile_count(size, tile, overlap) - 1, (stop - 1) // stride)
    return range(first, last + 1)


def reflect(start: int, stop: int, size: int) -> np.ndarray:
    """(stop - start,) int64: the pixel that stands at each position of [start, stop) when an axis of `size` pixels is
    reflected about its edge pixels, as often as it takes; an axis of one pixel repeats it."""
    period = max(1, 2 * (size - 1))
    position = np.arange(start, stop) % period
    return np.minimum(position, period - position) if size > 1 else np.zeros(stop - start, np.int64)


def windows(height: int, width: int, size: int) -> list[Window]:
    """The windows of at most size x size pixels that partition an image, in scan order."""
    return [
        Window(row, col, min(size, height - row), min(size, width - col))
        for row in range(0, height, size)
        for col in range(0, width, size)
    ]


def blocks(height: int, width: int, size: int, max_pixels: int) -> Iterator[Window]:
    """Rectangles of whole windows, each of about `max_pixels` pixels or one window, that partition an image.

    They are as square as can be, since only the tiles on their borders are computed twice.
    """
    side = max(1, int((max_pixels / size**2) ** 0.5))
    across = min(side, -(-width // size))
    down = max(1, int(max_pixels / (size**2 * across)))
    for row in range(0, height, size * down):
        for col in range(0, width, size * across):
            yield Window(row, col, min(size * down, height - row), min(size * across, width - col))


def split(block: Window, size: int) -> list[Window]:
    """The windows of at most size x size pixels that partition a block, in scan order."""
    return [
        Window(w.row_off + block.row_off, w.col_off + block.col_off, w.height, w.width)
        for w in windows(block.height, block.width, size)
    ]


def read_extent(block: Window, *, height: int, width: int, tile: int, overlap: int) -> Window:
    """The part of a height x width image that the tiles touching `block` are made of, reflections included."""
    rows = _axis_extent(block.row_off, block.row_off + block.height, height, tile, overlap)
    cols = _axis_extent(block.col_off, block.col_off + block.width, width, tile, overlap)
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])


def _axis_extent(start: int, stop: int, size: int, tile: int, overlap: int) -> tuple[int, int]:
    tiles = touching(start, stop, size=size, tile=tile, overlap=overlap)
    stride = tile - overlap
    source = reflect(tiles[0] * stride, tiles[-1] * stride + tile, size)
    return int(source.min()), int(source.max()) + 1
