"""A zoom level of a tile set: its URI, such as xyz://17::s3://bucket/tiles, and the `part` that goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from segray.archives.tilesets import TILESETS
from segray.footprints import EDGE
from segray.grid import Affine6, Window

CRS = "EPSG:3857"


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a level's URI and part say. x0 .. y1: its tiles' bounds, inclusive. tile_size: pixels. etag: of its file."""

    kind: str
    zoom: int
    source: str
    x0: int
    y0: int
    x1: int
    y1: int
    tile_size: int
    endings: tuple[str, ...]
    etag: str

    @classmethod
    def of(cls, uri: str, part: str) -> Level:
        """The level of a URI and its part."""
        kind, _, rest = uri.partition("://")
        zoom, _, source = rest.partition("::")
        *numbers, endings, etag = part.split(",", maxsplit=6)
        bounds = dict(zip(("x0", "y0", "x1", "y1", "tile_size"), map(int, numbers)))
        return cls(kind=kind, zoom=int(zoom), source=source, **bounds, endings=tuple(endings.split("+")), etag=etag)

    @property
    def uri(self) -> str:
        """The level's URI."""
        return f"{self.kind}://{self.zoom}::{self.source}"

    @property
    def part(self) -> str:
        """x0,y0,x1,y1,tile size,endings of the tiles' files joined by "+",etag of the set's file."""
        numbers = (self.x0, self.y0, self.x1, self.y1, self.tile_size)
        return ",".join([*map(str, numbers), "+".join(self.endings), self.etag])

    @property
    def height(self) -> int:
        """Pixels."""
        return (self.y1 - self.y0 + 1) * self.tile_size

    @property
    def width(self) -> int:
        """Pixels."""
        return (self.x1 - self.x0 + 1) * self.tile_size

    @property
    def transform(self) -> Affine6:
        """The affine in metres; division by powers of two is exact, so the tiles of all levels align exactly."""
        west = 2 * EDGE * self.x0 / 2**self.zoom - EDGE
        north = EDGE - 2 * EDGE * self.y0 / 2**self.zoom
        pixel = 2 * EDGE / 2**self.zoom / self.tile_size
        return pixel, 0.0, west, 0.0, -pixel, north

    def tiles(self, window: Window) -> Iterator[tuple[int, int]]:
        """(x, y) of the tiles that a window touches, row by row."""
        return ((self.x0 + col, self.y0 + row) for row, col in window.squares(self.tile_size))

    def window_of(self, x: int, y: int) -> Window:
        """The pixels of a tile."""
        size = self.tile_size
        return Window((y - self.y0) * size, (x - self.x0) * size, size, size)


def is_level(uri: str) -> bool:
    """Whether a URI names a zoom level of a tile set, as in xyz://17::s3://b/tiles."""
    kind, _, rest = uri.partition("://")
    return kind in TILESETS and "::" in rest and rest.partition("::")[0].isdecimal()
