"""Pictures of a page: image, mask, truth and errors side by side, shrunk and inlined as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from segray.masks import IGNORE, Classes, encode_png, palette

LONGEST = 640  # pixels; the longest side of a picture on the page
NOTHING = (200, 30, 30)  # colour in pictures of errors, where no class was predicted; other errors have their class's
GREYS = ((203, 208, 214), (62, 66, 72))  # one of them marks what is right there
FOR, AGAINST = (214, 40, 40), (29, 78, 216)  # colours of evidence: for what was predicted, and for the truth


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One row of pictures. image: (H, W, 3) uint8 RGB; mask and truth: (H, W) uint8 class ids, 255 = none.

    confidence: (H, W) uint8, 255 is certain. evidence: (H, W) float32, see `evidence.evidence`. title names the image,
    note says why it is shown. ValueError when shapes or types do not fit.
    """

    title: str
    image: np.ndarray
    mask: np.ndarray
    truth: np.ndarray | None = None
    confidence: np.ndarray | None = None
    evidence: np.ndarray | None = None
    note: str = ""

    def __post_init__(self) -> None:
        size = self.mask.shape[:2]
        expected = {name: (size, np.uint8) for name in ("mask", "truth", "confidence")}
        expected |= {"image": ((*size, 3), np.uint8), "evidence": (size, np.float32)}
        for name, (shape, kind) in expected.items():
            array = getattr(self, name)
            if array is not None and (array.shape != shape or array.dtype != kind or not array.size):
                raise ValueError(
                    f"the {name} of picture '{self.title}' is {array.dtype} of shape {array.shape}; "
                    f"it should be {np.dtype(kind)} of shape {shape} with at least one pixel"
                )

    def shrunk(self, longest: int) -> Picture:
        """The picture with sides of at most `longest` pixels; a pixel of a mask keeps the id of one that it covers."""
        methods = dict.fromkeys(("image", "confidence", "evidence"), Image.Resampling.BOX)
        methods |= dict.fromkeys(("mask", "truth"), Image.Resampling.NEAREST)
        arrays = {name: getattr(self, name) for name in methods}
        small = {name: shrink(a, methods[name], longest) for name, a in arrays.items() if a is not None}
        return replace(self, **small)


def for_eyes(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of (C, H, W) pixels of any type: the first three bands, or the first if there are fewer.

    Types other than uint8 are stretched between their 2nd and 98th percentiles.
    """
    bands = (pixels[:3] if pixels.shape[0] >= 3 else pixels[[0, 0, 0]]).transpose(1, 2, 0)
    if bands.dtype == np.uint8:
        return np.ascontiguousarray(bands)
    seen = bands[valid] if valid.any() else np.zeros((1, 3))
    low, high = np.percentile(seen, (2, 98), axis=0)
    stretched = (bands - low) / np.maximum(high - low, 1e-9) * 255
    return np.nan_to_num(stretched).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Pane:
    """One picture of a row: the label below it, a data URI and its size in pixels. ids: not smoothed when enlarged."""

    label: str
    uri: str
    width: int
    height: int
    ids: bool = False


def panes(picture: Picture, classes: Classes, *, compare: bool) -> list[Pane]:
    """Image, overlay, mask; with `compare` and a truth: image, truth, prediction, errors, and what else there is."""
    picture = picture.shrunk(LONGEST)
    image, mask, truth = picture.image, picture.mask, picture.truth
    if not compare or truth is None:
        return [
            _photograph("Image", image),
            _photograph("Overlay", _overlay(image, mask, classes)),
            _ids("Mask", mask, classes),
        ]
    found = [
        _photograph("Image", image),
        _ids("Truth", truth, classes),
        _ids("Prediction", mask, classes),
        _errors(truth, mask, classes),
    ]
    if picture.confidence is not None:
        found.append(_photograph("Confidence (white is certain)", picture.confidence))
    if picture.evidence is not None:
        found.append(_photograph("Evidence", _heat(image, picture.evidence)))
    return found


def panes_by_epoch(picture: Picture, masks: Mapping[int, np.ndarray], classes: Classes, *, epoch: int) -> list[Pane]:
    """Image, truth, the predictions of earlier epochs and of the last one, and the errors of the last."""
    predictions = [_ids(f"Epoch {number}", mask, classes) for number, mask in sorted(masks.items())]
    image, truth, prediction, errors, *_ = panes(picture, classes, compare=True)
    predictions.append(replace(prediction, label=f"Epoch {epoch}"))
    return [image, truth, *predictions, replace(errors, label=f"Errors, epoch {epoch}")]


def shrink(array: np.ndarray, method: Image.Resampling, longest: int) -> np.ndarray:
    """An image or a mask with sides of at most `longest` pixels."""
    height, width = array.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(array).resize(size, method))


def _overlay(image: np.ndarray, mask: np.ndarray, classes: Classes) -> np.ndarray:
    """(h, w, 3) uint8: image and class colours mixed half and half; the image alone where the mask has no class."""
    mixed = (image.astype(np.uint16) + palette(classes)[mask] + 1) // 2
    return np.where((mask == IGNORE)[..., None], image, mixed).astype(np.uint8)


def _heat(image: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8: the image in grey, coloured where there is evidence for one class or the other."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    color = np.where(evidence[..., None] > 0, FOR, AGAINST)
    share = 0.8 * np.abs(evidence)[..., None].clip(0, 1)
    return np.rint(grey * (1 - share) + color * share).astype(np.uint8)


def _photograph(label: str, image: np.ndarray) -> Pane:
    buffer = io.BytesIO()
    # 4:4:4, so that the class colours of an overlay do not bleed over their edges
    Image.fromarray(image).save(buffer, "JPEG", quality=85, subsampling=0)
    return _pane(label, image, "jpeg", buffer.getvalue())


def _ids(label: str, mask: np.ndarray, classes: Classes) -> Pane:
    return _pane(label, mask, "png", encode_png(mask, classes), ids=True)


def color_of_right(classes: Classes) -> tuple[int, int, int]:
    """The colour of what is right in pictures of errors: the grey that is least like any class."""
    colors = np.array(classes.colors, np.int64)
    return max(GREYS, key=lambda grey: np.abs(colors - grey).sum(axis=1).min())


def _errors(truth: np.ndarray, mask: np.ndarray, classes: Classes) -> Pane:
    """Grey where the mask is right, else the colour of its class there; transparent where the truth has no class."""
    colors = palette(classes)[mask]
    colors[mask == IGNORE], colors[mask == truth] = NOTHING, color_of_right(classes)
    alpha = np.where(truth == IGNORE, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([colors, alpha])).save(buffer, "PNG")
    return _pane("Errors", mask, "png", buffer.getvalue(), ids=True)


def _pane(label: str, array: np.ndarray, kind: str, data: bytes, *, ids: bool = False) -> Pane:
    (height, width), uri = array.shape[:2], f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Pane(label=label, uri=uri, width=width, height=height, ids=ids)
