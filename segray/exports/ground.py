"""Where pixels lie on the ground and how large they are: coordinates, square metres, and the CRS as PROJJSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from segray.archives.metadata import MERCATORS, TRUE
from segray.archives.raster import Affine6
from segray.errors import SegrayError
from segray.footprints import coordinates, true_scale

# Up to this share, areas on the map of a survey are taken for those on the ground, as surveyors do. Conformal maps of
# whole continents exceed it: 7% in the middle of Europe's EPSG:3034, 5% at the pole of EPSG:3031.
NEARLY = 0.005
FARTHEST = 30.0  # radians, of the isometric latitude: pixels as near to a pole have practically no area
PIXELS: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # of an image without georeference


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """An ellipsoid of revolution. radius: semi-major axis in metres. e2: squared eccentricity."""

    radius: float
    e2: float

    def density(self, latitudes: np.ndarray) -> np.ndarray:
        """Square metres per square radian of longitude and latitude, at latitudes in radians; 0 beyond the poles.

        a^2 (1 - e^2) cos(lat) / (1 - e^2 sin(lat)^2)^2: the product of the two radii of curvature and the cosine
        (Snyder, Map Projections: A Working Manual, USGS PP 1395, 1987, equations 4-18 to 4-21).
        """
        bow = (1 - self.e2 * np.sin(latitudes) ** 2) ** 2
        cosine = np.where(abs(latitudes) <= math.pi / 2, np.cos(latitudes), 0)
        return self.radius**2 * (1 - self.e2) * cosine / bow


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """A geographic CRS. unit: radians per unit of it."""

    ellipsoid: Ellipsoid
    unit: float

    def density(self, y: np.ndarray) -> np.ndarray:
        """Square metres of ground per square unit of the CRS, at second coordinates `y`."""
        return self.ellipsoid.density(self.unit * y) * self.unit**2


@dataclass(frozen=True, kw_only=True)
class Mercator:
    """A CRS in the Mercator projection, which enlarges areas the more, the farther they are from the equator.

    unit: metres per unit of it. scale: metres on the map per radian of longitude. y_0: false northing, metres. e2:
    squared eccentricity in the formula: 0 in Web Mercator, though its latitudes are those of an ellipsoid.
    """

    ellipsoid: Ellipsoid
    unit: float
    scale: float
    y_0: float
    e2: float

    def density(self, y: np.ndarray) -> np.ndarray:
        """Square metres of ground per square unit of the CRS, at second coordinates `y` (Snyder 1987, 7-9 and 7-10)."""
        isometric = np.clip((self.unit * y - self.y_0) / self.scale, -FARTHEST, FARTHEST)
        e = math.sqrt(self.e2)
        latitudes = np.arctan(np.sinh(isometric))
        for _ in range(6 if e else 0):  # each adds at least two digits
            latitudes = np.arctan(np.sinh(isometric + e * np.arctanh(e * np.sin(latitudes))))
        slope = np.cos(latitudes) * (1 - self.e2 * np.sin(latitudes) ** 2) / (1 - self.e2)
        return self.ellipsoid.density(latitudes) * slope * (self.unit / self.scale) ** 2


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The georeference of an image.

    transform: the affine of the image, `PIXELS` without one. projjson: its CRS, None without one. pixel_m2: area of
    every pixel, where all are taken to be of one size: in projections other than Mercator. surface: gives the area by
    the second coordinate, where the CRS is geographic or a Mercator projection.
    """

    transform: Affine6 = PIXELS
    projjson: dict | None = None
    pixel_m2: float | None = None
    surface: Degrees | Mercator | None = None

    @property
    def has_area(self) -> bool:
        """Whether areas in square metres are known."""
        return self.pixel_m2 is not None or self.surface is not None

    @property
    def determinant(self) -> float:
        """The area of a pixel in the CRS's own plane; negative where rows run downwards, as they mostly do."""
        a, b, _, d, e, _ = self.transform
        return a * e - b * d

    def coordinates(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) column and row of pixel corners -> (n, 2) float64 x and y."""
        return coordinates(self.transform, points)

    def run_m2(self, rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(n,) square metres of runs of pixels on the ellipsoid; 0 where all pixels are of one size.

        The density is integrated by Gauss-Legendre rules: 3 points down a pixel, and 5 along a run where latitude
        changes along rows. The error is below 1e-9 of the area for pixels of up to a degree.
        """
        total = np.zeros(len(rows))
        if self.surface is None:
            return total
        _, _, _, d, e, f = self.transform
        for down, weight in _rule(3):
            for along, share in _rule(5 if d else 1):
                y = d * (columns + lengths * along) + e * (rows + down) + f
                total += weight * share * self.surface.density(y)
        return total * lengths * abs(self.determinant)

    def areas(self, pixels: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """(n,) square metres of regions from their pixel counts, or from sums of `run_m2`; NaN where unknown."""
        if self.surface is not None:
            return measured
        return pixels * (math.nan if self.pixel_m2 is None else self.pixel_m2)

    def pixel_size_m(self, height: int, width: int) -> float:
        """The square root of the area of the pixel in the middle, in metres; 1 where it has none, or none is known."""
        middle = np.array([height // 2]), np.array([width // 2]), np.array([1])
        area = float(self.areas(np.ones(1), self.run_m2(*middle))[0]) if self.has_area else 0.0
        return math.sqrt(area) or 1.0


def ground_of(image: str, crs: str | None, transform: Affine6 | None, *, height: int = 1, width: int = 1) -> Ground:
    """The ground of an image; a CRS without a transform says nothing and is left out. SegrayError on an unknown CRS.

    In projections that distort areas strongly, every pixel is taken to be as large as one in the middle of the image.
    """
    if crs is None or transform is None:
        return Ground(transform=transform or PIXELS)
    try:
        parsed = CRS.from_user_input(crs)
        projjson = parsed.to_dict(projjson=True)
        units = parsed.units_factor[1]
    except CRSError as error:
        raise SegrayError(
            f"{image} has the CRS {crs[:80]}, which PROJ does not know; correct the image's CRS"
        ) from error
    ground, ellipsoid = Ground(transform=transform, projjson=projjson), _ellipsoid(projjson)
    if parsed.is_geographic:
        return replace(ground, surface=ellipsoid and Degrees(ellipsoid=ellipsoid, unit=units))
    if not parsed.is_projected:
        return ground
    projection = parsed.to_dict()
    if ellipsoid and projection.get("proj") in MERCATORS:
        return replace(ground, surface=_mercator(projection, ellipsoid, units))
    scale = true_scale(crs, transform, height, width)
    if scale is None or (projection.get("proj") in TRUE and abs(scale / units**2 - 1) < NEARLY):
        scale = units**2
    return replace(ground, pixel_m2=abs(ground.determinant) * scale)


def _mercator(projection: dict, ellipsoid: Ellipsoid, unit: float) -> Mercator:
    """A Mercator projection from its PROJ parameters, https://proj.org/operations/projections/merc.html."""
    spherical = projection.get("a") == projection.get("b", math.nan)
    e2 = 0.0 if spherical else ellipsoid.e2
    true = math.radians(projection.get("lat_ts", 0.0))  # the latitude at which metres are metres
    scale = projection.get("k", 1.0) * math.cos(true) / math.sqrt(1 - e2 * math.sin(true) ** 2)
    y_0 = projection.get("y_0", 0.0)
    return Mercator(ellipsoid=ellipsoid, unit=unit, scale=ellipsoid.radius * scale, y_0=y_0, e2=e2)


def _rule(points: int) -> list[tuple[float, float]]:
    """(position, weight) of a Gauss-Legendre rule on 0 to 1."""
    positions, weights = np.polynomial.legendre.leggauss(points)
    return list(zip((positions + 1) / 2, weights / 2))


def _ellipsoid(projjson: dict) -> Ellipsoid | None:
    """The ellipsoid of a PROJJSON CRS, wherever it is nested; None where it has none."""
    found = _search(projjson, "ellipsoid")
    if found is None:
        return None
    if "radius" in found:
        return Ellipsoid(radius=_metres(found["radius"]), e2=0.0)
    radius = _metres(found["semi_major_axis"])
    if "semi_minor_axis" in found:
        return Ellipsoid(radius=radius, e2=1 - (_metres(found["semi_minor_axis"]) / radius) ** 2)
    flattening = 1 / found["inverse_flattening"]
    return Ellipsoid(radius=radius, e2=flattening * (2 - flattening))


def _search(node: object, key: str) -> dict | None:
    if isinstance(node, dict):
        if key in node:
            return node[key]
        node = list(node.values())
    found = (_search(child, key) for child in node) if isinstance(node, list) else ()
    return next((child for child in found if child is not None), None)


def _metres(length: float | dict) -> float:
    """PROJJSON gives a bare number in metres, or a value with its unit."""
    if not isinstance(length, dict):
        return length
    unit = length["unit"]
    return length["value"] * (unit["conversion_factor"] if isinstance(unit, dict) else 1)
