"""A zoom level of a tile set as one image in Web Mercator: no seams, and every tile has its neighbours as context.

Its pixels begin at the north-west corner of its westernmost column and northernmost row of tiles. All tiles are read as
three 8-bit bands, grey expanded; missing tiles, empty ones and transparent pixels are no data. Its URI is
KIND://ZOOM::URI_OF_THE_SET, and its `part` holds what else is needed to read any window without listing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np

from segray.archives import pictures
from segray.archives.copies import check_version
from segray.archives.kept import Kept
from segray.archives.levels import CRS, Level
from segray.archives.ranges import unreadable_told
from segray.archives.raster import Header, Raster
from segray.archives.tilesets import TILESETS, TileSet
from segray.archives.xyz import XYZ
from segray.errors import ImageError, SegrayError
from segray.grid import Lattice, Window, block_cuts
from segray.listing import list_files
from segray.storage import File
from segray.store_errors import FINAL_ERRORS, at_fault, describe
from segray.uris import absolute

TREES = {kind: tiles for kind, tiles in TILESETS.items() if issubclass(tiles, XYZ)}
TILE_SIZES = (256, 512)
FETCHERS = 16  # tiles fetched at once per process, to hide a store's latency; s3fs holds 10 connections
KEPT_SETS = 16
MAX_TILES = 2**27  # of a level; their places take 2 GB
MAX_SIDE = 2**31 - 1  # pixels; the plan counts in 32 bits
LOOKED_AT = 8  # tiles that are tried until one can be read; it gives the size of all
FIRST = 1024  # places of a tree's non-empty tiles that are kept, to try those
PLACES_AT_ONCE = 2**20
_pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="tiles")


def level(kind: str, uri: str, *, etag: str = "", zoom: int | None = None) -> File:
    """A zoom level of a tile set, by default the highest, as an image to plan; its `size` is the number of tiles.

    etag: of the set's file, asked for if not given; a tree's is made from those of its tiles. SegrayError when there is
    no such level, or the set is damaged, spans too much, or cannot be listed.
    """
    uri = absolute(uri)
    with _listing(uri):
        if kind not in TREES:
            etag = etag or next(list_files(uri)).etag
        tiles = TILESETS[kind](uri, etag)
        zoom = _choose(uri, tiles.zooms(), zoom)
        seen = _survey(tiles, zoom)
        if kind in TREES:
            tiles = TREES[kind](uri, endings=seen.endings)  # which may be in upper case
        size = _tile_size(tiles, zoom, seen.first if kind in TREES else tiles.tiles(zoom))
    part = {"endings": seen.endings, "etag": etag, "tile_size": size}
    found = Level(kind=kind, zoom=zoom, source=tiles.uri, **seen.bounds, **part)
    if max(found.height, found.width) > MAX_SIDE:
        extent = f"{found.height} x {found.width}"
        raise SegrayError(f"zoom {zoom} of {uri} spans {extent} pixels, too many for one image; give a lower --zoom")
    return File(found.uri, seen.count, etag or seen.digest, part=found.part)


def header(uri: str, part: str) -> Header:
    """The header of a level, from its URI and part alone."""
    found = Level.of(uri, part)
    size = {"height": found.height, "width": found.width}
    return Header(**size, bands=3, dtype="uint8", crs=CRS, transform=found.transform)


def tile_size(file: File) -> int:
    """Side of a level's tiles, pixels."""
    return Level.of(file.uri, file.part).tile_size


def occupied(file: File) -> np.ndarray:
    """(n, 2) int64: row and column of the tiles that exist, relative to the grid's first, each once, in scan order."""
    found = Level.of(file.uri, file.part)
    cols = found.x1 - found.x0 + 1
    with _listing(found.source):
        places = _set_of(found).tiles(found.zoom)
        codes = np.unique(np.fromiter(((y - found.y0) * cols + x - found.x0 for x, y in places), np.int64))
    return np.stack(np.divmod(codes, cols), axis=1)


