"""The records that reading an image returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segray.grid import Affine6, Window
from segray.resample import Scaling


def take_bands(pixels_CHW: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    """Those bands in that order; without a copy where they are all bands in order, or the only one repeated."""
    count = len(pixels_CHW)
    if tuple(bands) == tuple(range(count)):
        return pixels_CHW
    if count == 1:
        return np.broadcast_to(pixels_CHW, (len(bands), *pixels_CHW.shape[1:]))
    return pixels_CHW[list(bands)]


@dataclass(frozen=True, kw_only=True)
class Header:
    """An image's size in pixels, number of data bands (alpha is not one), type and georeference.

    resolution: metres a pixel at its centre, None where that is not known. alpha: how many bands after the data bands
    are marked as alpha. names: of the data bands and then of those marked as alpha, as the image has them.
    """

    height: int
    width: int
    bands: int
    dtype: str
    crs: str | None = None
    transform: Affine6 | None = None
    resolution: float | None = None
    alpha: int = 0
    names: tuple[str, ...] = ()


# Which bands of an image to read, in which order: data bands, and those after them that are marked as alpha. None: all
# data bands.
Choose = Callable[[Header], tuple[int, ...]] | None


@dataclass(frozen=True, kw_only=True)
class Raster:
    """Pixels of an image, or of a window of it.

    pixels: (C, h, w) of the source's type. valid: (h, w) bool, True where the source has data. window: where they lie
    in the image. height, width: of the whole image; of its coarse grid if it was resampled. crs: an authority code or
    WKT, or None. transform: the affine of the WHOLE image as stored, as (a, b, c, d, e, f), x = a * column + b * row +
    c and y = d * column + e * row + f, or None. scaling: from the image to its coarse grid, if it was resampled.
    """

    pixels: np.ndarray
    valid: np.ndarray
    window: Window
    height: int
    width: int
    crs: str | None = None
    transform: Affine6 | None = None
    scaling: Scaling | None = None
