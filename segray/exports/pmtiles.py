"""Masks as one PMTiles v3 file of PNG tiles in Web Mercator, for web maps: classes in their colours, the rest clear.

The tiles are made depth first, so that only a few are in memory. A tile in which no scene has finer pixels than its own
is warped from the masks by nearest neighbour; any other takes the most frequent classes from its four children. A
coarse scene has no tiles beyond its own resolution, except beside a finer one: web maps enlarge the deepest tile.
"""

from __future__ import annotations

import math
import posixpath
import tempfile
from collections.abc import Iterable
from typing import IO

import numpy as np
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import write

from segray.errors import SegrayError
from segray.exports.mercator import SIZE, Box, MappedScene, Tile, places_of, warped, window_under
from segray.grid import Window
from segray.masks import IGNORE, Classes, encode_png
from segray.reduction import majority
from segray.scenes import Masks, Scene, SceneReader
from segray.settings import ExportSettings
from segray.shards import MASK

PER_SCENE = False
LAYER = MASK
MEDIA_TYPE = "application/vnd.pmtiles"
FILE = "masks.pmtiles"
REFUSED = "it has no georeference that leads to a web map; export it with --format png"
READERS_KEPT = 4  # of scenes that overlap, or meet, under neighbouring tiles


def name(scene: Scene, archive: str) -> str | None:
    """The path of the file of all scenes in the output, None for a scene without a place on the map."""
    return FILE if places_of(scene) else None


def beside(uri: str) -> tuple[()]:
    """The URIs of the files published beside this one: there are none."""
    return ()


def write_all(masks: Masks, scenes: Iterable[Scene], path: str, settings: ExportSettings) -> dict:
    """Write all scenes with a georeference to a local file; returns how many were taken and left out, tiles, and zooms.

    settings.max_zoom: the deepest zoom of the file, 0 to 22; None for that of the finest scene.

    Where scenes overlap, the later one is on top, except where it has no data. Memory: a few tiles, what `SceneReader`
    keeps, what is known of each scene, and an entry of the index for each tile of the file. SegrayError when no scene
    has a georeference or none has a class.
    """
    places, taken, left_out = [], 0, 0
    for scene in scenes:
        found = places_of(scene)
        taken, left_out = taken + bool(found), left_out + (not found)
        places += found
    if not places:
        raise SegrayError(
            f"none of the {left_out} scenes of {masks.output} has a georeference that leads to a web map; "
            "export them with --format png"
        )
    finest = max(where.zoom for where in places)
    deepest = finest if settings.max_zoom is None else settings.max_zoom
    with tempfile.TemporaryFile(dir=posixpath.dirname(path) or ".") as file:
        pyramid = _Pyramid(masks, spool=_Spool(file), max_zoom=deepest, finest=finest)
        if pyramid.make(Tile(0, 0, 0), places) is None:
            raise SegrayError(f"{masks.output} holds no class in any georeferenced scene, so there is no tile to write")
        header = _header(places, deepest)
        with write(path) as writer:
            for tile_id, data in pyramid.spool.ordered():
                writer.write_tile(tile_id, data)
            writer.finalize(header, _metadata(masks.classes, header))
        tiles = len(pyramid.spool.entries)
    zooms = {name: header[name] for name in ("min_zoom", "max_zoom")}  # of what was written
    return {"scenes": taken, "scenes_left_out": left_out, "tiles": tiles, **zooms}


