"""Where windows lie on the Earth: outlines in longitude and latitude, cut at the antimeridian, and their areas."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import shapely
from rasterio import Affine
from rasterio._err import CPLE_BaseError, CPLE_NotSupportedError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as transform_points

from segray.grid import Affine6, Window

SEMI_MAJOR_M, ECCENTRICITY = 6_378_137.0, 0.0818191908426215  # of WGS 84
MERCATOR = CRS.from_epsg(3857)  # of web maps
EDGE = math.pi * SEMI_MAJOR_M  # metres from the middle of that map to its edge
AUTHALIC_RADIUS_M = 6_371_007.181  # of the sphere with the surface area of WGS 84
CORNERS = ((0, 1), (1, 1), (1, 0), (0, 0))  # (across, down) of a window, counterclockwise where rows run southwards
STEPS = 4  # per edge: between two points lies less than half the Earth, whatever the window
STEPS_OF_CURVES = 64  # per edge that is straight on its map but curved in longitude and latitude, as near a pole
NEAR = 1e-6  # pixels: a pole as near to an edge lies on it
NOISE = 1e-9  # degrees, a tenth of a millimetre: a longitude as near to an antimeridian lies on it
STRAIGHT = 0.02  # of an outline's length: edges that bend less are taken for straight, as all of a UTM scene are
NO_PLACE = (RasterioError, CRSError, CPLE_BaseError)  # what transform raises; the last not as one of rasterio.errors
Ring = list[tuple[float, float]]


def half_turn(crs: CRS) -> float | None:
    """Half the way around the Earth in units of a CRS's x, if x may continue past a full turn; else None."""
    if crs.is_geographic:
        return math.pi / crs.units_factor[1]
    return EDGE if crs == MERCATOR else None


def window_transform(transform: Affine6, window: Window) -> Affine6:
    """The affine of a window: that of its image moved to the window's first pixel, untouched at (0, 0)."""
    a, b, c, d, e, f = transform
    row, col = window.row_off, window.col_off
    return (a, b, c + a * col + b * row, d, e, f + d * col + e * row) if row or col else transform


def point(transform: Affine6, col: float | np.ndarray, row: float | np.ndarray) -> tuple:
    """x and y of columns and rows, which are counted from pixel corners; numbers or arrays."""
    a, b, c, d, e, f = transform
    return a * col + b * row + c, d * col + e * row + f


def coordinates(transform: Affine6, pixels: np.ndarray) -> np.ndarray:
    """(n, 2) column and row, counted from pixel corners -> (n, 2) x and y."""
    return np.stack(point(transform, pixels[:, 0], pixels[:, 1]), axis=1)


def transformed(source: CRS | str, target: CRS | str, points: np.ndarray) -> np.ndarray:
    """(n, 2) x and y of n >= 1 points in another CRS, NaN for those that have no place there.

    CRSError or CPLE_NotSupportedError when one cannot be transformed to the other.
    """
    try:
        moved = np.stack(transform_points(source, target, *points.T), axis=1)
    except CPLE_NotSupportedError:
        raise
    except (RasterioError, CPLE_BaseError):  # one has no place there, and GDAL then gives none of them
        if len(points) == 1:
            return np.full((1, 2), np.nan)
        return np.concatenate([transformed(source, target, half) for half in np.array_split(points, 2)])
    moved[~np.isfinite(moved).all(axis=1)] = np.nan
    return moved


def inverse(transform: Affine6) -> Affine6:
    """The affine from x and y to column and row; affine's own error where pixels have no area."""
    return tuple(~Affine(*transform))[:6]


def footprint(crs: str, transform: Affine6, window: Window) -> bytes | None:
    """WKB of a window's outline; None where there is none (see `outline`).

    A polygon, or across the antimeridian a multipolygon of what lies on each side (RFC 7946, 3.1.9).
    """
    found = outline(crs, transform, window)
    if found is None:
        return None
    polygons = [shapely.Polygon(ring) for ring in rings(found)]
    return shapely.to_wkb(polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons), byte_order=1)


