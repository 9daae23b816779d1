"""Label files as they were stored: ids or colours, never resized, never converted, never lossy."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio._err import CPLE_BaseError  # some damage raises this, not one of rasterio.errors
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from segray.archives.opened import borrow
from segray.archives.pictures import BROKEN, PACKED_GREY
from segray.errors import ImageError, LabelError
from segray.grid import Window
from segray.masks import IGNORE, Classes, colors_to_mask, ids_to_mask
from segray.storage import exists, read_bytes
from segray.store_errors import FINAL_ERRORS, describe
from segray.uris import ending, is_local

PICTURES, RASTERS = {".png", ".bmp"}, {".tif", ".tiff"}
ENDINGS = PICTURES | RASTERS
LOSSY_ENDINGS = {".jpg", ".jpeg", ".webp", ".jp2"}
MAX_PIXELS = 2**30  # of a raster, or the window of it that is read at once
BLACK = (0, 0, 0)
Color = tuple[int, int, int]
Legend = Mapping[int, Collection[Color]]  # id in a file -> its colours


@dataclass(frozen=True, kw_only=True)
class Labels:
    """values: (H, W) integer ids or (H, W, 3) uint8 colours. labelled: (H, W) bool, False where transparent or masked.

    nodata: the ids, or the colours, that the file itself declares to be no data or transparent. palette: the colours
    that the file shows for ids, from 0 on; empty where it has none.
    """

    values: np.ndarray
    labelled: np.ndarray
    nodata: tuple[float | Color, ...] = ()
    palette: tuple[Color, ...] = ()


def is_label(uri: str) -> bool:
    """Whether the ending is that of a label file; LabelError when it is that of a lossy format."""
    if ending(uri) in LOSSY_ENDINGS:
        raise LabelError(f"{uri} is a mask in a lossy format, whose compression changes ids; save masks as PNG or TIFF")
    return ending(uri) in ENDINGS


def read_labels(uri: str, *, window: Window | None = None, size: tuple[int, int] | None = None) -> Labels:
    """The ids or colours of a PNG, BMP or TIFF label file, or of a window of it; a palette's indices are ids.

    size: (height, width) that the file must have. LabelError when it has another, the format is lossy or the values are
    not whole numbers; ImageError when the file cannot be read; errors of a failing store are passed on. Of a TIFF only
    the blocks of the window are fetched.
    """
    if not is_label(uri):
        raise LabelError(f"{uri} is not a label file; masks are PNG, BMP or TIFF")
    try:
        picture = ending(uri) in PICTURES
        if not picture and (window is not None or _has_sidecar(uri)):
            with borrow(uri, driver="GTiff") as raster:
                return raster.run(lambda: _raster(uri, raster.source, window, size))
        data = read_bytes(uri)  # a small file takes one request
    except FileNotFoundError as error:
        raise ImageError(f"{uri} does not exist") from error
    except (RasterioError, CPLE_BaseError, *FINAL_ERRORS) as error:  # a store's other errors are not the file's fault
        raise ImageError(f"{uri} cannot be read: {describe(error)}") from error
    try:
        if not picture:
            return _whole_raster(uri, data, size)
        labels = _picture(uri, data)
    except (*BROKEN, RasterioError, CPLE_BaseError) as error:
        reason = "its content is no PNG or BMP" if isinstance(error, UnidentifiedImageError) else describe(error)
        raise ImageError(f"{uri} cannot be read: {reason}") from error
    _check_size(uri, labels.values.shape, size)
    return labels if window is None else _part(labels, window)


def decode(labels: Labels, classes: Classes, *, source: str) -> np.ndarray:
    """(H, W) uint8 mask of labels, 255 = ignore; LabelError, naming `source`, on what the legend does not allow."""
    labelled, of_ids = labels.labelled, labels.values.ndim == 2
    for value in labels.nodata:
        known = range(len(classes)) if of_ids else classes.colors
        if value in known:
            what, name = "id" if of_ids else "colour", classes.names[known.index(value)]
            raise LabelError(
                f"{source} declares {_value(value)} as its no-data value, but that is the {what} of the class "
                f"'{name}'; unset it, save a PNG without transparency, or use another {what}"
            )
        differs = labels.values != value
        labelled = labelled & (differs if of_ids else differs.any(axis=-1))
    legend = {number: (color,) for number, color in enumerate(classes.colors)}
    legend[classes.ignore_index] = classes.ignore_colors
    check_palette(replace(labels, labelled=labelled), legend, ignore_index=classes.ignore_index, source=source)
    convert = ids_to_mask if of_ids else colors_to_mask
    if labelled.all():  # the copies below take as long as the rest
        return convert(labels.values, classes, source=source)
    mask = np.full(labelled.shape, IGNORE, np.uint8)
    mask[labelled] = convert(labels.values[labelled], classes, source=source)
    return mask


def _value(nodata: float | Color) -> str:
    return " ".join(f"{part:g}" for part in (nodata if isinstance(nodata, tuple) else (nodata,)))


def check_palette(labels: Labels, legend: Legend, *, ignore_index: int, source: str) -> None:
    """LabelError, naming `source`, if a colour of the palette means another id than its index.

    Programs that make PNGs smaller, or save RGB as indexed, put palettes in an order of their own.
    """
    if not labels.palette:
        return
    shown = {index: labels.palette[index] for index in _used(labels) if index < len(labels.palette)}
    for index, meant in _meant(labels.palette, shown, legend).items():
        if index not in meant and (index, shown[index]) != (ignore_index, BLACK):  # often left unset
            raise LabelError(
                f"{source} has a palette that contradicts its ids: {index} is shown as {shown[index]}, which means "
                f"{meant[0]}; save it as 8-bit grey whose values are the ids, or as RGB in the legend's colours"
            )


def size_error(mask: str, *, have: tuple[int, ...], want: tuple[int, ...], image: str = "") -> str:
    """The error text for a mask whose (height, width) differs from its image's."""
    image = f"its image {image}".rstrip()
    hint = "masks are never resized"
    if have == want[::-1]:
        hint = "the image's EXIF orientation turns it, so draw the mask on the turned image or remove that tag"
    sizes = f"{have[0]} x {have[1]} pixels (height x width), but {image} has {want[0]} x {want[1]}"
    return f"{mask} has {sizes}; {hint}"


