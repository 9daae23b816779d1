"""A whole image at a low resolution, to be looked at; only where that costs little."""

from __future__ import annotations

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # some damage is raised as it is, not as one of rasterio.errors
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from segray.archives import rasters
from segray.archives.images import is_picture, read_header, read_image
from segray.archives.metadata import data_bands, palette
from segray.archives.opened import borrow
from segray.errors import ImageError
from segray.storage import describe

WHOLE_PIXELS = 2**24  # of what is read whole: a picture, a member of a container, a level of a tile set
RASTER_PIXELS = 2**25  # of a raster, or of the overview that stands for it: some seconds


def read_reduced(uri: str, *, longest: int, part: str = "") -> tuple[np.ndarray, np.ndarray] | None:
    """((C, h, w) pixels of the source's type, (h, w) validity), at most `longest` pixels a side; None where it is dear.

    GDAL reads a raster from the overview that is just finer; dear is a large one without. A pixel is the mean of those
    that it stands for. part: see `read_header`. ImageError when the image cannot be read.
    """
    if part or is_picture(uri):
        header = read_header(uri, part=part)
        if header.height * header.width > WHOLE_PIXELS:
            return None
        raster = read_image(uri, part=part)
        factor = -(-max(header.height, header.width) // longest)
        return means(raster.pixels, factor), raster.valid[::factor, ::factor]
    try:
        with borrow(uri, driver=rasters.driver_of(uri)) as raster:
            return raster.run(lambda: _read(raster.source, longest))
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        raise ImageError(f"{uri} cannot be read: {describe(error.__cause__ or error)}") from error


def means(pixels_CHW: np.ndarray, factor: int) -> np.ndarray:
    """(C, ceil(H / factor), ceil(W / factor)) of the same type: the mean of each factor x factor square."""
    if factor == 1:
        return pixels_CHW
    rows = [np.arange(0, size, factor) for size in pixels_CHW.shape[1:]]
    sums = np.add.reduceat(pixels_CHW, rows[0], axis=1, dtype=np.float64)
    sums = np.add.reduceat(sums, rows[1], axis=2)
    counts = [np.diff(np.append(starts, size)) for starts, size in zip(rows, pixels_CHW.shape[1:])]
    return (sums / np.multiply.outer(*counts)).astype(pixels_CHW.dtype)


def _read(source: rasterio.DatasetReader, longest: int) -> tuple[np.ndarray, np.ndarray] | None:
    scale = max(1.0, max(source.height, source.width) / longest)
    finer = [factor for factor in source.overviews(1) if factor <= scale]
    if source.height * source.width / max(finer, default=1) ** 2 > RASTER_PIXELS:
        return None
    shape = tuple(max(1, round(size / scale)) for size in (source.height, source.width))
    bands, colors = data_bands(source), palette(source)
    resampling = Resampling.nearest if colors else Resampling.average
    pixels = source.read(bands, out_shape=(len(bands), *shape), resampling=resampling)
    valid = source.dataset_mask(out_shape=shape) != 0
    if colors:
        table = np.zeros((256, 3), np.uint8)
        table[list(colors)] = [color[:3] for color in colors.values()]
        pixels = table[pixels[0]].transpose(2, 0, 1)
    return pixels, valid
