"""Reading one image, whole or by window, with its validity and georeference resolved once, here."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np

from segray.archives import mosaic, pictures, rasters
from segray.archives.members import holder
from segray.archives.raster import Header, Raster
from segray.grid import Window
from segray.inputs import InputSpec, check_pixels
from segray.storage import ending

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how they begin; + is BigTIFF


def is_image(uri: str) -> bool:
    """Whether the ending of a URI is that of an image format that segray reads."""
    return ending(uri) in pictures.ENDINGS | rasters.ENDINGS


def is_picture(uri: str) -> bool:
    """Whether an image can only be decoded whole (PNG, JPEG), not by window (TIFF)."""
    return ending(uri) in pictures.ENDINGS


def read_header(uri: str, *, part: str = "") -> Header:
    """Size, bands, type and georeference of an image, from its first bytes; ImageError when it is none.

    part: where a member of an archive lies, as its listing says.
    """
    if mosaic.is_level(uri):
        return mosaic.header(uri, part)
    if not part:
        return pictures.read_header(uri) if is_picture(uri) else rasters.read_header(uri)
    container, file = holder(uri)
    if ending(uri) in rasters.ENDINGS and (span := container.span(part)):
        return rasters.read_header(uri, file=file, span=span)
    data = container.read(file, part)
    if _is_raster(uri, data):
        return rasters.header_of_bytes(uri, data)
    return pictures.of_bytes(uri, pictures.header_of, io.BytesIO(data))


def read_image(uri: str, *, part: str = "", window: Window | None = None, resolution: float | None = None) -> Raster:
    """An image with all its bands (alpha is validity, never a band); ImageError when it cannot be read.

    part: see `read_header`. window: what is needed of it; a picture comes whole all the same. resolution: metres a
    pixel, to which rasters that are finer are resampled (see `rasters.read`).
    """
    if mosaic.is_level(uri):
        return mosaic.read(uri, part, window)
    if not part:
        return pictures.read(uri) if is_picture(uri) else rasters.read(uri, window, resolution=resolution)
    container, file = holder(uri)
    if ending(uri) in rasters.ENDINGS and (span := container.span(part)):
        return rasters.read(uri, window, file=file, span=span, resolution=resolution)
    data = container.read(file, part)
    if _is_raster(uri, data):
        return rasters.read_bytes(uri, data, window, resolution=resolution)
    return pictures.of_bytes(uri, pictures.decode, data)


def read_for(
    uri: str, spec: InputSpec, *, part: str = "", window: Window | None = None, explicit_bands: bool = False
) -> Raster:
    """The pixels of an image (or a window of it) as a model's input spec wants them: its bands, in its order.

    A model of three bands takes 8-bit grey as viewers show it. MismatchError when the image does not fit the spec,
    ImageError when it cannot be read. part, window: see `read_image`; the window is on the grid of the spec's
    resolution.
    """
    raster = read_image(uri, part=part, window=window, resolution=spec.resolution)
    spec = spec.for_bands(raster.names, uri)
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


def _is_raster(uri: str, data: bytes) -> bool:
    """Whether bytes are a TIFF, or of an image that is named as a raster: members of tables have no ending."""
    return data[:4] in TIFF or ending(uri) in rasters.ENDINGS