def _picture(uri: str, data: bytes) -> Labels:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # for good, since threads share the filters
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
    labels = _split_alpha(uri, values) if mode in ("RGBA", "LA", "PA") else _labels(values)
    flat = picture.getpalette() if mode == "P" else []
    labels = replace(labels, palette=tuple(zip(flat[::3], flat[1::3], flat[2::3])))
    clear = picture.info.get("transparency")
    if mode == "1" and clear is not None:
        clear = int(clear > 0)  # Pillow stretches this, too
    return replace(labels, nodata=_transparent(labels, clear))


def _transparent(labels: Labels, chunk: int | bytes | tuple | None) -> tuple[float | Color, ...]:
    """The ids, or the colour, that occur in a picture and that its tRNS chunk makes transparent."""
    if chunk is None:
        return ()
    if isinstance(chunk, bytes):
        return tuple(index for index in _used(labels) if index < len(chunk) and not chunk[index])
    same = labels.values == chunk
    return (chunk,) if (same if labels.values.ndim == 2 else same.all(axis=-1)).any() else ()


def _has_sidecar(uri: str) -> bool:
    """Whether a mask or a no-data value lies beside a raster: GDAL finds it only if it opens the raster by its path."""
    return is_local(uri) and any(exists(uri + beside) for beside in (".msk", ".aux.xml"))


def _whole_raster(uri: str, data: bytes, size: tuple[int, int] | None) -> Labels:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with rasterio.MemoryFile(data) as file, file.open(driver="GTiff") as source:
        return _raster(uri, source, None, size)