def outline(crs: str, transform: Affine6, window: Window) -> np.ndarray | None:
    """(n, 2) float64 longitude and latitude of a window's outline in degrees, the first repeated at the end.

    Its four corners, or points along its edges where these are far from straight in longitude and latitude, as near a
    pole or in a scene as wide as a continent. Longitudes continue beyond 180 where the window does, so that the line
    from one point to the next follows its edge; latitudes end at the poles, though grids of points extend beyond them.
    Around a pole: points of the edges from -180 to 180, and back along the pole. None where the CRS cannot be converted
    to longitude and latitude (an engineering CRS, or a point outside its domain).
    """
    affine = window_transform(transform, window)
    points = _edges(crs, affine, window, STEPS)
    if points is None:
        return None
    is_straight = _is_straight(points)
    if is_straight and not _winds(points):
        return points[::STEPS]
    # a pole on an edge has no longitude: it is left outside
    on_edge = not is_straight and _pole(crs, affine, window, NEAR) != _pole(crs, affine, window, -NEAR)
    curves = _edges(crs, affine, window, STEPS_OF_CURVES, inset=2 * NEAR if on_edge else 0.0)
    if curves is None or not _winds(curves):
        return curves
    pole = _pole(crs, affine, window)
    return _closed_at(math.copysign(90.0, curves[:, 1].mean()) if pole is None else pole, curves)


def rings(outline: np.ndarray) -> list[Ring]:
    """The exterior rings of an outline, closed: one, or one for each part between two antimeridians."""
    corners: Ring = [tuple(corner) for corner in outline[:-1].tolist()]
    west = min(x for x, _ in corners)
    if max(x for x, _ in corners) - west >= 360:  # a ring all around the Earth has no place to cut
        corners, west = [(min(x - west - 180, 180.0), y) for x, y in corners], -180.0
    limit = 360 * math.floor((west + 180) / 360) + 180
    found = []
    while any(x > limit - 360 for x, _ in corners):  # what is left beyond an antimeridian may be an edge along it
        part, corners = _clip(corners, limit, side=-1), _clip(corners, limit, side=1)
        found.append(_closed([(x - (limit - 180), y) for x, y in part]))
        limit += 360
    return found


def area_m2(outline: np.ndarray) -> float:
    """Area of an outline on the authalic sphere (Chamberlain, Duquette 2007, eq. 4)."""
    longitude, latitude = np.radians(outline).T
    sine = _authalic(np.sin(latitude)) / _authalic(np.float64(1))
    return abs(float((np.diff(longitude) * (2 + sine[:-1] + sine[1:])).sum())) * AUTHALIC_RADIUS_M**2 / 2


@lru_cache(64)
def true_scale(crs: str, transform: Affine6, height: int, width: int) -> float | None:
    """Square metres of ground per square unit of a CRS, over about a square kilometre in the middle of an image.

    From the vectors across and down that square, as they lie on the ellipsoid. None where they are not known.
    """
    a, b, _, d, e, _ = transform
    side = abs(a * e - b * d) ** 0.5
    if not side:
        return None
    pixels = max(1, round(1000 / side))
    cols, rows = (np.array(steps) * pixels / 2 for steps in ((1, -1, 0, 0), (0, 0, 1, -1)))
    cols, rows = cols + width / 2, rows + height / 2
    try:
        points = transform_points(crs, "OGC:CRS84", *point(transform, cols, rows))
    except NO_PLACE:
        return None
    longitude, latitude = np.radians(points[:2])
    radius = SEMI_MAJOR_M / np.sqrt(1 - (ECCENTRICITY * np.sin(latitude)) ** 2)
    level = radius * np.cos(latitude)
    up = radius * (1 - ECCENTRICITY**2) * np.sin(latitude)
    east, west, south, north = np.stack([level * np.cos(longitude), level * np.sin(longitude), up], axis=1)
    area = float(np.linalg.norm(np.cross(east - west, south - north)))
    return area / (pixels * side) ** 2 if math.isfinite(area) else None


