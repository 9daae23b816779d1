"""GeoTIFF, COG and JPEG 2000 rasters through rasterio (GDAL): read by window, with nodata, masks and georeference."""

from __future__ import annotations

import posixpath
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # some damage is raised as it is, not as one of rasterio.errors
from rasterio.enums import ColorInterp
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from segray.archives.raster import Affine6, Header, Raster
from segray.errors import ImageError
from segray.grid import Window
from segray.storage import describe, exists, filesystem, is_local, local_path, retry

Result = TypeVar("Result")

# The one GDAL driver that may open a file of an ending: never VRT and its like, which name other files and run code.
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
ENDINGS = set(DRIVERS)
MAX_BLOCK_PIXELS = 2**28  # a block is decoded whole: a larger one is a decompression bomb, or is not worth its memory


def read_header(uri: str) -> Header:
    """Size, bands, type and georeference from the directory of a raster; ImageError when it is none."""
    return _patiently(_read_header, uri)


def read(uri: str, window: Window | None) -> Raster:
    """A window of a raster (None: all of it) with all its data bands; ImageError when it cannot be read.

    Validity joins the nodata value, an alpha band, a mask band and NaN. A palette is expanded to RGB.
    """
    return _patiently(_read, uri, window)


def _patiently(call: Callable[..., Result], uri: str, *arguments: object) -> Result:
    """The result of a call; GDAL does not tell a store's passing failure from a damaged file, so stores are retried."""

    def attempt() -> Result:
        try:
            return call(uri, *arguments)
        except OSError as error:
            if not exists(uri):
                raise FileNotFoundError("it does not exist") from error
            raise

    try:
        return attempt() if is_local(uri) else retry(attempt)
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        reason = describe(error) if isinstance(error, FileNotFoundError) else _reason(error)
        raise ImageError(f"{uri} cannot be read: {reason}") from error


def _reason(error: Exception) -> str:
    """What GDAL says, without the random name by which it knows a store: equal runs write equal reasons."""
    return re.sub(r"/vsiriopener_[0-9a-f]+/", "", describe(error.__cause__ or error))


def _read_header(uri: str) -> Header:
    with _open(uri) as source:
        bands = 3 if _palette(source) else len(_data_bands(source))
        crs, transform = _georeference(source)
        _check_real(uri, source.dtypes[0])
        return Header(
            height=source.height, width=source.width, bands=bands, dtype=source.dtypes[0], crs=crs, transform=transform
        )


def _check_real(uri: str, dtype: str) -> None:
    if dtype.startswith("complex"):
        raise ImageError(f"{uri} holds complex numbers, which are no imagery; give its amplitude instead")


def _read(uri: str, window: Window | None) -> Raster:
    with _open(uri) as source:
        window = window or Window(0, 0, source.height, source.width)
        _check_real(uri, source.dtypes[0])
        part = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        bands = _data_bands(source)
        pixels = source.read(bands, window=part)
        valid = source.dataset_mask(window=part) > 0
        if any(nodata is not None for nodata in source.nodatavals):  # an alpha or mask band makes GDAL forget it
            valid &= np.any([band != source.nodatavals[index - 1] for index, band in zip(bands, pixels)], axis=0)
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        if colors := _palette(source):
            table = np.zeros((256, 3), np.uint8)
            table[list(colors)] = [color[:3] for color in colors.values()]
            pixels = np.ascontiguousarray(table[pixels[0]].transpose(2, 0, 1))
        crs, transform = _georeference(source)
        height, width = source.height, source.width
    return Raster(pixels=pixels, valid=valid, window=window, height=height, width=width, crs=crs, transform=transform)


@contextmanager
def _open(uri: str) -> Iterator[rasterio.DatasetReader]:
    fs, path = filesystem(uri)
    local = local_path(uri)
    driver = DRIVERS[posixpath.splitext(path)[1].lower()]
    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a raster without georeference is an image all the same
    warnings.simplefilter("ignore", NodataShadowWarning)
    where = {"fp": local} if local else {"fp": path, "opener": fs}
    # On a store GDAL would list the image's whole folder and ask for dozens of sidecar files, for every image.
    options = {} if local else {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    with rasterio.Env(**options), rasterio.open(**where, driver=driver) as source:
        for height, width in source.block_shapes:
            if height * width > MAX_BLOCK_PIXELS:
                raise ImageError(f"{uri} is stored in blocks of {height} x {width} pixels; rewrite it as tiled GeoTIFF")
        yield source


def _data_bands(source: rasterio.DatasetReader) -> list[int]:
    """1-based numbers of the bands that hold imagery: all but alpha."""
    return [index for index, kind in zip(source.indexes, source.colorinterp) if kind != ColorInterp.alpha]


def _palette(source: rasterio.DatasetReader) -> dict[int, tuple[int, int, int, int]] | None:
    if source.count == 1 and source.colorinterp[0] == ColorInterp.palette and source.dtypes[0] == "uint8":
        return source.colormap(1)
    return None


def _georeference(source: rasterio.DatasetReader) -> tuple[str | None, Affine6 | None]:
    if source.transform.is_identity and source.crs is None:
        return None, None
    return source.crs.to_string() if source.crs else None, tuple(source.transform)[:6]
