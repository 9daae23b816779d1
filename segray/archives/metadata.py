"""What an open raster says about itself: bands, alpha, palette, georeference and resolution."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from segray.errors import ImageError
from segray.footprints import SEMI_MAJOR_M, true_scale
from segray.grid import Affine6

METRES_A_DEGREE = 111_319.49
MERCATORS = ("merc", "webmerc")  # in PROJ's words, as all that follow
# Projections for surveys and statistics: where they are used, their metres or square metres are nearly those on the
# ground. In others, such as those of world maps, they are not.
TRUE = {
    "aea", "cass", "cea", "etmerc", "krovak", "laea", "lcc", "mod_krovak", "nzmg", "omerc", "poly", "somerc", "stere",
    "sterea", "tmerc", "utm",
}  # fmt: skip
Y_OF_89_DEGREES = math.asinh(math.tan(math.radians(89)))  # of the Mercator map of a sphere of radius 1
MAX_PIXELS = 2**46  # of an image: 6 million km2 at 30 cm; a damaged header may say more, and its plan fill all memory
MAX_BLOCK_PIXELS = 2**28  # a block is decoded whole: a larger one is a decompression bomb, or is not worth its memory


def check(uri: str, source: rasterio.DatasetReader) -> None:
    """ImageError when a raster has several pages, complex numbers, or too many pixels, in all or in a block.

    GDAL lists pages as subdatasets where there are several; overviews and masks are not listed.
    """
    if pages := len(source.subdatasets):
        raise ImageError(
            f"{uri} holds {pages} pages, of which only the first would be read; write its bands into one page"
        )
    if source.dtypes[0].startswith("complex"):
        raise ImageError(f"{uri} holds complex numbers, which are not imagery; give its amplitude instead")
    if source.height * source.width > MAX_PIXELS:
        size = f"{source.height} x {source.width} pixels"
        raise ImageError(f"{uri} says that it has {size}; if its header is not damaged, split it into several files")
    for height, width in source.block_shapes:
        if height * width > MAX_BLOCK_PIXELS:
            raise ImageError(f"{uri} is stored in blocks of {height} x {width} pixels; rewrite it as tiled GeoTIFF")


def data_bands(source: rasterio.DatasetReader) -> list[int]:
    """1-based numbers of the bands that hold imagery: all but alpha."""
    return [index for index, kind in zip(source.indexes, source.colorinterp) if kind != ColorInterp.alpha]


def alpha_bands(source: rasterio.DatasetReader) -> list[int]:
    """1-based numbers of the bands that are marked as alpha: they say what is transparent."""
    return [index for index, kind in zip(source.indexes, source.colorinterp) if kind == ColorInterp.alpha]


def numbered_bands(source: rasterio.DatasetReader) -> list[int]:
    """1-based numbers of the bands that a user can choose: data bands, then those marked as alpha that follow them.

    GDAL marks the last of four 8-bit bands as alpha, though it may be infrared.
    """
    data = data_bands(source)
    return data + [index for index in alpha_bands(source) if index > max(data, default=0)]


def palette(source: rasterio.DatasetReader) -> dict[int, tuple[int, int, int, int]] | None:
    """The palette (RGBA) of a raster whose only data band is 8-bit palette indices; None for all others."""
    data = data_bands(source)
    if len(data) != 1:  # rasterio asks GDAL about all bands whenever it is asked about one
        return None
    kind = source.colorinterp[data[0] - 1], source.dtypes[data[0] - 1]
    return source.colormap(data[0]) if kind == (ColorInterp.palette, "uint8") else None


def expanded(indices_HW: np.ndarray, colors: dict[int, tuple[int, int, int, int]]) -> np.ndarray:
    """(3, H, W) uint8 colours of palette indices; black where the palette has none."""
    table = np.zeros((256, 3), np.uint8)
    table[list(colors)] = [color[:3] for color in colors.values()]
    return np.ascontiguousarray(table[indices_HW].transpose(2, 0, 1))


def georeference(source: rasterio.DatasetReader) -> tuple[str | None, Affine6 | None]:
    """(CRS as authority code or WKT, affine of the raster as (a, b, c, d, e, f)), each None where the file has none.

    rasterio gives the identity where the file has no affine; a CRS alone places nothing, but is kept. An affine whose
    pixels have no area, or that is no numbers, places nothing either.
    """
    crs = name_of(source.crs.wkt) if source.crs else None
    return crs, tuple(source.transform)[:6] if _places(source.transform) else None


def _places(transform: rasterio.Affine) -> bool:
    numbers = all(math.isfinite(value) for value in transform[:6])
    return numbers and not transform.is_identity and 0 < abs(transform.determinant) < math.inf


@lru_cache(256)
def name_of(wkt: str) -> str:
    """The authority code of a CRS, else its WKT; cached, as PROJ searches its whole catalogue for up to 120 ms.

    PROJ also finds codes of CRS with another datum, or another shift to WGS 84, which lie up to hundreds of metres off.
    """
    crs = CRS.from_wkt(wkt)
    name = crs.to_string()
    return name if CRS.from_string(name) == crs else crs.to_wkt()


def metres(source: rasterio.DatasetReader) -> float | None:
    """Metres a pixel at the raster's centre: the root of a pixel's area; None without georeference.

    Computed on a sphere for degrees and for Mercator projections, which stretch by 1 / cos(latitude); for other
    projections that are not in TRUE, from the area that `true_scale` measures there.
    """
    if source.crs is None or not _places(source.transform):
        return None
    crs, side = source.crs, abs(source.transform.determinant) ** 0.5
    *_, d, e, f = tuple(source.transform)[:6]
    y = d * source.width / 2 + e * source.height / 2 + f
    if crs.is_geographic:
        degrees = math.degrees(crs.units_factor[1])  # a unit may be a gradian
        return side * degrees * METRES_A_DEGREE * math.cos(math.radians(min(abs(y) * degrees, 89.0))) ** 0.5
    if not crs.is_projected:
        return side
    unit, projection = crs.linear_units_factor[1], crs.to_dict()
    if projection.get("proj") in MERCATORS:
        return side * unit / _stretch(projection, y * unit)
    if projection.get("proj") not in TRUE:
        scale = true_scale(crs.to_string(), tuple(source.transform)[:6], source.height, source.width)
        return side * (unit if scale is None else scale**0.5)
    return side * unit


def _stretch(mercator: dict, y_m: float) -> float:
    """Metres on a Mercator map per metre on the ground: scale x cosh(y), which is 1 at `lat_ts`.

    mercator: its parameters in PROJ's words, https://proj.org/operations/projections/merc.html.
    """
    scale = max(1e-3, mercator.get("k", 1.0) * math.cos(math.radians(mercator.get("lat_ts", 0.0))))  # never 0
    y = abs(y_m - mercator.get("y_0", 0.0)) / (SEMI_MAJOR_M * scale)
    return scale * math.cosh(min(y, Y_OF_89_DEGREES))
