"""What pixels are on the ground: coordinates, areas in square metres, and the CRS as PROJJSON."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from segray.archives.raster import Affine6
from segray.errors import SegrayError

PIXELS: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # of an image without georeference


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """An ellipsoid of revolution. radius: semi-major axis in metres. e2: squared eccentricity."""

    radius: float
    e2: float

    def density(self, latitudes: np.ndarray) -> np.ndarray:
        """Square metres a square radian of longitude and latitude (radians); 0 beyond the poles.

        a^2 (1 - e^2) cos(lat) / (1 - e^2 sin(lat)^2)^2: the product of the two radii of curvature and the cosine
        (Snyder, Map Projections: A Working Manual, USGS PP 1395, 1987, equations 4-18 to 4-21).
        """
        bow = (1 - self.e2 * np.sin(latitudes) ** 2) ** 2
        return self.radius**2 * (1 - self.e2) * np.maximum(np.cos(latitudes), 0) / bow


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The georeference of an image.

    transform: the affine of the image, that of pixels without one. projjson: its CRS, None without one. pixel_m2: of
    every pixel, where the CRS is projected. unit: radians a unit of a geographic CRS on its ellipsoid, where it is one.
    """

    transform: Affine6 = PIXELS
    projjson: dict | None = None
    pixel_m2: float | None = None
    unit: float | None = None
    ellipsoid: Ellipsoid | None = None

    @property
    def has_area(self) -> bool:
        """Whether areas in square metres are known."""
        return self.pixel_m2 is not None or self.ellipsoid is not None

    @property
    def determinant(self) -> float:
        """The area of a pixel in the CRS's own plane; negative where rows run downwards, as they mostly do."""
        a, b, _, d, e, _ = self.transform
        return a * e - b * d

    def coordinates(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) column and row of pixel corners -> (n, 2) float64 x and y."""
        a, b, c, d, e, f = self.transform
        columns, rows = points[:, 0], points[:, 1]
        return np.stack([a * columns + b * rows + c, d * columns + e * rows + f], axis=1)

    def run_m2(self, rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(n,) square metres of runs of pixels on the ellipsoid; 0 where the CRS is not geographic.

        The density is integrated by Gauss-Legendre rules: 3 points down a pixel, and 5 along a run where latitude
        changes along rows. The error is below 1e-9 of the area for pixels of up to a degree.
        """
        total = np.zeros(len(rows))
        if self.ellipsoid is None:
            return total
        _, _, _, d, e, f = self.transform
        for down, weight in _rule(3):
            for along, share in _rule(5 if d else 1):
                latitudes = self.unit * (d * (columns + lengths * along) + e * (rows + down) + f)
                total += weight * share * self.ellipsoid.density(latitudes)
        return total * lengths * abs(self.determinant) * self.unit**2

    def areas(self, pixels: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """(n,) square metres of regions from their pixels, or from what `run_m2` gave; NaN where unknown."""
        if self.ellipsoid is not None:
            return measured
        return pixels * (math.nan if self.pixel_m2 is None else self.pixel_m2)

    def pixel_size_m(self, height: int, width: int) -> float:
        """The square root of the area of the pixel in the middle; 1 where no area is known."""
        middle = np.array([height // 2]), np.array([width // 2]), np.array([1])
        area = float(self.areas(np.ones(1), self.run_m2(*middle))[0]) if self.has_area else 1.0
        return math.sqrt(area)


def ground_of(image: str, crs: str | None, transform: Affine6 | None) -> Ground:
    """The ground of an image; a CRS without a transform says nothing and is left out. SegrayError on an unknown CRS."""
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
    ground = Ground(transform=transform, projjson=projjson)
    if parsed.is_geographic:
        return Ground(transform=transform, projjson=projjson, unit=units, ellipsoid=_ellipsoid(projjson))
    if parsed.is_projected:
        return Ground(transform=transform, projjson=projjson, pixel_m2=abs(ground.determinant) * units**2)
    return ground


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
