"""Finished segmentations for tests: the shards and the summary that segment.py writes, with masks that tests choose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from segray.archives.raster import Affine6
from segray.grid import Window, windows
from segray.masks import IGNORE, Classes
from segray.regions import WindowMask
from segray.scenes import Masks, Scene, pieces_of, whole
from segray.shards import MaskRow, Place, failed_row, mask_row, write_shard
from segray.storage import publish
from segray.uris import join

CLASSES = Classes(names=("water", "main road", "field & <co>"), colors=((0, 0, 255), (90, 90, 90), (200, 200, 60)))
UTM = (0.1, 0.0, 389000.123456789, 0.0, -0.1, 5820000.987654321)
METADATA = {
    "format_version": 1,
    "classes": CLASSES.to_json(),
    "ignore_index": IGNORE,
    "model_digest": "abc",
    "settings": {"blend": "crop"},
}


@dataclass(frozen=True, kw_only=True)
class Image:
    """A segmented image. mask: (H, W) uint8, 255 where there is no data. failed: its windows that could not be read."""

    uri: str
    mask: np.ndarray
    crs: str | None = None
    transform: Affine6 | None = None
    failed: tuple[int, ...] = ()


def ids(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """(height, width) uint8 patches of the classes and of 255, no data."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (-(-height // 16), -(-width // 16)))
    return coarse.repeat(16, 0).repeat(16, 1)[:height, :width]


def confidences_of(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint16 confidences of the pixels of a mask, each of another value; 0 without data."""
    steps = np.random.default_rng(mask.size).integers(1, 65536, mask.shape).astype(np.uint16)
    return np.where(mask == IGNORE, np.uint16(0), steps)


def write_masks(
    uri: str,
    images: list[Image],
    *,
    archive: str,
    window: int = 100,
    rows_a_shard: int = 3,
    formats: str = "parquet",
    confidence: bool = False,
) -> str:
    """Write the OUTPUT of a segmentation of those images; its URI. confidence: with those of `confidences_of`."""
    rows = (row for image in images for row in _rows(image, window, confidence))
    settings = {**METADATA["settings"], **({"confidence": True} if confidence else {})}
    metadata = {**METADATA, "settings": settings}
    shards, counts = 0, np.zeros(len(CLASSES), np.int64)
    while chunk := list(islice(rows, rows_a_shard)):
        write_shard(uri, shards, rows=chunk, formats=formats.split(","), metadata=metadata)
        shards += 1
        counts += sum((np.array(row.pixel_counts) for row in chunk if row.pixel_counts), 0 * counts)
    summary = {
        "archive": archive,
        "images": {"ok": len(images)},
        "pixels": {"per_class": counts.tolist()},
        "shards": {"total": shards},
        "settings": {**settings, "format": formats},
    }
    publish(join(uri, "summary.json"), json.dumps(summary).encode())
    return uri


def scenes_of(masks: Masks) -> list[Scene]:
    """All scenes of a segmentation."""
    return list(whole(part for shard in range(masks.shards) for part in pieces_of(masks, shard)))


def _rows(image: Image, size: int, confidence: bool) -> Iterator[MaskRow]:
    height, width = image.mask.shape
    place = Place(image=image.uri, etag="e", height=height, width=width, crs=image.crs, transform=image.transform)
    for number, window in enumerate(windows(height, width, size)):
        if number in image.failed:  # of an unreadable image only its size is known, from its header
            yield failed_row(Place(image=image.uri, etag="e", height=height, width=width), window, "it is torn")
        else:
            yield mask_row(place, _result(image, window, confidence), CLASSES)


def _result(image: Image, window: Window, confidence: bool) -> WindowMask:
    mask = image.mask[window.rows, window.cols]
    counts = np.bincount(mask[mask < IGNORE], minlength=len(CLASSES)).astype(np.int64)
    valid = int(counts.sum())
    known = {"confidence": 0.9, "seam_disagreement": 0.0} if valid else {"confidence": None, "seam_disagreement": None}
    if confidence:
        known["confidences"] = confidences_of(image.mask)[window.rows, window.cols]
    return WindowMask(window=window, mask=mask, pixel_counts=counts, valid_pixels=valid, **known)
