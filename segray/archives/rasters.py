"""GeoTIFF, COG and JPEG 2000 rasters through rasterio (GDAL): read by window, with nodata, masks and georeference."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # some damage is raised as it is, not as one of rasterio.errors
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from segray.archives.opened import STRIPE_BYTES, OpenRaster, borrow
from segray.archives.raster import Affine6, Header, Raster
from segray.errors import ImageError
from segray.grid import Window
from segray.storage import FINAL_ERRORS, describe, filesystem, is_local

# The one GDAL driver that may open a file of an ending: never VRT and its like, which name other files and run code.
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
ENDINGS = set(DRIVERS)
MAX_BLOCK_PIXELS = 2**28  # a block is decoded whole: a larger one is a decompression bomb, or is not worth its memory


def read_header(uri: str) -> Header:
    """Size, bands, type and georeference from the directory of a raster; ImageError when it is none."""
    with _one_sentence(uri):
        raster = OpenRaster(uri, driver=_driver(uri), header_only=True)
        try:
            return raster.run(lambda: _header(uri, raster.source))
        finally:
            raster.close()


def read(uri: str, window: Window | None) -> Raster:
    """A window of a raster (None: all of it) with all its data bands; ImageError when it cannot be read.

    Validity joins the nodata value, an alpha band, a mask band and NaN. A palette is expanded to RGB. The raster stays
    open for the next window; a file that changed since is opened anew. A failing store's error goes on.
    """
    with _one_sentence(uri), borrow(uri, driver=_driver(uri)) as raster:
        _check_real(uri, raster.source.dtypes[0])
        _check_blocks(uri, raster.source)
        return raster.run(lambda: _read(raster.source, window))


@contextmanager
def _one_sentence(uri: str) -> Iterator[None]:
    """Whatever is wrong with a raster becomes an ImageError; a store's failure is no fault of it and goes on."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        of_store = isinstance(error, OSError) and not isinstance(error, (RasterioError, *FINAL_ERRORS))
        if of_store and not is_local(uri):
            raise
        missing = isinstance(error, FileNotFoundError)
        raise ImageError(f"{uri} cannot be read: {'it does not exist' if missing else _reason(error)}") from error


def _reason(error: Exception) -> str:
    """What GDAL says, without the random name by which it knows a stored file: equal runs write equal reasons."""
    return re.sub(r"/vsiriopener_[0-9a-f]+/[0-9]+/", "", describe(error.__cause__ or error))


def _header(uri: str, source: rasterio.DatasetReader) -> Header:
    _check_real(uri, source.dtypes[0])
    _check_blocks(uri, source)
    bands = 3 if _palette(source) else len(_data_bands(source))
    crs, transform = _georeference(source)
    size = {"height": source.height, "width": source.width}
    return Header(**size, bands=bands, dtype=source.dtypes[0], crs=crs, transform=transform)


def _check_real(uri: str, dtype: str) -> None:
    if dtype.startswith("complex"):
        raise ImageError(f"{uri} holds complex numbers, which are no imagery; give its amplitude instead")


def _read(source: rasterio.DatasetReader, window: Window | None) -> Raster:
    window = window or Window(0, 0, source.height, source.width)
    part = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
    pixels, valid = _pixels(source, part)
    if colors := _palette(source):
        table = np.zeros((256, 3), np.uint8)
        table[list(colors)] = [color[:3] for color in colors.values()]
        pixels = np.ascontiguousarray(table[pixels[0]].transpose(2, 0, 1))
    crs, transform = _georeference(source)
    size = {"height": source.height, "width": source.width}
    return Raster(pixels=pixels, valid=valid, window=window, **size, crs=crs, transform=transform)


def _pixels(source: rasterio.DatasetReader, part: RasterioWindow) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) pixels of the bands that hold imagery, before any palette, and (h, w) validity.

    Every block is decoded once: GDAL's own masks of alpha and nodata would decode them again.
    """
    bands, alpha = _data_bands(source), _alpha_bands(source)
    shape = (part.height, part.width)
    if alpha:
        pixels = _blocks(source, [*bands, alpha[-1]], part)
        valid, pixels = pixels[-1] != 0, pixels[:-1]
    elif any(MaskFlags.per_dataset in flags for flags in source.mask_flag_enums):
        valid = source.dataset_mask(window=part) != 0
        if not valid.any():
            return np.zeros((len(bands), *shape), source.dtypes[0]), valid
        pixels = _blocks(source, bands, part)
    else:
        pixels, valid = _blocks(source, bands, part), np.ones(shape, bool)
    _drop_nodata(valid, pixels, [source.nodatavals[index - 1] for index in bands])
    return pixels, valid


def _blocks(source: rasterio.DatasetReader, bands: list[int], part: RasterioWindow) -> np.ndarray:
    """(C, h, w) of the bands, read in stripes of whole rows of blocks that GDAL fetches with one call each."""
    dtype, block_height = np.dtype(source.dtypes[0]), source.block_shapes[0][0]
    bytes_a_row = part.width * source.count * dtype.itemsize
    step = max(1, STRIPE_BYTES // (bytes_a_row * block_height)) * block_height
    pixels = np.empty((len(bands), part.height, part.width), dtype)
    top, bottom = part.row_off, part.row_off + part.height
    for start in range(top // step * step, bottom, step):
        first, last = max(start, top), min(start + step, bottom)
        stripe = RasterioWindow(part.col_off, first, part.width, last - first)
        source.read(bands, window=stripe, out=pixels[:, first - top : last - top])
    return pixels


def _drop_nodata(valid: np.ndarray, pixels: np.ndarray, nodata: list[float | None]) -> None:
    """Set `valid` False where every band has its nodata value, or one is no finite number."""
    if all(value is not None for value in nodata):
        seen = pixels[0] != nodata[0]
        for band, value in zip(pixels[1:], nodata[1:]):
            seen |= band != value
        valid &= seen
    if pixels.dtype.kind == "f":
        for band in pixels:
            valid &= np.isfinite(band)


def _check_blocks(uri: str, source: rasterio.DatasetReader) -> None:
    for height, width in source.block_shapes:
        if height * width > MAX_BLOCK_PIXELS:
            raise ImageError(f"{uri} is stored in blocks of {height} x {width} pixels; rewrite it as tiled GeoTIFF")


def _driver(uri: str) -> str:
    return DRIVERS[posixpath.splitext(filesystem(uri)[1])[1].lower()]


def _data_bands(source: rasterio.DatasetReader) -> list[int]:
    """1-based numbers of the bands that hold imagery: all but alpha."""
    return [index for index, kind in zip(source.indexes, source.colorinterp) if kind != ColorInterp.alpha]


def _alpha_bands(source: rasterio.DatasetReader) -> list[int]:
    return [index for index, kind in zip(source.indexes, source.colorinterp) if kind == ColorInterp.alpha]


def _palette(source: rasterio.DatasetReader) -> dict[int, tuple[int, int, int, int]] | None:
    if source.count == 1 and source.colorinterp[0] == ColorInterp.palette and source.dtypes[0] == "uint8":
        return source.colormap(1)
    return None


def _georeference(source: rasterio.DatasetReader) -> tuple[str | None, Affine6 | None]:
    if source.transform.is_identity and source.crs is None:
        return None, None
    return source.crs.to_string() if source.crs else None, tuple(source.transform)[:6]