def _raster(uri: str, source: rasterio.DatasetReader, window: Window | None, size: tuple[int, int] | None) -> Labels:
    if pages := len(source.subdatasets):
        raise LabelError(f"{uri} holds {pages} pages, of which only the first would be read; give a mask of one page")
    _check_size(uri, source.shape, size)
    window = window or Window(0, 0, source.height, source.width)
    if window.pixels > MAX_PIXELS:
        raise LabelError(f"{uri} would be read in a piece of more than {MAX_PIXELS} pixels; make its pixels larger")
    if "jpeg" in str(source.profile.get("compress", "")).lower():
        raise LabelError(f"{uri} is compressed as JPEG, which changes ids; save masks with LZW or DEFLATE")
    alpha, kind = ColorInterp.alpha in source.colorinterp, source.dtypes[0]
    if not kind.startswith(("int", "uint")) or source.count - alpha not in (1, 3):
        raise LabelError(
            f"{uri} holds {source.count} bands of {kind}; masks are one band of whole-number ids or three "
            f"8-bit bands of colours"
        )
    part = window.rows, window.cols
    values, nodata = source.read(window=part), source.nodatavals
    values = values[0] if values.shape[0] == 1 else values.transpose(1, 2, 0)
    if values.ndim == 3 and values.dtype != np.uint8:
        raise LabelError(f"{uri} holds colours of {values.dtype}; colours of the legend are 8-bit")
    labels = _split_alpha(uri, values) if alpha else _labels(values)
    if any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums):
        labels = replace(labels, labelled=labels.labelled & (source.dataset_mask(window=part) != 0))
    palette = source.colormap(1) if source.colorinterp[0] == ColorInterp.palette and values.dtype == np.uint8 else {}
    colors = tuple(palette[index][:3] for index in sorted(palette))
    declared = nodata[:1] if labels.values.ndim == 2 else (nodata[:3],)
    return replace(labels, nodata=() if None in nodata else declared, palette=colors)


def _check_size(uri: str, have: tuple[int, ...], want: tuple[int, int] | None) -> None:
    if want is not None and have[:2] != want:
        raise LabelError(size_error(uri, have=have[:2], want=want))


def _used(labels: Labels) -> list[int]:
    """The 8-bit ids that occur where there are labels, ascending."""
    used = np.zeros(256, bool)
    for ids, labelled in zip(labels.values, labels.labelled):  # row by row: numpy takes 8 bytes for each index
        used[ids[labelled]] = True
    return np.flatnonzero(used).tolist()


def _meant(palette: tuple[Color, ...], shown: dict[int, Color], legend: Legend) -> dict[int, list[int]]:
    """Index -> the ids that the colour shown for it means; empty if the palette's colours do not stand for ids.

    They do if all of them are in the legend, or if all are grey and those shown are ids, not just black and white.
    """
    length = max((index + 1 for index, color in enumerate(palette) if color != BLACK), default=0)  # the rest is padding
    colors = {color: [k for k in legend if color in legend[k]] for color in (*palette[:length], *shown.values())}
    if all(colors[color] for color in palette[:length]):
        return {index: colors[color] for index, color in shown.items() if colors[color]}
    greys = {color[0] for color in shown.values()}
    if all(len(set(color)) == 1 for color in palette) and greys <= legend.keys() and not greys <= {0, 255}:
        return {index: [color[0]] for index, color in shown.items()}
    return {}


def _part(labels: Labels, window: Window) -> Labels:
    """A window of labels, copied so that the whole can be freed."""
    rows, cols = window.rows, window.cols
    return replace(labels, values=labels.values[rows, cols].copy(), labelled=labels.labelled[rows, cols].copy())


def _labels(values: np.ndarray) -> Labels:
    return Labels(values=values, labelled=np.ones(values.shape[:2], bool))


def _split_alpha(uri: str, values: np.ndarray) -> Labels:
    """Labels from (H, W, 1 or 3 bands, then alpha): transparent is unlabelled, half transparent is an error."""
    alpha, bands = values[..., -1], values[..., :-1]
    if ((alpha > 0) & (alpha < 255)).any():
        raise LabelError(f"{uri} is half transparent in places, so its colours are blends; save it without smoothing")
    return Labels(values=bands[..., 0] if bands.shape[-1] == 1 else bands, labelled=alpha == 255)
