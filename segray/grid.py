"""The lattice of an image: windows that are written, tiles that the network sees, extents that are read.

All lengths and offsets are pixels. The axis order is (row, column) everywhere, as in rasterio's windows. Tiles have
size P and stride S = P - overlap and are anchored at the image's pixel (0, 0); the first tile that reaches the image's
edge is the last one, and beyond the edge it is filled with the image reflected. Hence the tiles that decide a pixel of
the mask depend on the image's size and the model alone, never on windows or shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np

Affine6 = tuple[float, float, float, float, float, float]  # x = a col + b row + c, y = d col + e row + f
BLENDS = ("taper", "crop")  # how overlapping tiles are joined: by weights, or each cropped to the middle of the overlap


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
        """(rows, columns) of this window in an array that covers just `outer`."""
        row, col = self.row_off - outer.row_off, self.col_off - outer.col_off
        return slice(row, row + self.height), slice(col, col + self.width)

    def meets(self, other: Window) -> bool:
        """Whether the windows share a pixel."""
        rows = self.row_off < other.row_off + other.height and other.row_off < self.row_off + self.height
        return rows and self.col_off < other.col_off + other.width and other.col_off < self.col_off + self.width

    def intersection(self, other: Window) -> Window:
        """The pixels that the windows share; only for windows that meet."""
        top, left = max(self.row_off, other.row_off), max(self.col_off, other.col_off)
        bottom = min(self.row_off + self.height, other.row_off + other.height)
        right = min(self.col_off + self.width, other.col_off + other.width)
        return Window(top, left, bottom - top, right - left)

    def squares(self, size: int) -> Iterator[tuple[int, int]]:
        """(row, column) of each square of `size` pixels that the window touches, in scan order; (0, 0) is the first."""
        rows = range(self.row_off // size, -(-(self.row_off + self.height) // size))
        cols = range(self.col_off // size, -(-(self.col_off + self.width) // size))
        return product(rows, cols)


@dataclass(frozen=True)
class Lattice:
    """How the tiles of an image lie and which pixels each decides. tile, overlap: pixels. blend: taper or crop.

    ValueError unless 1 <= tile and 0 <= overlap <= tile / 2: at most two tiles then meet along an axis.
    """

    tile: int
    overlap: int
    blend: str = "taper"

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"tile must be at least 1 pixel, not {self.tile}")
        if not 0 <= self.overlap <= self.tile // 2:
            raise ValueError(f"overlap must be 0 to half of the tile ({self.tile // 2} pixels), not {self.overlap}")
        if self.blend not in BLENDS:
            raise ValueError(f"blend is {' or '.join(BLENDS)}, not {self.blend!r}")

    @property
    def stride(self) -> int:
        """Pixels from the start of a tile to that of the next."""
        return self.tile - self.overlap

    @property
    def margins(self) -> tuple[int, int]:
        """(near, far): pixels at a tile's ends, where it has neighbours, in which it has no say when cropped."""
        near = self.overlap // 2
        return (near, self.overlap - near) if self.blend == "crop" else (0, 0)

    def count(self, size: int) -> int:
        """How many tiles cover an axis of `size` pixels; the first that reaches the edge is the last."""
        return 1 if size <= self.tile else -((self.tile - size) // self.stride) + 1

    def touching(self, start: int, stop: int, size: int) -> range:
        """Indices of the tiles that have a say in a pixel of [start, stop) on an axis of `size` pixels."""
        last = self.count(size) - 1
        near, far = self.margins
        first = min(max(0, (start - (self.tile - far)) // self.stride + 1), last)
        return range(first, max(first, min(last, (stop - 1 - near) // self.stride)) + 1)

    def cuts(self, size: int, parts: int) -> list[int]:
        """(parts + 1) pixels, from 0 to `size`, that cut an axis into parts with about equally many tiles each.

        The cuts lie where few tiles have a say in two parts. There are never more parts than tiles.
        """
        tiles = self.count(size)
        parts = min(parts, tiles)
        inner = [round(part * tiles / parts) * self.stride + self.margins[0] for part in range(1, parts)]
        return [0, *inner, size]


def reflect(start: int, stop: int, size: int) -> np.ndarray:
    """(stop - start,) int64: the pixel at each position of [start, stop) of an axis of `size` pixels, reflected.

    It is reflected about its edge pixels, as often as needed; an axis of one pixel repeats it.
    """
    period = max(1, 2 * (size - 1))
    position = np.arange(start, stop) % period
    return np.minimum(position, period - position) if size > 1 else np.zeros(stop - start, np.int64)


def windows(height: int, width: int, size: int) -> list[Window]:
    """The windows of at most size x size pixels that partition an image, in scan order."""
    return split(Window(0, 0, height, width), size)


def between(tops: list[int], lefts: list[int]) -> list[Window]:
    """The windows between cuts of the rows and cuts of the columns, in scan order."""
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(tops)
        for left, right in pairwise(lefts)
    ]


def blocks(height: int, width: int, lattice: Lattice, max_pixels: int) -> list[Window]:
    """Rectangles of about equal size, about `max_pixels` pixels or one tile, that partition an image in scan order.

    See `block_cuts` for where they meet.
    """
    return between(*block_cuts(height, width, lattice, max_pixels))


def block_cuts(height: int, width: int, lattice: Lattice, max_pixels: int) -> tuple[list[int], list[int]]:
    """The rows and the columns at which the blocks of an image begin, followed by its height and its width.

    An even number of blocks where possible: actors come in even numbers, half of which would idle at the last of an odd
    one. Of the ways left, the one that computes the fewest tiles, since those on borders are computed twice.
    """
    rows, cols = lattice.count(height), lattice.count(width)
    needed = -(-max(height, lattice.tile) * max(width, lattice.tile) // max_pixels)  # a thin image takes whole tiles
    ways = ((down, min(cols, -(-needed // down))) for down in range(1, min(rows, needed) + 1))

    def cost(way: tuple[int, int]) -> tuple[int, ...]:
        count = way[0] * way[1]
        return max(0, needed - count), count > 1 and count % 2, (rows + way[0]) * (cols + way[1])

    down, across = min(ways, key=cost)
    return lattice.cuts(height, down), lattice.cuts(width, across)


def split(block: Window, size: int) -> list[Window]:
    """The windows of at most size x size pixels that partition a block, in scan order."""
    bottom, right = block.row_off + block.height, block.col_off + block.width
    return between([*range(block.row_off, bottom, size), bottom], [*range(block.col_off, right, size), right])


def read_extent(block: Window, *, height: int, width: int, lattice: Lattice) -> Window:
    """The part of a height x width image from which the tiles with a say in `block`, also beyond edges, are made."""
    rows = _axis_extent(block.row_off, block.row_off + block.height, height, lattice)
    cols = _axis_extent(block.col_off, block.col_off + block.width, width, lattice)
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])


@lru_cache(maxsize=256)
def _axis_extent(start: int, stop: int, size: int, lattice: Lattice) -> tuple[int, int]:
    tiles = lattice.touching(start, stop, size)
    source = reflect(tiles[0] * lattice.stride, tiles[-1] * lattice.stride + lattice.tile, size)
    return int(source.min()), int(source.max()) + 1