class _Spool:
    """The encoded tiles, in a file in the order in which they are made, and where each lies in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.entries: list[tuple[int, int, int]] = []  # tile id, offset, length in bytes

    def add(self, tile: Tile, data: bytes) -> None:
        self.entries.append((zxy_to_tileid(tile.z, tile.x, tile.y), self._file.tell(), len(data)))
        self._file.write(data)

    def ordered(self) -> Iterable[tuple[int, bytes]]:
        """(id, bytes) of every tile, in the order of the ids."""
        for tile_id, offset, length in sorted(self.entries):
            self._file.seek(offset)
            yield tile_id, self._file.read(length)


class _Pyramid:
    """Makes tiles from the masks and from other tiles. finest: the deepest zoom of any scene."""

    def __init__(self, masks: Masks, *, spool: _Spool, max_zoom: int, finest: int) -> None:
        self._masks, self._max_zoom, self._finest = masks, max_zoom, finest
        self._readers: dict[str, SceneReader] = {}
        self.spool = spool

    def make(self, tile: Tile, places: list[MappedScene]) -> np.ndarray | None:
        """(256, 256) uint8 class ids of a tile; it and those below it go to the spool. None if there is no data."""
        here = [where for where in places if where.meets(tile)]
        if not here:
            return None
        is_last = all(self._zoom(where) <= tile.z for where in here)
        mask = self._warped(tile, here) if is_last else self._joined(tile, here)
        if mask is None or (mask == IGNORE).all():
            return None
        if tile.z <= self._max_zoom:
            self.spool.add(tile, encode_png(mask, self._masks.classes))
        return mask

    def _zoom(self, where: MappedScene) -> int:
        """The zoom at which a scene is warped; only the finest scenes go on to a `max_zoom` deeper than their own."""
        return max(where.zoom, self._max_zoom) if where.zoom == self._finest else where.zoom

    def _joined(self, tile: Tile, here: list[MappedScene]) -> np.ndarray | None:
        children = [self.make(child, here) for child in tile.children]
        if all(child is None for child in children):
            return None
        nothing = np.full((SIZE, SIZE), IGNORE, np.uint8)
        a, b, c, d = (nothing if child is None else child for child in children)
        return majority(np.block([[a, b], [c, d]]), 2)

    def _warped(self, tile: Tile, here: list[MappedScene]) -> np.ndarray:
        result = np.full((SIZE, SIZE), IGNORE, np.uint8)
        for where in here:
            window = window_under(tile, where)
            if window is None:
                continue
            mask = self._read(where.scene, window)
            if (mask != IGNORE).any():
                layer = warped(mask, window, where=where, tile=tile)
                np.copyto(result, layer, where=layer != IGNORE)
        return result

    def _read(self, scene: Scene, window: Window) -> np.ndarray:
        reader = self._readers.pop(scene.image, None) or SceneReader(self._masks, scene)
        self._readers[scene.image] = reader  # the most recently used comes last
        if len(self._readers) > READERS_KEPT:
            del self._readers[next(iter(self._readers))]
        return reader.read(window)


def _header(places: list[MappedScene], max_zoom: int) -> dict:
    """The fields of the PMTiles header (specification 3) that follow from the scenes."""
    _, bottom, _, top = bounds = _bounds(places)
    left, right = _extent(places)
    across = math.log2(360 / max(right - left, 1e-9))
    names = ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7")
    return {
        "tile_type": TileType.PNG,
        "tile_compression": Compression.NONE,
        **{name: round(value * 1e7) for name, value in zip(names, bounds)},
        "center_zoom": max(0, min(max_zoom, math.floor(across) + 1)),
        "center_lon_e7": round(((left + right) / 2 + 180) % 360 * 1e7) - 1_800_000_000,
        "center_lat_e7": round((bottom + top) / 2 * 1e7),
    }


def _extent(places: list[MappedScene]) -> tuple[float, float]:
    """(west, east) of the scenes; east is beyond 180 where they meet there, as on either side of Fiji's antimeridian.

    The bounds are then those of the whole map, whose middle lies on the other side of the Earth.
    """
    west, _, east, _ = _bounds(places)
    if (west, east) != (-180.0, 180.0):
        return west, east
    reached, widest = -180.0, (0.0, -180.0, 180.0)  # widest: the gap between scenes, and where it begins and ends
    for left, _, right, _ in sorted(box for where in places for box in where.boxes):
        widest = max(widest, (left - reached, reached, left))
        reached = max(reached, right)
    gap, west, east = widest
    return (east, west + 360) if gap > 0 else (-180.0, 180.0)


def _bounds(places: list[MappedScene]) -> Box:
    lefts, bottoms, rights, tops = zip(*(box for where in places for box in where.boxes))
    return max(min(lefts), -180.0), min(bottoms), min(max(rights), 180.0), max(tops)


def _metadata(classes: Classes, header: dict) -> dict:
    """The metadata of the file: the legend, and what tile servers look for."""
    bounds = [header[name] / 1e7 for name in ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7")]
    return {
        "name": "masks",
        "format": "png",
        "type": "overlay",
        "generator": "segray",
        "bounds": ",".join(map(str, bounds)),
        "classes": classes.to_json(),
    }