def _edges(crs: str, affine: Affine6, window: Window, steps: int, *, inset: float = 0.0) -> np.ndarray | None:
    """(4 steps + 1, 2) longitude and latitude along the edges, one after another; around a pole they end 360 away.

    inset: how many pixels further inside the points lie.
    """
    around = np.array([*CORNERS, CORNERS[0]])
    corners = around * (window.width, window.height) + inset * (1 - 2 * around)
    share = np.arange(len(CORNERS) * steps + 1) / steps
    cols, rows = (np.interp(share, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1))
    try:
        longitudes, latitudes = transform_points(crs, "OGC:CRS84", *point(affine, cols, rows))
    except NO_PLACE:
        return None
    points = np.array([longitudes, latitudes]).T
    # PROJ passes metres through a vertical CRS; a global raster may reach a little beyond 360 and 90 degrees.
    if not (abs(points) <= 400).all():  # also refuses NaN
        return None
    turns = np.cumsum(np.round(np.diff(points[:, 0], prepend=points[0, 0]) / 360))
    points[:, 0] -= 360 * turns
    seam = 360 * np.round((points[:, 0] - 180) / 360) + 180
    points[:, 0] = np.where(abs(points[:, 0] - seam) < NOISE, seam, points[:, 0])  # else it is cut into slivers there
    points[:, 1] = np.clip(points[:, 1], -90, 90)
    return points


def _winds(points: np.ndarray) -> bool:
    """Whether the points along the edges go all around the Earth."""
    return abs(points[-1, 0] - points[0, 0]) > 180


def _is_straight(points: np.ndarray) -> bool:
    """Whether the points along the edges, STEPS for each, nearly lie on the lines between the four corners."""
    narrow = np.cos(np.radians(points[:-1, 1]))  # a degree of longitude, in degrees of latitude
    corners = points[::STEPS]
    begins, ends = (np.repeat(part, STEPS, axis=0) for part in (corners[:-1], corners[1:]))
    (x, y), (along, up) = (points[:-1] - begins).T, (ends - begins).T
    lengths = np.hypot(along * narrow, up)
    bends = abs(x * up - y * along) * narrow / np.where(lengths, lengths, 1)
    extent = np.ptp(points, axis=0)
    return bends.max() <= STRAIGHT * np.hypot(extent[0] * narrow.max(), extent[1])


def _pole(crs: str, affine: Affine6, window: Window, margin: float = 0.0) -> float | None:
    """The latitude of the pole inside a window that is wider by a margin of pixels; None where there is none."""
    a, b, c, d, e, f = affine
    for latitude in (-90.0, 90.0):
        try:
            (x,), (y,) = transform_points("OGC:CRS84", crs, [0.0], [latitude])
        except NO_PLACE:  # in many projections the far pole has no place
            continue
        col, row = np.linalg.solve([[a, b], [d, e]], [x - c, y - f])
        if -margin <= col <= window.width + margin and -margin <= row <= window.height + margin:
            return latitude
    return None


def _closed_at(pole: float, edges: np.ndarray) -> np.ndarray:
    """An outline from edges around a pole: by longitude, cut at 180, closed along the pole's latitude."""
    longitudes, places = np.unique((edges[:-1, 0] + 180) % 360 - 180, return_index=True)
    latitudes = edges[places, 1]
    cut = np.interp(180.0, longitudes, latitudes, period=360)
    inner = abs(longitudes) < 180
    found = [(-180.0, cut), *zip(longitudes[inner], latitudes[inner]), (180.0, cut), (180.0, pole), (-180.0, pole)]
    return np.array([*found, found[0]])


def _authalic(sine: np.ndarray) -> np.ndarray:
    """q of the sine of a geodetic latitude; q / q(1) is the sine of the authalic latitude (Snyder 1987, eq. 3-12)."""
    e = ECCENTRICITY
    return (1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)


def _clip(ring: Ring, limit: float, *, side: int) -> Ring:
    """The part of a convex ring on one side of a meridian, -1 for west (Sutherland and Hodgman 1974)."""
    found = []
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]]):
        inside, next_inside = (x0 - limit) * side > 0, (x1 - limit) * side > 0
        if inside or x0 == limit:
            found.append((x0, y0))
        if inside != next_inside and limit not in (x0, x1):
            found.append((limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)))
    return found


def _closed(ring: Ring) -> Ring:
    """A ring that ends where it begins, counterclockwise."""
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]]))
    ordered = ring if area >= 0 else ring[::-1]
    return [*ordered, ordered[0]]
