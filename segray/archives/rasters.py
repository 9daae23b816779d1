"""GeoTIFF, COG and JPEG 2000 rasters through rasterio (GDAL): read by window, with nodata, masks and georeference."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # some damage is raised as it is, not as one of rasterio.errors
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as RasterioWindow

from segray.archives.metadata import (
    alpha_bands,
    check,
    data_bands,
    expanded,
    georeference,
    metres,
    numbered_bands,
    palette,
)
from segray.archives.opened import STRIPE_BYTES, OpenRaster, Span, borrow
from segray.archives.raster import Choose, Header, Raster, take_bands
from segray.errors import ImageError
from segray.grid import Window
from segray.resample import Scaling
from segray.store_errors import FINAL_ERRORS, describe
from segray.uris import ending, is_local

Result = TypeVar("Result")
# The only GDAL driver that may open a file of that ending; never VRT or the like, which name other files and run code.
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
ENDINGS = set(DRIVERS)
SHRUNK_PIXELS = 2**23  # read at a time when resampling to a coarser grid; 13 bytes each


def read_header(uri: str, *, file: str | None = None, span: Span = None) -> Header:
    """Size, bands, type and georeference from the directory of a raster; ImageError when it is not one.

    file, span: for a member that is read in place, the file that holds it, and where.
    """
    file = file or uri
    with one_sentence(uri, file):
        raster = OpenRaster(file, driver=driver_of(uri), header_only=True, span=span)
        try:
            return raster.run(lambda: _header(uri, raster.source))
        finally:
            raster.close()


def read(
    uri: str,
    window: Window | None,
    *,
    file: str | None = None,
    span: Span = None,
    resolution: float | None = None,
    choose: Choose = None,
) -> Raster:
    """A window of a raster (None: all of it) with the bands that `choose` selects; ImageError when it cannot be read.

    Data bands that are not chosen are not decoded and do not count for validity, which combines the nodata value, an
    alpha band, a mask band and NaN. A palette is expanded to RGB. The raster stays open for the next window; a file
    that has changed is opened again. A failing store's error passes through. file, span: see `read_header`. resolution:
    metres a pixel; for a finer raster, window and pixels are those of a coarser grid (see `resample`), read from the
    coarsest overview that is fine enough, unless its nodata value or mask differs, as when set after it was made.
    """
    file = file or uri
    driver = driver_of(uri)
    with one_sentence(uri, file), borrow(file, driver=driver, span=span) as raster:
        header = raster.run(lambda: _header(uri, raster.source))
        chosen = chosen_bands(header, choose)
        scaling = scaling_of(header, resolution)
        if scaling is None:
            return raster.run(lambda: _read(raster.source, window, chosen))
        level = _overview(raster.source, scaling)
        if level is not None:
            with borrow(file, driver=driver, span=span, overview=level) as smaller:
                if _validity_of(smaller.source) == _validity_of(raster.source):
                    found = smaller.run(lambda: _read_scaled(smaller.source, window, scaling, chosen))
                    return replace(found, transform=header.transform)  # an overview has longer pixels
        return raster.run(lambda: _read_scaled(raster.source, window, scaling, chosen))


def scaling_of(header: Header, resolution: float | None) -> Scaling | None:
    """The Scaling of a raster to that many metres a pixel; None where it is hardly finer, or how fine is not known."""
    if resolution is None or header.resolution is None:
        return None
    return Scaling.of(header.height, header.width, resolution / header.resolution)


def read_bytes(
    uri: str, data: bytes, window: Window | None, *, resolution: float | None = None, choose: Choose = None
) -> Raster:
    """`read` of a raster whose bytes are in memory."""

    def read_any(source: rasterio.DatasetReader) -> Raster:
        header = _header(uri, source)
        scaling, chosen = scaling_of(header, resolution), chosen_bands(header, choose)
        return _read(source, window, chosen) if scaling is None else _read_scaled(source, window, scaling, chosen)

    return _in_memory(uri, data, read_any)


def header_of_bytes(uri: str, data: bytes) -> Header:
    """`read_header` of a raster whose bytes are in memory."""
    return _in_memory(uri, data, lambda source: _header(uri, source))


def driver_of(uri: str) -> str:
    """The GDAL driver that may open a raster, by its ending; a file with no such ending must be a TIFF."""
    return DRIVERS.get(ending(uri), "GTiff")


def _in_memory(uri: str, data: bytes, call: Callable[[rasterio.DatasetReader], Result]) -> Result:
    if not data:  # rasterio would take it for a file that is to be written
        raise ImageError(f"{uri} cannot be read: the file is empty")
    with MemoryFile(data) as memory, one_sentence(uri, memory.name), memory.open(driver=driver_of(uri)) as source:
        return call(source)


@contextmanager
def one_sentence(uri: str, file: str) -> Iterator[None]:
    """Whatever is wrong with a raster becomes an ImageError; a store's failure passes through.

    file: where its bytes are, for GDAL if they are in memory.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        of_store = isinstance(error, OSError) and not isinstance(error, (RasterioError, *FINAL_ERRORS))
        if of_store and not is_local(file):
            raise
        missing = isinstance(error, FileNotFoundError)
        raise ImageError(f"{uri} cannot be read: {'it does not exist' if missing else _reason(error, file)}") from error


