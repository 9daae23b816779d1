"""Overviews of a page: whole scenes at a low resolution, packed for the viewer within the size that a page may have."""

from __future__ import annotations

import base64
import io
import json
import math
import posixpath
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform

from segray.footprints import NO_PLACE
from segray.masks import Classes
from segray.reduction import majority
from segray.report.pictures import shrink

LONGEST = 2048  # pixels; the longer side of an overview
BYTES = 3_000_000  # of all overviews of a page, before base64 adds a third: with its pictures it stays below 6 MB
MASK_SHARE = 0.6  # of a scene's bytes, at most
JPEG_SIDES = (LONGEST, 1448, 1024, 724, 512)
MEAN_RADIUS_M = 6371008.8  # the mean of WGS 84
WEB_MERCATOR = 3857


@dataclass(frozen=True, kw_only=True, eq=False)
class Overview:
    """A whole scene. mask: (h, w) uint8 class ids, 255 = none, each for factor x factor pixels of the scene.

    height, width: of the scene in pixels. image: (any h, any w, 3) uint8 RGB of all of it, or None. crs, transform: of
    the scene, as `Raster` has them. ValueError when the mask does not fit the scene's size.
    """

    title: str
    mask: np.ndarray
    factor: int
    height: int
    width: int
    image: np.ndarray | None = None
    crs: str | None = None
    transform: Sequence[float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        shape = (-(-self.height // self.factor), -(-self.width // self.factor))
        if self.mask.shape != shape or self.mask.dtype != np.uint8:
            raise ValueError(
                f"the mask of overview '{self.title}' is {self.mask.dtype} of shape {self.mask.shape}; it should be "
                f"uint8 of shape {shape}"
            )


def factor_of(height: int, width: int) -> int:
    """How many pixels of a scene, along an axis, one pixel of its overview stands for."""
    return max(1, -(-max(height, width) // LONGEST))


def viewer_data(overviews: Sequence[Overview], classes: Classes) -> str:
    """The JSON that the viewer reads, without characters that could end its element in the page."""
    share = BYTES // max(1, len(overviews))
    names = _short([overview.title for overview in overviews])
    scenes = [{"name": name, **_entry(overview, share)} for name, overview in zip(names, overviews)]
    document = {"colors": classes.colors, "names": classes.names, "scenes": scenes}
    text = json.dumps(document, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _short(titles: list[str]) -> list[str]:
    """The titles without the folder that they have in common."""
    common = len(posixpath.commonprefix([title.rpartition("/")[0] + "/" for title in titles]).rpartition("/")[0])
    return [title[common:].lstrip("/") or title for title in titles]


def _entry(overview: Overview, share: int) -> dict:
    mask, factor, packed = _pack(overview, int(share * MASK_SHARE))
    crs = _crs(overview.crs)
    return {
        "title": overview.title,
        "width": overview.width,
        "height": overview.height,
        "factor": factor,
        "rows": mask.shape[0],
        "columns": mask.shape[1],
        "mask": base64.b64encode(packed).decode(),
        "image": _jpeg(overview.image, share - len(packed)),
        "crs": _name(crs, overview.crs),
        "transform": overview.transform and list(overview.transform),
        "metres": _metres(overview, crs),
        "mercator": crs is not None and crs.to_epsg() == WEB_MERCATOR,
        "degrees": crs is not None and crs.is_geographic,
    }


def _pack(overview: Overview, most: int) -> tuple[np.ndarray, int, bytes]:
    """The mask, made smaller until it fits; its factor; and its bytes: rows, each XOR the one above it, deflated.

    Not a PNG: browsers that guard against fingerprinting change the pixels that a script reads back from a picture.
    """
    mask, factor = overview.mask, overview.factor
    while True:
        above = np.vstack([np.zeros_like(mask[:1]), mask[:-1]])
        packed = zlib.compress((mask ^ above).tobytes(), 6)  # level 9: a seventh less in ten times the time
        if len(packed) <= most or max(mask.shape) <= 256:
            return mask, factor, packed
        mask, factor = majority(mask, 2), factor * 2


def _jpeg(image: np.ndarray | None, most: int) -> str | None:
    """A data URI of the largest size within `most` bytes before base64, or else of the smallest; None for no image."""
    if image is None:
        return None
    data = b""
    for side in JPEG_SIDES:
        buffer = io.BytesIO()
        Image.fromarray(shrink(image, Image.Resampling.BOX, side)).save(buffer, "JPEG", quality=80)
        data = buffer.getvalue()
        if len(data) <= most:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _crs(text: str | None) -> CRS | None:
    try:
        return CRS.from_string(text) if text else None
    except CRSError:
        return None


def _name(crs: CRS | None, text: str | None) -> str | None:
    """The code of a CRS, such as EPSG:32618, or the name of one without a code."""
    if crs is None or not text or ":" in text[:12]:
        return text
    return text.split('"')[1] if '"' in text else text[:40]


def _metres(overview: Overview, crs: CRS | None) -> float | None:
    """Metres per pixel along a row, in the middle of the scene: on the ground, or on the map plane of Web Mercator.

    By the haversine formula on the sphere, within 0.4% of the ellipsoid. None where unknown.
    """
    if crs is None or overview.transform is None:
        return None
    a, b, c, d, e, f = overview.transform
    if crs.to_epsg() == WEB_MERCATOR:
        return math.hypot(a, d)
    row, cols = overview.height / 2, [overview.width * share for share in (0.49, 0.51)]
    try:
        xs, ys = [a * col + b * row + c for col in cols], [d * col + e * row + f for col in cols]
        at = transform(crs, "OGC:CRS84", xs, ys)
    except NO_PLACE:
        return None
    (west, east), (south, north) = (tuple(map(math.radians, values)) for values in at)
    if not all(map(math.isfinite, (west, east, south, north))):
        return None
    part = math.sin((north - south) / 2) ** 2
    part += math.cos(north) * math.cos(south) * math.sin((east - west) / 2) ** 2
    return 2 * MEAN_RADIUS_M * math.asin(math.sqrt(min(1.0, part))) / (cols[1] - cols[0]) or None
