"""Reading one image, whole or by window, with its validity and georeference resolved once, here."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial

import numpy as np

from segray.archives import mosaic, pictures, rasters
from segray.archives.entries import IMAGES, too_large
from segray.archives.levels import is_level
from segray.archives.members import holder
from segray.archives.raster import Choose, Header, Raster, take_bands
from segray.errors import ImageError
from segray.grid import Window
from segray.inputs import InputSpec, check_pixels
from segray.uris import ending

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes; + is BigTIFF


def is_image(uri: str) -> bool:
    """Whether the ending of a URI is that of an image format that segray reads."""
    return ending(uri) in IMAGES


def is_picture(uri: str) -> bool:
    """Whether an image can only be decoded whole (PNG, JPEG), not by window (TIFF)."""
    return ending(uri) in pictures.ENDINGS


def read_header(uri: str, *, part: str = "") -> Header:
    """Size, bands, type and georeference of an image; ImageError when it is not one.

    part: where a member lies in its container, as listed (`File.part`).
    """
    if is_level(uri):
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


def is_unpacked(uri: str, part: str) -> bool:
    """Whether reading just the header takes all of an image's bytes: a member that cannot be read in place."""
    if not part or is_level(uri):
        return False
    return not (ending(uri) in rasters.ENDINGS and holder(uri)[0].span(part))


def read_image(
    uri: str,
    *,
    part: str = "",
    window: Window | None = None,
    resolution: float | None = None,
    choose: Choose = None,
) -> Raster:
    """An image with the bands that `choose` selects (alpha not selected becomes validity); ImageError on failure.

    part: see `read_header`. window: the part that is needed; a picture is returned whole all the same. resolution:
    metres a pixel, to which finer rasters are resampled (see `rasters.read`).
    """
    if is_level(uri):
        return _of_bands(mosaic.read(uri, part, window), choose)
    options = {"resolution": resolution, "choose": choose}
    if not part:
        return _of_bands(pictures.read(uri), choose) if is_picture(uri) else rasters.read(uri, window, **options)
    container, file = holder(uri)
    if ending(uri) in rasters.ENDINGS and (span := container.span(part)):
        return rasters.read(uri, window, file=file, span=span, **options)
    data = container.read(file, part)
    if _is_raster(uri, data):
        if window is None:  # a row of a table, whose size has not been checked yet
            _check_size(uri, rasters.header_of_bytes(uri, data))
        return rasters.read_bytes(uri, data, window, **options)
    return _of_bands(pictures.of_bytes(uri, pictures.decode, data), choose)


def read_for(
    uri: str, spec: InputSpec, *, part: str = "", window: Window | None = None, explicit_bands: bool = False
) -> Raster:
    """The pixels of an image (or a window of it) as a model's input spec wants them: its bands, in its order.

    For a model of three bands, 8-bit grey becomes RGB. MismatchError when the image does not fit the spec, ImageError
    when it cannot be read. part, window: see `read_image`; the window is on the grid of the spec's
    resolution.
    """
    choose = partial(bands_for, spec, explicit_bands=explicit_bands, source=uri)
    return read_image(uri, part=part, window=window, resolution=spec.resolution, choose=choose)


def bands_for(spec: InputSpec, header: Header, *, explicit_bands: bool, source: str) -> tuple[int, ...]:
    """The bands of the input spec, in its order, in an image with that header.

    For a model of three bands, 8-bit grey is its one band three times, as viewers show it. MismatchError, naming
    `source`, when band count or type do not fit the spec.
    """
    spec = spec.for_bands(header.names, source)
    grey = header.bands == 1 and header.dtype == "uint8" and max(spec.bands) == 2
    bands = {"bands": 3} if grey else {"bands": header.bands, "alpha": header.alpha}
    check_pixels(spec, **bands, dtype=np.dtype(header.dtype), explicit_bands=explicit_bands, source=source)
    return (0,) * len(spec.bands) if grey else spec.bands


def _of_bands(raster: Raster, choose: Choose) -> Raster:
    """The chosen bands of an image that was decoded with all of them; bands of pictures have no names."""
    if choose is None:
        return raster
    count, height, width = raster.pixels.shape
    header = Header(height=height, width=width, bands=count, dtype=str(raster.pixels.dtype))
    return replace(raster, pixels=take_bands(raster.pixels, choose(header)))


def _check_size(uri: str, header: Header) -> None:
    """ImageError when a raster takes more bytes than may be held in memory."""
    size = header.bands * header.height * header.width * np.dtype(header.dtype).itemsize
    if error := too_large(size):
        raise ImageError(f"{uri} cannot be read: {error}")


def _is_raster(uri: str, data: bytes) -> bool:
    """Whether bytes are a TIFF, or of an image with a raster's ending; rows of tables have no ending."""
    return data[:4] in TIFF or ending(uri) in rasters.ENDINGS