def _reason(error: Exception, file: str) -> str:
    """GDAL's message without random names for what is stored or in memory, so that equal runs write equal reasons."""
    said = error.__cause__ if isinstance(error, RasterioError) else None
    text = re.sub(r"/vsiriopener_[0-9a-f]+/[0-9]+/", "", describe(said or error))
    if file.startswith("/vsimem/"):
        text = text.replace(file, "the member").replace(posixpath.basename(file), "the member")
    return text


def _header(uri: str, source: rasterio.DatasetReader) -> Header:
    check(uri, source)
    numbered, data = numbered_bands(source), data_bands(source)
    bands = {"bands": len(data), "alpha": len(numbered) - len(data)}
    if palette(source):
        bands = {"bands": 3}
    names = tuple(source.descriptions[index - 1] or "" for index in numbered)
    crs, transform = georeference(source)
    size = {"height": source.height, "width": source.width}
    place = {"crs": crs, "transform": transform, "resolution": metres(source)}
    return Header(**size, **bands, dtype=source.dtypes[0], names=names, **place)


def chosen_bands(header: Header, choose: Choose) -> tuple[int, ...]:
    """0-based numbers of the bands to read, in their order."""
    return choose(header) if choose else tuple(range(header.bands))


def _read(source: rasterio.DatasetReader, window: Window | None, chosen: tuple[int, ...]) -> Raster:
    window = window or Window(0, 0, source.height, source.width)
    part = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
    if colors := palette(source):
        pixels, valid = _pixels(source, part, data_bands(source))
        pixels = take_bands(expanded(pixels[0], colors), chosen)
    else:
        numbered, decoded = numbered_bands(source), sorted(set(chosen))
        pixels, valid = _pixels(source, part, [numbered[band] for band in decoded])
        pixels = take_bands(pixels, [decoded.index(band) for band in chosen])
    crs, transform = georeference(source)
    size = {"height": source.height, "width": source.width}
    return Raster(pixels=pixels, valid=valid, window=window, **size, crs=crs, transform=transform)


def _read_scaled(
    source: rasterio.DatasetReader, window: Window | None, scaling: Scaling, chosen: tuple[int, ...]
) -> Raster:
    """A window of a raster's coarse grid; `source` may be an overview, which covers the same area in fewer pixels.

    Made a few rows at a time, so that memory does not grow with how much finer the raster is. The transform is that of
    `source`.
    """
    size = {"height": scaling.to_height, "width": scaling.to_width}
    window = window or Window(0, 0, **size)
    here = replace(scaling, height=source.height, width=source.width)
    rows = max(1, int(SHRUNK_PIXELS / (here.factors[0] * here.source(window).width)))
    parts = []
    for top in range(0, window.height, rows):
        part = replace(window, row_off=window.row_off + top, height=min(rows, window.height - top))
        raster = _read(source, here.source(part), chosen)
        parts.append(here.shrink(raster.pixels, raster.valid, part))
    pixels, valid = (np.concatenate(arrays, axis=-2) for arrays in zip(*parts))
    return replace(raster, pixels=pixels, valid=valid, window=window, **size, scaling=scaling)


def _overview(source: rasterio.DatasetReader, scaling: Scaling) -> int | None:
    """The number of the coarsest overview that is at least as fine as the grid, None where there is none."""
    fine = [number for number, factor in enumerate(source.overviews(1)) if factor <= min(scaling.factors)]
    return fine[-1] if fine else None


def _validity_of(source: rasterio.DatasetReader) -> str:
    """What decides which pixels of a raster are valid, as text, in which NaN equals NaN."""
    return repr((source.nodatavals, source.mask_flag_enums))


def _pixels(source: rasterio.DatasetReader, part: RasterioWindow, bands: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) pixels of those bands, palettes not expanded, and (h, w) validity.

    A requested band is data, even if it is marked as alpha. Every block is decoded once: GDAL's own masks of alpha and
    nodata would decode it again.
    """
    alpha = [band for band in alpha_bands(source) if band not in bands][-1:]
    valid = np.ones((part.height, part.width), bool)
    if any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums):
        valid = source.dataset_mask(window=part) != 0
        if not valid.any():
            return np.zeros((len(bands), *valid.shape), source.dtypes[0]), valid
    pixels = _blocks(source, [*bands, *alpha], part)
    if alpha:
        valid &= pixels[-1] != 0
        pixels = pixels[:-1]
    _drop_nodata(valid, pixels, [source.nodatavals[index - 1] for index in bands])
    return pixels, valid


def _blocks(source: rasterio.DatasetReader, bands: list[int], part: RasterioWindow) -> np.ndarray:
    """(C, h, w) of the bands, read in stripes of whole rows of blocks, each of which GDAL fetches in one call."""
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
    """Set `valid` False where all bands have their nodata value, or one has a nodata value outside 0..255, NaN or inf.

    0 or 255 in one band may be part of a colour; -9999 or 65535 cannot.
    """
    if all(value is not None and 0 <= value <= 255 for value in nodata):
        seen = pixels[0] != nodata[0]
        for band, value in zip(pixels[1:], nodata[1:]):
            seen |= band != value
        valid &= seen
    for band, value in zip(pixels, nodata):
        if value is not None and not 0 <= value <= 255:
            valid &= band != value
    if pixels.dtype.kind == "f":
        for band in pixels:
            valid &= np.isfinite(band)
