"""Made-up tile sets for tests: a picture cut into tiles, written in every format."""

from __future__ import annotations

import io
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer

from segray.storage import publish
from segray.uris import join

KINDS = ("xyz", "tms", "mbtiles", "pmtiles")
Tiles = dict[tuple[int, int, int], bytes]  # (zoom, x, y) -> bytes, y counted from the north


def encoded(array: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture of (H, W) of 8 or 16 bit, of (H, W, 3 or 4) of 8 bit, or of any that Pillow holds."""
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, *, size: int = 256, bands: int = 3) -> np.ndarray:
    """(size, size, bands) uint8, different for every tile."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, bands), dtype=np.uint8)


def write_set(kind: str, uri: str, tiles: Tiles) -> str:
    """Write tiles as a set of that kind to a URI and return the URI of the set."""
    if kind in ("xyz", "tms"):
        return write_tree(uri, tiles, tms=kind == "tms")
    publish(f"{uri}.{kind}", mbtiles(tiles) if kind == "mbtiles" else pmtiles(tiles))
    return f"{uri}.{kind}"


def write_tree(uri: str, tiles: Tiles, *, tms: bool = False) -> str:
    """Write a tree of files, with endings that match their contents."""
    for (zoom, x, y), data in tiles.items():
        ending = "jpg" if data.startswith(b"\xff\xd8") else "png"
        publish(join(uri, str(zoom), str(x), f"{2**zoom - 1 - y if tms else y}.{ending}"), data)
    return uri


def mbtiles(tiles: Tiles, *, kind: str = "png", view: bool = False) -> bytes:
    """The bytes of an MBTiles file; view: its tiles are a view of two tables, as many programs write it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made.mbtiles")
        with sqlite3.connect(path) as file:
            file.execute("CREATE TABLE metadata (name text, value text)")
            file.execute("INSERT INTO metadata VALUES ('format', ?)", (kind,))
            rows = [(zoom, x, 2**zoom - 1 - y, data) for (zoom, x, y), data in tiles.items()]
            if view:
                file.execute("CREATE TABLE map (zoom_level integer, tile_column integer, tile_row integer, id integer)")
                file.execute("CREATE TABLE images (id integer, tile_data blob)")
                file.execute(
                    "CREATE VIEW tiles AS SELECT zoom_level, tile_column, tile_row, tile_data "
                    "FROM map JOIN images ON map.id = images.id"
                )
                file.executemany("INSERT INTO map VALUES (?, ?, ?, ?)", [(*row[:3], k) for k, row in enumerate(rows)])
                file.executemany("INSERT INTO images VALUES (?, ?)", [(k, row[3]) for k, row in enumerate(rows)])
            else:
                columns = "zoom_level integer, tile_column integer, tile_row integer, tile_data blob"
                file.execute(f"CREATE TABLE tiles ({columns})")
                file.executemany("INSERT INTO tiles VALUES (?, ?, ?, ?)", rows)
        file.close()
        return path.read_bytes()


def pmtiles(tiles: Tiles, *, kind: TileType = TileType.PNG) -> bytes:
    """The bytes of a PMTiles file, written by the package of its authors."""
    file = io.BytesIO()
    writer = Writer(file)
    for tile_id, data in sorted((zxy_to_tileid(*place), data) for place, data in tiles.items()):
        writer.write_tile(tile_id, data)
    writer.finalize({"tile_type": kind, "tile_compression": Compression.NONE}, {})
    return file.getvalue()
