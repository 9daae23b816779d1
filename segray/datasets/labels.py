"""Label files as they were stored: ids or colours, never resized, never converted, never lossy."""

from __future__ import annotations

import io
import posixpath
import warnings
from dataclasses import dataclass

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from segray.archives.pictures import BROKEN
from segray.errors import ImageError, LabelError
from segray.storage import describe, read_bytes

PICTURES, RASTERS = {".png", ".bmp"}, {".tif", ".tiff"}
ENDINGS = PICTURES | RASTERS
LOSSY_ENDINGS = {".jpg", ".jpeg", ".webp", ".jp2"}
MAX_PIXELS = 2**30  # a label file is decoded whole
PACKED_GREY = {2: 85, 4: 17}  # Pillow stretches 2 and 4 bit grey to 0..255: id 1 of 4 arrives as 85


@dataclass(frozen=True, kw_only=True)
class Labels:
    """values: (H, W) integer ids or (H, W, 3) uint8 colours. labelled: (H, W) bool, False where transparent / no data.

    nodata: the id that the file itself declares to mean "no data", or None.
    """

    values: np.ndarray
    labelled: np.ndarray
    nodata: float | None = None


def read_labels(uri: str) -> Labels:
    """The ids or colours of a PNG, BMP or TIFF label file; a palette's indices are ids.

    LabelError when the format is lossy or holds no whole numbers, ImageError when the file cannot be read.
    """
    check_lossless(uri)
    ending = posixpath.splitext(uri)[1].lower()
    if ending not in ENDINGS:
        raise LabelError(f"{uri} is no label file; masks are PNG, BMP or TIFF")
    try:
        data = read_bytes(uri)
        return _picture(uri, data) if ending in PICTURES else _raster(uri, data)
    except FileNotFoundError as error:
        raise ImageError(f"{uri} does not exist") from error
    except (*BROKEN, RasterioError) as error:
        raise ImageError(f"{uri} cannot be read: {describe(error)}") from error


def check_lossless(uri: str) -> None:
    """LabelError when the ending is that of a format whose compression changes ids."""
    ending = posixpath.splitext(uri)[1].lower()
    if ending in LOSSY_ENDINGS:
        raise LabelError(f"{uri} is a mask in a lossy format, whose compression changes ids; save masks as PNG or TIFF")


def _picture(uri: str, data: bytes) -> Labels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(data), formats=("PNG", "BMP"))
    # Bytes 24 and 25 of a PNG are its bit depth and colour type (PNG specification, section 11.2.1).
    depth, kind = (data[24], data[25]) if picture.format == "PNG" else (8, None)
    if depth == 16 and kind != 0:
        raise LabelError(f"{uri} holds 16-bit colours; masks are single-channel ids or 8-bit colours of the legend")
    mode, values = picture.mode, np.asarray(picture)
    if mode not in ("1", "L", "P", "I", "I;16", "I;16B", "RGB", "RGBA", "LA", "PA"):
        raise LabelError(f"{uri} is stored as {mode}; masks are single-channel ids or RGB colours of the legend")
    if kind == 0 and depth in PACKED_GREY:
        values = values // PACKED_GREY[depth]
    if mode == "1":
        values = values.astype(np.uint8)
    return _split_alpha(uri, values) if mode in ("RGBA", "LA", "PA") else _labels(values)


def _raster(uri: str, data: bytes) -> Labels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.MemoryFile(data) as file, file.open(driver="GTiff") as source:
            if source.width * source.height > MAX_PIXELS:
                raise LabelError(f"{uri} has more than {MAX_PIXELS} pixels; cut it and its image into scenes")
            if "jpeg" in str(source.profile.get("compress", "")).lower():
                raise LabelError(f"{uri} is compressed as JPEG, which changes ids; save masks with LZW or DEFLATE")
            values, nodata = source.read(), source.nodata
            alpha = ColorInterp.alpha in source.colorinterp
    if values.dtype.kind not in "iu" or values.shape[0] - alpha not in (1, 3):
        raise LabelError(
            f"{uri} holds {values.shape[0]} bands of {values.dtype}; masks are one band of whole-number ids or three "
            f"8-bit bands of colours"
        )
    values = values[0] if values.shape[0] == 1 else values.transpose(1, 2, 0)
    if values.ndim == 3 and values.dtype != np.uint8:
        raise LabelError(f"{uri} holds colours of {values.dtype}; colours of the legend are 8-bit")
    labels = _split_alpha(uri, values) if alpha else _labels(values)
    return Labels(values=labels.values, labelled=labels.labelled, nodata=nodata if values.ndim == 2 else None)


def _labels(values: np.ndarray) -> Labels:
    return Labels(values=values, labelled=np.ones(values.shape[:2], bool))


def _split_alpha(uri: str, values: np.ndarray) -> Labels:
    """Ids or colours (H, W, 1 or 3 bands, then alpha): transparent is unlabelled, half transparent is a blend."""
    alpha, bands = values[..., -1], values[..., :-1]
    if ((alpha > 0) & (alpha < 255)).any():
        raise LabelError(f"{uri} is half transparent in places, so its colours are blends; save it without smoothing")
    return Labels(values=bands[..., 0] if bands.shape[-1] == 1 else bands, labelled=alpha == 255)
