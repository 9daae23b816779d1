"""Where scenes lie in the tile grid of web maps: Web Mercator (EPSG:3857), zoom z has 2^z x 2^z tiles of 256 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from rasterio import Env
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject, transform_bounds

from segray.footprints import (
    EDGE,
    MERCATOR,
    NO_PLACE,
    SEMI_MAJOR_M,
    coordinates,
    half_turn,
    inverse,
    transformed,
    window_transform,
)
from segray.grid import Window
from segray.masks import IGNORE
from segray.scenes import Scene
from segray.settings import MAX_ZOOM

SIZE = 256  # pixels of a tile
_MOST_LATITUDE = math.degrees(math.atan(math.sinh(math.pi)))  # where the square map ends
STEPS = 16  # along each side of the grid of points that finds the part of a scene under a tile
EDGE_POINTS = 1001  # at which edges are looked at: of GDAL's 21, those of a scene of 2,000 km bend up to 1 km away
SLACK = 1e-3  # of a zoom: so a scene from a tile set, whose georeference is rounded, keeps the zoom of its tiles
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True, kw_only=True)
class MappedScene:
    """A scene on the map. boxes: longitude and latitude in degrees, two where it crosses the antimeridian.

    The scene's transform may be moved by whole turns around the Earth (see `places_of`).

    zoom: the first whose pixels are no larger than the scene's smallest, both in metres of the map; at most 22.
    """

    scene: Scene
    crs: CRS
    boxes: tuple[Box, ...]
    zoom: int

    def meets(self, tile: Tile) -> bool:
        """Whether the scene may have pixels in a tile."""
        left, bottom, right, top = tile.degrees
        return any(b[0] < right and left < b[2] and b[1] < top and bottom < b[3] for b in self.boxes)


@dataclass(frozen=True)
class Tile:
    """A tile of the grid; x counts from the west, y from the north."""

    z: int
    x: int
    y: int

    @property
    def metres(self) -> Box:
        """Its extent in EPSG:3857."""
        side = 2 * EDGE / 2**self.z
        left, top = self.x * side - EDGE, EDGE - self.y * side
        return left, top - side, left + side, top

    @property
    def degrees(self) -> Box:
        """Its extent in longitude and latitude."""
        left, bottom, right, top = self.metres
        return math.degrees(left / SEMI_MAJOR_M), _latitude(bottom), math.degrees(right / SEMI_MAJOR_M), _latitude(top)

    @property
    def children(self) -> list[Tile]:
        """The four tiles of the next zoom that it consists of, in scan order."""
        return [Tile(self.z + 1, 2 * self.x + col, 2 * self.y + row) for row in (0, 1) for col in (0, 1)]


def places_of(scene: Scene) -> list[MappedScene]:
    """Where a scene lies; empty without a georeference, if none of it was read, or if no part of it has a place there.

    In degrees or in metres of the map a scene may go on beyond the antimeridian, as grids from 0 to 360 degrees do. It
    then has one place for each turn around the Earth, and the map shows what of it lies between -180 and 180 degrees.
    """
    if scene.crs is None or scene.transform is None or not scene.is_usable:
        return []
    try:
        crs = CRS.from_string(scene.crs)
        if not Affine(*scene.transform).determinant:  # pixels without area
            return []
        with Env():  # else GDAL prints 26 lines for each scene of a CRS that leads nowhere
            zoom = _zoom(scene, crs)
            turns = [(turn, _boxes(turn, crs)) for turn in _turns(scene, crs)]
    except NO_PLACE:
        return []
    return [
        MappedScene(scene=turn, crs=crs, boxes=boxes, zoom=zoom) for turn, boxes in turns if boxes and zoom is not None
    ]


def window_under(tile: Tile, where: MappedScene) -> Window | None:
    """The part of a scene that a tile shows, with a margin; None where it shows nothing of it."""
    left, bottom, right, top = tile.metres
    across, down = np.linspace(left, right, STEPS + 1), np.linspace(top, bottom, STEPS + 1)
    grid = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    points = transformed(MERCATOR, where.crs, grid)
    points = points[np.isfinite(points[:, 0])]
    if not len(points):
        return None
    cols, rows = coordinates(inverse(where.scene.transform), points).T
    first_row, last_row = _span(rows, where.scene.height)
    first_col, last_col = _span(cols, where.scene.width)
    if last_row <= first_row or last_col <= first_col:
        return None
    return Window(first_row, first_col, last_row - first_row, last_col - first_col)


def warped(mask_HW: np.ndarray, window: Window, *, where: MappedScene, tile: Tile) -> np.ndarray:
    """(256, 256) uint8: the class of a window of a scene under the centre of each pixel of a tile, 255 for none.

    It is that of the scene's pixel that holds the point, which is found to an eighth of a pixel where the projections
    are curved against each other, as in a coarse scene near a pole; classes are not interpolated.
    """
    side = 2 * EDGE / 2**tile.z / SIZE
    left, _, _, top = tile.metres
    result = np.full((SIZE, SIZE), IGNORE, np.uint8)
    reproject(
        mask_HW,
        result,
        src_transform=Affine(*window_transform(where.scene.transform, window)),
        src_crs=where.crs,
        src_nodata=IGNORE,
        dst_transform=Affine(side, 0.0, left, 0.0, -side, top),
        dst_crs=MERCATOR,
        dst_nodata=IGNORE,
        resampling=Resampling.nearest,
        tolerance=0,  # exact places instead of GDAL's eighth of a pixel; rasterio 1.4 does not pass it on
    )
    return result


def _latitude(y: float) -> float:
    return math.degrees(math.atan(math.sinh(y / SEMI_MAJOR_M)))


def _turns(scene: Scene, crs: CRS) -> list[Scene]:
    """The scene, moved by every number of turns around the Earth that brings a part of it onto the map."""
    half = half_turn(crs)
    if half is None:
        return [scene]
    left, _, right, _ = _extent(scene)
    a, b, c, d, e, f = scene.transform
    numbers = range(math.floor((left + half) / (2 * half)), math.ceil((right + half) / (2 * half)))
    return [replace(scene, transform=(a, b, c - number * 2 * half, d, e, f)) for number in numbers]


def _extent(scene: Scene) -> Box:
    """The box around a scene in its own CRS."""
    corners = np.array([(col, row) for col in (0, scene.width) for row in (0, scene.height)])
    points = coordinates(scene.transform, corners)
    return *points.min(axis=0).tolist(), *points.max(axis=0).tolist()


def _boxes(scene: Scene, crs: CRS) -> tuple[Box, ...]:
    left, bottom, right, top = _extent(scene)
    half = half_turn(crs)
    if half is not None:
        left, right = max(left, -half), min(right, half)
    if crs.is_geographic:  # grids of points reach half a cell beyond the poles
        bottom, top = max(bottom, -half / 2), min(top, half / 2)
    box = transform_bounds(crs, "OGC:CRS84", left, bottom, right, top, densify_pts=EDGE_POINTS)
    if not all(map(math.isfinite, box)):
        box = _sampled_bounds(scene, crs)
    left, bottom, right, top = box
    bottom, top = max(bottom, -_MOST_LATITUDE), min(top, _MOST_LATITUDE)
    if not bottom < top:
        return ()
    if left > right:  # GDAL's way to say that it crosses the antimeridian
        return (left, bottom, 180.0, top), (-180.0, bottom, right, top)
    return ((left, bottom, right, top),)


def _sampled_bounds(scene: Scene, crs: CRS) -> Box:
    """The box of those points of a scene that lie on the Earth, a step wider; NaN where none does.

    The corners of a picture of the whole Earth, for example, lie beside it.
    """
    across, down = np.linspace(0, scene.width, STEPS + 1), np.linspace(0, scene.height, STEPS + 1)
    grid = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    points = transformed(crs, "OGC:CRS84", coordinates(scene.transform, grid))
    points = points[np.isfinite(points[:, 0])]
    if not len(points):
        return (math.nan,) * 4
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    wider, higher = (right - left) / STEPS, (top - bottom) / STEPS
    return max(left - wider, -180.0), bottom - higher, min(right + wider, 180.0), top + higher


def _zoom(scene: Scene, crs: CRS) -> int | None:
    """The zoom by the shortest side, on the map, of nine pixels inside the scene: its edges may lie at a pole."""
    shares = (1 / 6, 1 / 2, 5 / 6)
    corners = [(scene.width * across, scene.height * down) for across in shares for down in shares]
    ends = [(col + right, row + down) for col, row in corners for right, down in ((0, 0), (1, 0), (0, 1))]
    places = transformed(crs, MERCATOR, coordinates(scene.transform, np.array(ends))).reshape(len(corners), 3, 2)
    places = places[np.isfinite(places).all(axis=(1, 2))]
    sides = np.linalg.norm(places[:, 1:] - places[:, :1], axis=2)
    sides = sides[sides > 0]
    if not sides.size:
        return None
    return min(MAX_ZOOM, max(0, math.ceil(math.log2(2 * EDGE / SIZE / sides.min()) - SLACK)))


def _span(values: np.ndarray, size: int) -> tuple[int, int]:
    """(first, stop) of the pixels that the values reach on an axis of `size` pixels, with a margin on both sides."""
    low, high = values.min(), values.max()
    margin = (high - low) / STEPS + 2
    return max(0, math.floor(low - margin)), min(size, math.ceil(high + margin))
