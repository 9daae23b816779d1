"""MBTiles 1.3: tiles in an SQLite file (https://github.com/mapbox/mbtiles-spec), raster tiles only."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from rasterio.crs import CRS
from rasterio.errors import CRSError

from segray.archives.copies import local_copy
from segray.archives.metadata import MERCATORS
from segray.archives.xyz import MAX_ZOOM
from segray.errors import ImageError
from segray.store_errors import describe

FORMATS = ("png", "jpg", "jpeg", "webp")
ROWS_AT_ONCE = 10_000
MAX_TILE_BYTES = 2**26  # SQLite refuses longer values
READ = "SELECT tile_data FROM tiles WHERE zoom_level = ? AND tile_column = ? AND tile_row = ?"
ROW = "SELECT min(number) FROM temp.places WHERE z = ? AND x = ? AND y = ?"  # the first, as of a table without an index
KEYS = ("zoom_level=?", "tile_column=?", "tile_row=?")  # in SQLite's words: what an index is used for


class MBTiles:
    """An MBTiles file, or a local copy of it if it lies in a store. Any number of threads may use it."""

    def __init__(self, uri: str, etag: str = "") -> None:
        """Open it; ImageError when it is not MBTiles or has no raster tiles. etag: of the file, for its local copy."""
        self.uri = uri
        path = local_copy(uri, etag)
        _check_file(uri, path)
        self._statement = ""  # that reads a tile
        self._lock = threading.Lock()  # one query at a time; what takes long is decoding
        with self._one_sentence():
            address = f"file:{quote(path)}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            weakref.finalize(self, self._connection.close)
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TILE_BYTES)
            self._connection.execute("PRAGMA trusted_schema = OFF")  # `tiles` is often a view, which may call functions
            self._check_format()

    def zooms(self) -> list[int]:
        """The zoom levels that have tiles, ascending; ImageError when the file is damaged."""
        with self._one_sentence(), self._lock:
            rows = self._connection.execute("SELECT DISTINCT zoom_level FROM tiles").fetchall()
        return sorted(int(zoom) for (zoom,) in rows if zoom in range(MAX_ZOOM + 1))

    def tiles(self, zoom: int) -> Iterator[tuple[int, int]]:
        """(x, y) of the level's tiles in the order of the file, y counted from the north; ImageError on damage."""
        statement = "SELECT tile_column, tile_row FROM tiles WHERE zoom_level = ?"
        with self._one_sentence(), self._lock:
            cursor = self._connection.execute(statement, (zoom,))
        while rows := self._rows(cursor):
            for x, row in rows:
                if not isinstance(x, int) or not isinstance(row, int):
                    raise ImageError(f"{self.uri} is damaged: column {x!r}, row {row!r} is not the place of a tile")
                yield x, 2**zoom - 1 - row

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        """The bytes of a tile, None when there is no such tile; ImageError when the file is damaged."""
        with self._one_sentence(), self._lock:
            self._statement = self._statement or self._indexed()
            row = self._connection.execute(self._statement, (zoom, x, 2**zoom - 1 - y)).fetchone()
        data = row and row[0]  # NULL where a view of tiles and images lacks an image
        if data is not None and not isinstance(data, bytes):
            raise ImageError(f"{self.uri} is damaged: tile {zoom}/{x}/{y} is not a blob")
        return data

    def _indexed(self) -> str:
        """The statement that reads a tile without looking through the others.

        The specification allows a table without an index: it gets a temporary one, and the file stays as it is.
        """
        kinds = self._connection.execute("SELECT type FROM sqlite_master WHERE name = 'tiles'").fetchall()
        steps = self._connection.execute(f"EXPLAIN QUERY PLAN {READ}", (0, 0, 0)).fetchall()
        if kinds != [("table",)] or any(all(key in step[-1] for key in KEYS) for step in steps):
            return READ
        with suppress(sqlite3.OperationalError):  # no room for it, or a table without row numbers
            columns = "zoom_level AS z, tile_column AS x, tile_row AS y, rowid AS number"
            self._connection.execute(f"CREATE TEMP TABLE places AS SELECT {columns} FROM tiles")
            self._connection.execute("CREATE INDEX temp.by_place ON places (z, x, y)")
            return f"SELECT tile_data FROM tiles WHERE rowid = ({ROW})"
        return READ

    def _rows(self, cursor: sqlite3.Cursor) -> list[tuple]:
        with self._one_sentence(), self._lock:
            return cursor.fetchmany(ROWS_AT_ONCE)

    def _check_format(self) -> None:
        names = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        if "metadata" not in names:
            return
        rows = self._connection.execute("SELECT name, value FROM metadata")
        said = {str(name): str(value).lower() for name, value in rows}
        crs = said.get("crs") or said.get("srs")  # not in the specification, but some programs add it
        if crs and not _may_be_mercator(crs):
            raise ImageError(f"{self.uri} holds tiles in the CRS {crs}, not in Web Mercator; give the raster itself")
        given = said.get("format", FORMATS[0])  # new in version 1.1; each tile's content shows its format
        if given == "pbf":
            raise ImageError(f"{self.uri} holds vector tiles (pbf); give raster tiles: {', '.join(FORMATS)}")
        if given.removeprefix("image/") not in FORMATS:
            raise ImageError(f"{self.uri} holds tiles of the format {given}; segray reads {', '.join(FORMATS)}")

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ImageError(f"{self.uri} cannot be read as MBTiles: {describe(error)}") from error


def _may_be_mercator(crs: str) -> bool:
    try:
        projection = CRS.from_user_input(crs).to_dict()
        sphere = projection.get("proj") in MERCATORS and projection.get("a") == projection.get("b", math.nan)
        return sphere and not (projection.get("lon_0") or projection.get("lat_ts"))
    except CRSError:  # 900913, or a name
        return True


def _check_file(uri: str, path: str) -> None:
    """ImageError when there is no file, or when its last changes are still in a -wal file, which would be ignored."""
    if not os.path.isfile(path):
        raise ImageError(f"{uri} does not exist or is not a file")
    if os.path.isfile(f"{path}-wal") and os.path.getsize(f"{path}-wal"):
        raise ImageError(f"{uri} is being written: close the program that does so, and {uri}-wal is merged into it")
