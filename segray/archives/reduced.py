"""A whole image at a low resolution, to be looked at; only where that is cheap."""

from __future__ import annotations

import numpy as np
import rasterio
from rasterio.enums import Resampling

from segray.archives import rasters
from segray.archives.images import is_picture, read_header, read_image
from segray.archives.metadata import expanded, numbered_bands, palette
from segray.archives.opened import borrow
from segray.archives.raster import Choose, take_bands

WHOLE_PIXELS = 2**24  # of what is read whole: a picture, a member of a container, a level of a tile set
RASTER_PIXELS = 2**25  # of a raster, or of the overview read in its place; takes some seconds


def read_reduced(
    uri: str, *, longest: int, part: str = "", choose: Choose = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """((C, h, w) pixels of the source's type, (h, w) validity), at most `longest` pixels a side; None where costly.

    GDAL reads a raster from the overview that is just fine enough; a large raster without one is costly. A pixel is the
    mean of those that it covers, in a raster with a palette one of them. Only the bands that `choose` selects are read.
    part: see `read_header`. ImageError when the image cannot be read; a failing store's error passes through.
    """
    header = read_header(uri, part=part)
    if part or is_picture(uri):
        if header.height * header.width > WHOLE_PIXELS:
            return None
        raster = read_image(uri, part=part, choose=choose)
        factor = -(-max(header.height, header.width) // longest)
        return means(raster.pixels, factor), raster.valid[::factor, ::factor]
    with rasters.one_sentence(uri, uri), borrow(uri, driver=rasters.driver_of(uri)) as raster:
        chosen = rasters.chosen_bands(header, choose)
        return raster.run(lambda: _read(raster.source, longest, chosen))


def means(pixels_CHW: np.ndarray, factor: int) -> np.ndarray:
    """(C, ceil(H / factor), ceil(W / factor)) of the same type: the mean of each factor x factor square."""
    if factor == 1:
        return pixels_CHW
    rows = [np.arange(0, size, factor) for size in pixels_CHW.shape[1:]]
    sums = np.add.reduceat(pixels_CHW, rows[0], axis=1, dtype=np.float64)
    sums = np.add.reduceat(sums, rows[1], axis=2)
    counts = [np.diff(np.append(starts, size)) for starts, size in zip(rows, pixels_CHW.shape[1:])]
    return (sums / np.multiply.outer(*counts)).astype(pixels_CHW.dtype)


def _read(
    source: rasterio.DatasetReader, longest: int, chosen: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    scale = max(1.0, max(source.height, source.width) / longest)
    finer = [factor for factor in source.overviews(1) if factor <= scale]
    if source.height * source.width / max(finer, default=1) ** 2 > RASTER_PIXELS:
        return None
    shape = tuple(max(1, round(size / scale)) for size in (source.height, source.width))
    numbered, valid = numbered_bands(source), source.dataset_mask(out_shape=shape) != 0
    if colors := palette(source):
        indices = source.read(numbered[0], out_shape=shape, resampling=Resampling.nearest)
        return take_bands(expanded(indices, colors), chosen), valid
    bands = [numbered[band] for band in chosen]
    return source.read(bands, out_shape=(len(bands), *shape), resampling=Resampling.average), valid
