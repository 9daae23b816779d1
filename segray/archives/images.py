"""Reading one image, whole or by window, with its validity and georeference resolved once, here."""

from __future__ import annotations

import posixpath
from dataclasses import replace

import numpy as np

from segray.archives import pictures, rasters
from segray.archives.raster import Header, Raster
from segray.grid import Window
from segray.inputs import InputSpec, check_pixels
from segray.storage import is_chain


def is_image(uri: str) -> bool:
    """Whether the ending of a URI is that of an image format that segray reads."""
    return ending(uri) in pictures.ENDINGS | rasters.ENDINGS


def is_picture(uri: str) -> bool:
    """Whether an image can only be decoded whole (PNG, JPEG), not by window (TIFF)."""
    return ending(uri) in pictures.ENDINGS


def read_header(uri: str) -> Header:
    """Size, bands, type and georeference of an image, from its first bytes; ImageError when it is none."""
    return pictures.read_header(uri) if is_picture(uri) else rasters.read_header(uri)


def read_image(uri: str) -> Raster:
    """A whole image with all its bands (alpha is validity, never a band); ImageError when it cannot be read."""
    return pictures.read(uri) if is_picture(uri) else rasters.read(uri, None)


def read_for(uri: str, spec: InputSpec, *, window: Window | None = None, explicit_bands: bool = False) -> Raster:
    """The pixels of an image (or a window of it) as a model's input spec wants them: its bands, in its order.

    A model of three bands takes 8-bit grey as viewers show it. MismatchError when the image does not fit the spec,
    ImageError when it cannot be read.
    """
    raster = pictures.read(uri) if is_picture(uri) else rasters.read(uri, window)
    return replace(raster, pixels=bands_for(raster.pixels, spec, explicit_bands=explicit_bands, source=uri))


def bands_for(pixels_CHW: np.ndarray, spec: InputSpec, *, explicit_bands: bool, source: str) -> np.ndarray:
    """The bands of the input spec, in its order; 8-bit grey becomes three bands as viewers show it.

    MismatchError, naming `source`, when band count or type do not fit the spec.
    """
    if pixels_CHW.shape[0] == 1 and pixels_CHW.dtype == np.uint8 and max(spec.bands) == 2:
        pixels_CHW = np.broadcast_to(pixels_CHW, (3, *pixels_CHW.shape[1:]))
    bands, dtype = pixels_CHW.shape[0], pixels_CHW.dtype
    check_pixels(spec, bands=bands, dtype=dtype, explicit_bands=explicit_bands, source=source)
    return pixels_CHW if spec.bands == tuple(range(bands)) else pixels_CHW[list(spec.bands)]


def ending(uri: str) -> str:
    """The ending of an image's name in lower case, as in .tif; of the first name in a chained URI."""
    name = uri.split("::", maxsplit=1)[0] if "::" in uri and is_chain(uri) else uri
    return posixpath.splitext(name)[1].lower()