def occupied_blocks(
    tiles: np.ndarray, tile_size: int, *, height: int, width: int, lattice: Lattice, max_pixels: int
) -> Iterator[Window]:
    """Those of `grid.blocks` that touch a tile of an (n, 2) int64 array of rows and columns, in scan order.

    Time and memory grow with the tiles, not with the area between them.
    """
    tops, lefts = block_cuts(height, width, lattice, max_pixels)
    codes = [
        _touched(tiles[start : start + PLACES_AT_ONCE], tile_size, tops, lefts)
        for start in range(0, len(tiles), PLACES_AT_ONCE)
    ]
    for code in np.unique(np.concatenate(codes)) if codes else ():
        row, col = divmod(int(code), len(lefts) - 1)
        yield Window(tops[row], lefts[col], tops[row + 1] - tops[row], lefts[col + 1] - lefts[col])


def read(uri: str, part: str, window: Window | None) -> Raster:
    """A window of a level (None: all of it), assembled from tiles that are fetched and decoded concurrently.

    ImageError, naming the tile, when one is damaged or not of the level's size. A failing store's error passes through.
    """
    found = Level.of(uri, part)
    window = window or Window(0, 0, found.height, found.width)
    shape = (window.height, window.width)
    size = {"height": found.height, "width": found.width}
    georeference = {"crs": CRS, "transform": found.transform}
    pixels, valid = np.zeros((3, *shape), np.uint8), np.zeros(shape, bool)
    raster = Raster(pixels=pixels, valid=valid, window=window, **size, **georeference)
    tiles = _set_of(found)
    futures = [_pool.submit(_paste, raster, tiles, found, place) for place in found.tiles(window)]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
    return raster


def _paste(raster: Raster, tiles: TileSet, found: Level, place: tuple[int, int]) -> None:
    """Copy what a tile has of a raster's window into place; no two tiles share a pixel."""
    data = _fetch(tiles, found, *place)
    if not data:  # programs that copy tile servers leave empty files for missing tiles
        return
    tile, whole = _decode(data, found, *place), found.window_of(*place)
    shared = whole.intersection(raster.window)
    source, target = shared.within(whole), shared.within(raster.window)
    raster.pixels[:, *target], raster.valid[target] = tile.pixels[:, *source], tile.valid[source]


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What a pass over a level's tiles finds. first, endings, digest: of a tree's files, else empty.

    first: the places of the first that are not empty.
    """

    count: int
    bounds: dict[str, int]
    first: list[tuple[int, int]]
    endings: tuple[str, ...]
    digest: str


def _survey(tiles: TileSet, zoom: int) -> _Survey:
    """One pass over the tiles, in constant memory. SegrayError when there are none, too many, or any off the map."""
    endings: Counter[str] = Counter()
    digest = hashlib.sha256()
    first: list[tuple[int, int]] = []
    count, x0, y0, x1, y1 = 0, 2**zoom, 2**zoom, -1, -1
    files = tiles.files(zoom) if isinstance(tiles, XYZ) else ((*place, "", None) for place in tiles.tiles(zoom))
    for x, y, name, file in files:
        count, x0, y0, x1, y1 = count + 1, min(x, x0), min(y, y0), max(x, x1), max(y, y1)
        if file is not None:
            endings[name.rpartition(".")[2]] += 1
            digest.update(f"{name}\0{file.size}\0{file.etag}\n".encode())
            if file.size and len(first) < FIRST:
                first.append((x, y))
        if not (0 <= x < 2**zoom and 0 <= y < 2**zoom):
            raise SegrayError(f"{tiles.uri} has a tile {zoom}/{x}/{y}, which is not on the map; remove it")
        if count > MAX_TILES:
            raise SegrayError(f"zoom {zoom} of {tiles.uri} has more than {MAX_TILES} tiles; give a lower --zoom")
    if not count:
        raise SegrayError(f"zoom {zoom} of {tiles.uri} has no tiles; give another --zoom")
    frequent = sorted(endings, key=lambda ending: (-endings[ending], ending))
    bounds = {"x0": x0, "y0": y0, "x1": x1, "y1": y1}
    hexdigest = digest.hexdigest() if endings else ""
    return _Survey(count=count, bounds=bounds, first=first, endings=tuple(frequent), digest=hexdigest)


def _choose(uri: str, zooms: list[int], wanted: int | None) -> int:
    if not zooms:
        raise SegrayError(f"{uri} has no zoom level with tiles")
    if wanted is not None and wanted not in zooms:
        raise SegrayError(f"{uri} has no zoom {wanted}; give --zoom one of {', '.join(map(str, zooms))}")
    return max(zooms) if wanted is None else wanted


def _tile_size(tiles: TileSet, zoom: int, places: Iterable[tuple[int, int]]) -> int:
    """Pixels a side of the first tile that can be read; SegrayError when none can, or its size is not supported."""
    reasons = []
    held = ((x, y, data) for x, y in places if (data := tiles.read(zoom, x, y)))
    for x, y, data in islice(held, LOOKED_AT):
        try:
            height, width = pictures.size_of(data)
        except pictures.BROKEN as error:
            reasons.append(f"tile {zoom}/{x}/{y}: {pictures.reason(error)}")
            continue
        if height != width or height not in TILE_SIZES:
            sizes = " or ".join(map(str, TILE_SIZES))
            raise SegrayError(f"tile {zoom}/{x}/{y} of {tiles.uri} has {height} x {width} pixels, not {sizes} a side")
        return height
    reason = reasons[0] if reasons else "they are empty"
    raise SegrayError(f"none of the first tiles of {tiles.uri} can be read; {reason}")


@contextmanager
def _listing(uri: str) -> Iterator[None]:
    """Turns a store's errors while a set is listed into a sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise SegrayError(f"{uri} does not exist; check the URI given with --archive") from error
    except OSError as error:
        raise at_fault(error)(f"{uri} cannot be listed: {describe(error)}") from error


