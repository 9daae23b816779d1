"""8-bit palette PNG: one for each image; for a tile set, a tree of tiles like its own."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from segray.archives.levels import is_level
from segray.errors import ImageError
from segray.exports.mercator import EDGE
from segray.exports.names import mirror
from segray.grid import Window, windows
from segray.listing import files_if_any
from segray.masks import IGNORE, encode_png
from segray.scenes import CELL, Masks, Scene, SceneReader
from segray.settings import ExportSettings
from segray.shards import MASK, OK

PER_SCENE = True
LAYER = MASK
MEDIA_TYPE = "image/png"
MAX_PIXELS = 2**27  # a PNG is made in memory, at three bytes per pixel
TILE = 256
TILES = "tiles.json"  # its existence says that the tree is complete
TILE_JSON = re.compile(r"tiles(-\w+)?\.json")  # TILES, or what `distinct` makes of it


def name(scene: Scene, archive: str) -> str:
    """The path of the scene's file in the output; of a tile set, that of the TileJSON in its zoom level's folder."""
    if not is_level(scene.image):
        return mirror(scene.image, archive, ".png")
    *folders, level = mirror(scene.image, archive, "").split("/")
    if not level.isdecimal():  # it carries a hash, by which it differs from another set's
        folders.append(level)
    return "/".join([*folders, str(_zoom(scene)), TILES])


def beside(uri: str) -> Iterator[str]:
    """The URIs of the tiles in the folder of a TileJSON; of a single picture, none."""
    folder, _, name = uri.rpartition("/")
    if not TILE_JSON.fullmatch(name):
        return
    tile = re.compile(rf"/{re.escape(posixpath.basename(folder))}/\d+/\d+\.png$")
    yield from (file.uri for file in files_if_any(folder) if tile.search(file.uri))


def write(masks: Masks, scene: Scene, path: str, options: ExportSettings) -> dict:
    """Write the image's PNG; of a tile set, x/y.png beside `path` for every tile with data, and its TileJSON there."""
    if is_level(scene.image):
        return _write_tiles(masks, scene, path)
    if scene.height * scene.width > MAX_PIXELS:
        raise ImageError(
            f"{scene.image} has {scene.height} x {scene.width} pixels; a PNG may have at most "
            f"{MAX_PIXELS / 1e6:.0f} million; export it with --format cog"
        )
    mask = SceneReader(masks, scene).read(Window(0, 0, scene.height, scene.width))
    with open(path, "wb") as file:
        file.write(encode_png(mask, masks.classes))
    return {"pixels": scene.height * scene.width}


def _write_tiles(masks: Masks, scene: Scene, path: str) -> dict:
    folder, reader, zoom, tiles = Path(path).parent, SceneReader(masks, scene), _zoom(scene), 0
    left, top = _origin(scene)
    for block in _blocks(scene, left, top):
        pixels = reader.read(block)
        for part in windows(block.height, block.width, TILE):
            tile = pixels[part.rows, part.cols]
            if (tile != IGNORE).any():
                x, y = (left + block.col_off + part.col_off) // TILE, (top + block.row_off + part.row_off) // TILE
                (folder / str(x)).mkdir(exist_ok=True)
                (folder / str(x) / f"{y}.png").write_bytes(encode_png(tile, masks.classes))
                tiles += 1
    document = {"tilejson": "3.0.0", "tiles": ["../{z}/{x}/{y}.png"], "minzoom": zoom, "maxzoom": zoom, "scheme": "xyz"}
    Path(path).write_text(json.dumps({**document, "tile_count": tiles}), encoding="utf-8")
    return {"pixels": scene.height * scene.width, "tiles": tiles}


def _blocks(scene: Scene, left: int, top: int) -> Iterator[Window]:
    """Windows of whole tiles, CELL pixels a side, that may hold data; in the pixels of the scene."""
    held = (piece.window for piece in scene.pieces if piece.status == OK)
    shifted = (replace(window, row_off=top + window.row_off, col_off=left + window.col_off) for window in held)
    for row, col in sorted({cell for window in shifted for cell in window.squares(CELL)}):
        yield Window(row * CELL - top, col * CELL - left, CELL, CELL)


def _zoom(scene: Scene) -> int:
    """The zoom level at which the pixels of 256-pixel tiles are those of a scene; ImageError when there is none."""
    a, b, _, d, e, _ = scene.transform or (0.0,) * 6
    zoom = math.log2(2 * EDGE / a / TILE) if a > 0 else -1.0
    if b or d or not math.isclose(a, -e, rel_tol=1e-6) or zoom < -0.5 or abs(zoom - round(zoom)) > 1e-6:
        raise ImageError(f"{scene.image} does not have the pixels of a zoom level; export it with --format cog")
    return round(zoom)


def _origin(scene: Scene) -> tuple[int, int]:
    """(column, row) of the scene's first pixel among all pixels of its zoom level."""
    size = 2 * EDGE / (TILE << _zoom(scene))
    return round((scene.transform[2] + EDGE) / size), round((EDGE - scene.transform[5]) / size)
