"""PNG, JPEG, WebP and BMP pictures: decoded whole, and shown to the network as viewers show them to people."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image

from segray.archives.ranges import read_range, unreadable_told
from segray.archives.raster import Header, Raster
from segray.errors import ImageError
from segray.grid import Window
from segray.masks import PNG_SIGNATURE
from segray.storage import read_bytes
from segray.store_errors import describe, reason_of

Source, Result = TypeVar("Source"), TypeVar("Result")
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # nothing else is tried, whatever a file's content says
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
PACKED_GREY = {2: 85, 4: 17}  # Pillow stretches 2 and 4 bit grey to 0..255: 1 of 4 bits arrives as 17
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
HEADER_BYTES = 2**16  # fetched for a header
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def read_header(uri: str) -> Header:
    """Size and bands from a picture's first bytes; ImageError when it is not one. A store's error passes through."""
    head = read_range(uri, 0, HEADER_BYTES)
    if not head:
        raise ImageError(f"{uri} cannot be read: the file is empty")
    try:
        return header_of(io.BytesIO(head))
    except BROKEN:  # what comes before the size may be long: a colour profile, a preview
        data = head if len(head) < HEADER_BYTES else _whole(uri)
        return of_bytes(uri, header_of, io.BytesIO(data))


def header_of(file: IO[bytes]) -> Header:
    """Size and bands of an open picture; one of `BROKEN` when it is not one."""
    with _open(file) as picture:
        width, height = picture.size
        if _orientation(picture) in SIDEWAYS:
            height, width = width, height
        grey = picture.mode in ("1", "L", "LA", "F", *SIXTEEN_BIT)
        dtype = "uint16" if picture.mode in SIXTEEN_BIT else "float32" if picture.mode == "F" else "uint8"
        return Header(height=height, width=width, bands=1 if grey else 3, dtype=dtype)


def read(uri: str) -> Raster:
    """A picture upright (EXIF), grey as one band, palette / CMYK / YCbCr as RGB, alpha 0 as no data.

    ImageError when it is missing, damaged, truncated, or larger than Pillow's limit against decompression bombs.
    """
    return of_bytes(uri, decode, _whole(uri))


def of_bytes(uri: str, call: Callable[[Source], Result], data: Source) -> Result:
    """The result of `decode` or `header_of` on a picture's content; ImageError, naming the URI, when it is not one."""
    try:
        return call(data)
    except BROKEN as error:
        raise ImageError(f"{uri} cannot be read: {reason(error)}") from error


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) of a picture from its bytes, without decoding it; one of `BROKEN` when they are not a picture."""
    with _open(io.BytesIO(data)) as picture:
        return picture.height, picture.width


def decode(data: bytes) -> Raster:
    """The Raster of a picture's bytes; one of `BROKEN` when they are not a picture."""
    if not data:
        raise ValueError("the file is empty")
    with _open(io.BytesIO(data)) as picture:
        method = UPRIGHT.get(_orientation(picture))
        picture.load()
        pixels, valid = _arrays(picture if method is None else picture.transpose(method))
    height, width = valid.shape
    return Raster(pixels=pixels, valid=valid, window=Window(0, 0, height, width), height=height, width=width)


def _whole(uri: str) -> bytes:
    with unreadable_told(uri):
        return read_bytes(uri)


def _open(file: IO[bytes]) -> Image.Image:
    head = file.read(26)
    file.seek(0)
    # Bytes 24 and 25 of a PNG are its bit depth and colour type, 0 = grey (PNG specification, section 11.2.1).
    if head.startswith(PNG_SIGNATURE) and head[24:25] == b"\x10" and head[25:] != b"\0":
        raise ValueError(
            "it holds 16-bit colours or grey with alpha, of which Pillow reads only 8 bits; store it as GeoTIFF"
        )
    # Pillow warns at half the size that it refuses; only the refusal counts. Never reset: threads share the filters.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    picture = Image.open(file, formats=FORMATS)
    if picture.format == "PNG" and picture.mode == "L" and "transparency" in picture.info:
        picture.info["transparency"] *= PACKED_GREY.get(head[24], 1)  # Pillow leaves it as stored
    return picture


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 where it is missing or unreadable: viewers then show the picture as stored.

    To be called before the pixels are decoded. Pillow's own exif_transpose fails on what some cameras write.
    """
    try:
        # Pillow's own getexif of PNGs would decode the whole picture to look for an orientation after its pixels
        return Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except (*BROKEN, TypeError, AttributeError, KeyError):
        return 1


def _arrays(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) pixels and (h, w) validity."""
    if picture.mode in SIXTEEN_BIT:
        values = np.asarray(picture).astype(np.uint16)
        return values[None], values != picture.info.get("transparency", -1)
    if picture.mode == "F":
        values = np.asarray(picture)
        return values[None], np.isfinite(values)
    alpha = picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info
    grey = picture.mode in ("1", "L", "LA")
    if alpha:
        values = np.asarray(picture.convert("RGBA")).transpose(2, 0, 1)
        return np.ascontiguousarray(values[:1] if grey else values[:3]), values[3] > 0
    mode = "L" if grey else "RGB"
    values = np.asarray(picture if picture.mode == mode else picture.convert(mode))  # convert always copies
    pixels = values[None] if grey else np.ascontiguousarray(values.transpose(2, 0, 1))
    return pixels, np.ones(pixels.shape[1:], bool)


def reason(error: BaseException) -> str:
    """What is wrong with a picture, as part of a sentence."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is no PNG, JPEG, WebP or BMP picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"{describe(error)}; store pictures of that size as tiled GeoTIFF"
    return reason_of(error)