def _open(key: tuple[str, str, str, tuple[str, ...]]) -> TileSet:
    kind, source, etag, endings = key
    if kind in TREES:
        return TREES[kind](source, endings=endings)
    check_version(source, etag)
    return TILESETS[kind](source, etag)


def _set_of(found: Level) -> TileSet:
    """The tile set of a level, kept open between uses; ImageError when it is damaged or gone."""
    try:
        with unreadable_told(found.source):
            return _sets.get((found.kind, found.source, found.etag, found.endings))
    except SegrayError as error:
        raise ImageError(str(error)) from error


def _fetch(tiles: TileSet, found: Level, x: int, y: int) -> bytes | None:
    try:
        return tiles.read(found.zoom, x, y)
    except FINAL_ERRORS as error:
        raise ImageError(_about(found, x, y, pictures.reason(error))) from error


def _decode(data: bytes, found: Level, x: int, y: int) -> Raster:
    """A tile as (1 or 3, size, size) uint8; its size is checked before it is decoded."""
    try:
        height, width = pictures.size_of(data)
        if (height, width) != (found.tile_size, found.tile_size):
            size = f"{height} x {width} pixels, the others {found.tile_size} x {found.tile_size}"
            raise ImageError(f"tile {found.zoom}/{x}/{y} of {found.source} has {size}")
        tile = pictures.decode(data)
    except pictures.BROKEN as error:
        raise ImageError(_about(found, x, y, pictures.reason(error))) from error
    if tile.pixels.dtype != np.uint8:
        raise ImageError(_about(found, x, y, f"it is {tile.pixels.dtype}, not 8-bit"))
    return tile


def _about(found: Level, x: int, y: int, reason: str) -> str:
    return f"tile {found.zoom}/{x}/{y} of {found.source} cannot be read: {reason}"


def _touched(tiles: np.ndarray, tile_size: int, tops: list[int], lefts: list[int]) -> np.ndarray:
    """The scan-order numbers, ascending, of the blocks that touch any of (n, 2) tiles."""
    first = tiles * tile_size
    top, left = (np.searchsorted(cuts, first[:, k], "right") - 1 for k, cuts in enumerate((tops, lefts)))
    ends = first + tile_size - 1
    bottom, right = (np.searchsorted(cuts, ends[:, k], "right") - 1 for k, cuts in enumerate((tops, lefts)))
    which, row = _spread(top, bottom)
    nth, col = _spread(left[which], right[which])
    return np.unique(row[nth] * (len(lefts) - 1) + col)


def _spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which, value): every value of the ranges [first, last], and the number of its range."""
    counts = last - first + 1
    which = np.repeat(np.arange(len(first)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + first[which]


_sets = Kept(_open, most=KEPT_SETS)
