"""Where scenes lie in the tile grid of web maps: Web Mercator (EPSG:3857), zoom z of 2^z x 2^z tiles of 256 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rasterio._err import CPLE_BaseError  # raised as it is by transform, not as one of rasterio.errors
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine
from rasterio.warp import reproject, transform, transform_bounds

from segray.archives.raster import Affine6
from segray.exports.scenes import Scene
from segray.footprints import window_transform
from segray.grid import Window
from segray.masks import IGNORE

MERCATOR = CRS.from_epsg(3857)
SIZE = 256  # pixels of a tile
_RADIUS = 6378137.0  # metres, the equator of WGS 84
EDGE = math.pi * _RADIUS  # from the middle of the map to its edge
_MOST_LATITUDE = math.degrees(math.atan(math.sinh(math.pi)))  # where the square map ends
MOST_ZOOM = 22  # 4 cm at the equator; web maps go no deeper
STEPS = 16  # of the grid of points by which the part of a scene under a tile is found
SLACK = 1e-3  # of a zoom: a scene of a tile set, its georeference rounded, still has the zoom of its tiles
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True, kw_only=True)
class Place:
    """A scene on the map. boxes: longitude and latitude in degrees, two where it crosses the antimeridian.

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
        return math.degrees(left / _RADIUS), _latitude(bottom), math.degrees(right / _RADIUS), _latitude(top)

    @property
    def children(self) -> list[Tile]:
        """The four tiles of the next zoom that it consists of, in scan order."""
        return [Tile(self.z + 1, 2 * self.x + col, 2 * self.y + row) for row in (0, 1) for col in (0, 1)]


def place(scene: Scene) -> Place | None:
    """Where a scene lies; None without georeference, without any pixel that was read, or with no way to the map."""
    if scene.crs is None or scene.transform is None or not scene.is_usable or not scene.height * scene.width:
        return None
    try:
        crs = CRS.from_string(scene.crs)
        if not _area(scene.transform):
            return None
        boxes, zoom = _boxes(scene, crs), _zoom(scene, crs)
    except (RasterioError, CRSError, CPLE_BaseError):
        return None
    return Place(scene=scene, crs=crs, boxes=boxes, zoom=zoom) if boxes and zoom is not None else None


def window_under(tile: Tile, where: Place) -> Window | None:
    """The part of a scene that a tile shows, with a margin; None where it shows nothing of it."""
    left, bottom, right, top = tile.metres
    across, down = np.linspace(left, right, STEPS + 1), np.linspace(top, bottom, STEPS + 1)
    xs, ys = (grid.ravel() for grid in np.meshgrid(across, down))
    x, y = (np.array(values) for values in transform(MERCATOR, where.crs, xs, ys))
    cols, rows = _pixels(where.scene.transform, x, y)
    finite = np.isfinite(cols) & np.isfinite(rows)
    if not finite.any():
        return None
    first_row, last_row = _span(rows[finite], where.scene.height)
    first_col, last_col = _span(cols[finite], where.scene.width)
    if last_row <= first_row or last_col <= first_col:
        return None
    return Window(first_row, first_col, last_row - first_row, last_col - first_col)


def warped(mask_HW: np.ndarray, window: Window, *, where: Place, tile: Tile) -> np.ndarray:
    """(256, 256) uint8: the class of a window of a scene under the centre of each pixel of a tile, 255 where none is.

    The scene's pixel is the one that holds the point; no class is made up between two.
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
        tolerance=0,  # GDAL would allow itself an eighth of a pixel
    )
    return result


def _latitude(y: float) -> float:
    return math.degrees(math.atan(math.sinh(y / _RADIUS)))


def _point(transform_6: Affine6, col: float, row: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform_6
    return a * col + b * row + c, d * col + e * row + f


def _pixels(transform_6: Affine6, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of points: `_point` backwards."""
    a, b, c, d, e, f = transform_6
    area = _area(transform_6)
    return (e * (x - c) - b * (y - f)) / area, (a * (y - f) - d * (x - c)) / area


def _area(transform_6: Affine6) -> float:
    """Of a pixel, with its sign; 0 where the transform has no way back."""
    a, b, _, d, e, _ = transform_6
    return a * e - b * d


def _boxes(scene: Scene, crs: CRS) -> tuple[Box, ...]:
    corners = [(col, row) for col in (0, scene.width) for row in (0, scene.height)]
    xs, ys = zip(*(_point(scene.transform, col, row) for col, row in corners))
    left, bottom, right, top = transform_bounds(crs, "OGC:CRS84", min(xs), min(ys), max(xs), max(ys))
    if not all(map(math.isfinite, (left, bottom, right, top))):
        return ()
    bottom, top = max(bottom, -_MOST_LATITUDE), min(top, _MOST_LATITUDE)
    if bottom >= top:
        return ()
    if left > right:  # GDAL's way to say that it crosses the antimeridian
        return (left, bottom, 180.0, top), (-180.0, bottom, right, top)
    return ((left, bottom, right, top),)


def _zoom(scene: Scene, crs: CRS) -> int | None:
    """From the shortest side on the map of nine pixels that are spread over the scene."""
    shares = (0.0, 0.5, 1.0)
    centres = [(scene.width * across, scene.height * down) for across in shares for down in shares]
    ends = [(col + right, row + down) for col, row in centres for right, down in ((0, 0), (1, 0), (0, 1))]
    points = [_point(scene.transform, col, row) for col, row in ends]
    x, y = transform(crs, MERCATOR, *zip(*points))
    at = np.array([x, y]).T.reshape(-1, 3, 2)
    sides = np.hypot(*np.moveaxis(at[:, 1:] - at[:, :1], -1, 0))
    sides = sides[np.isfinite(sides) & (sides > 0)]
    if not sides.size:
        return None
    return min(MOST_ZOOM, max(0, math.ceil(math.log2(2 * EDGE / SIZE / sides.min()) - SLACK)))


def _span(values: np.ndarray, size: int) -> tuple[int, int]:
    """First and last pixel on an axis of `size` pixels, a step of the grid of points further than those reach."""
    low, high = values.min(), values.max()
    margin = (high - low) / STEPS + 2
    return max(0, math.floor(low - margin)), min(size, math.ceil(high + margin))
