"""Tile sets: one small file per format. Tiles are named by zoom, x and y as in web maps, y counted from the north."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from segray.archives.mbtiles import MBTiles
from segray.archives.pmtiles import PMTiles
from segray.archives.xyz import TMS, XYZ


class TileSet(Protocol):
    """What every format offers, to any number of threads. It is made from a URI and, if that is a file, its etag.

    ImageError when the set is damaged or of a kind that segray does not read; FileNotFoundError or the store's own
    error when it cannot be reached.
    """

    uri: str
    """Where it lies."""

    def zooms(self) -> list[int]:
        """The zoom levels, ascending."""

    def tiles(self, zoom: int) -> Iterator[tuple[int, int]]:
        """(x, y) of the tiles of a level, streamed, in a fixed order."""

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        """The bytes of a tile, None when there is no such tile."""


TILESETS = {"xyz": XYZ, "tms": TMS, "mbtiles": MBTiles, "pmtiles": PMTiles}
