"""The output of a segmentation as labelled data: its masks label its images, so that it trains the next model.

A hash of an image's URI decides its split, so that it stays there whatever else is segmented.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np

from segray import plan as plans
from segray.archives.kept import Kept
from segray.datasets.sample import Sample
from segray.errors import SegrayError
from segray.grid import Window
from segray.masks import Classes
from segray.scenes import Masks, Scene, SceneReader, open_masks, pieces_of, scene_in, whole
from segray.shards import OK, shard_uri
from segray.storage import exists
from segray.uris import join

SHARES = {"train": 0.8, "val": 0.9, "test": 1.0}  # where each split ends, see `place_of`
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class MaskShardsDataset:
    """Images that were segmented, and their masks; 255 where a window has no mask."""

    layout: ClassVar[str] = "plan/ and masks/ (the OUTPUT of segment.py)"
    nadir: ClassVar[bool] = True
    uri: str
    classes: Classes
    masks: Masks

    @classmethod
    def recognises(cls, uri: str) -> bool:
        """Whether a plan and masks lie there."""
        return exists(join(uri, "plan", "plan.json")) and exists(join(uri, "masks"))

    @classmethod
    def open(cls, uri: str) -> MaskShardsDataset:
        """The data set at a URI; SegrayError when the segmentation is not finished."""
        masks = open_masks(uri)
        return cls(uri=uri, classes=masks.classes, masks=masks)

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key; SegrayError when no image with a mask belongs to it."""
        found = _splits.get(self.masks)
        if not found.get(split):
            there = ", ".join(f"{len(samples)} in {name}" for name, samples in found.items())
            raise SegrayError(
                f"{self.uri} has no image of the split '{split}'; a hash of an image's URI decides its split, and of "
                f"the images with masks there are {there}: segment more"
            )
        return list(found[split])

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 mask with 255 where the segmentation gave none; SegrayError when a shard is damaged."""
        first, last = map(int, sample.tag.split()[:2])
        window = sample.window or Window(0, 0, *sample.size)
        scene = scene_in(self.masks, sample.image, range(first, last + 1), window)
        return SceneReader(self.masks, scene).read(window)


def place_of(image: str) -> float:
    """An image's place on the scale from 0 to 1 that `SHARES` divides, evenly spread: from the sha256 of its URI."""
    return int.from_bytes(hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()[:6]) / 2**48


def _read_splits(masks: Masks) -> dict[str, list[Sample]]:
    """Split -> the samples of its images that have a mask, sorted by key; it looks into all shards."""
    parts = plans.parts(join(masks.output, "plan"))
    with ThreadPoolExecutor(THREADS) as pool:
        pieces = pool.map(lambda shard: pieces_of(masks, shard), range(masks.shards))
        scenes = whole(chain.from_iterable(pieces))
        scenes = [scene for scene in scenes if any(piece.status == OK for piece in scene.pieces)]
    samples = [_sample(masks, scene, parts.get(scene.image, "")) for scene in scenes]
    return _shared_out(sorted(samples, key=lambda sample: (place_of(sample.image), sample.key)))


def _shared_out(samples: list[Sample]) -> dict[str, list[Sample]]:
    """Split -> its samples; they must come sorted by their places.

    Of two images or more, at least one is for training and one for validation, whatever their places.
    """
    ends = [bisect_left(samples, end, key=lambda sample: place_of(sample.image)) for end in SHARES.values()]
    train = min(max(ends[0], 1), max(len(samples) - 1, 1))
    val = max(ends[1], train + 1)
    cuts = (0, train, val, len(samples))
    return {split: sorted(samples[start:end]) for split, start, end in zip(SHARES, cuts, cuts[1:])}


def _sample(masks: Masks, scene: Scene, part: str) -> Sample:
    shards = [piece.shard for piece in scene.pieces]
    return Sample(
        key=scene.image,
        image=scene.image,
        mask=shard_uri(masks.output, min(shards), masks.fmt),
        part=part,
        tag=f"{min(shards)} {max(shards)} {masks.digest}",
        size=(scene.height, scene.width),
    )


_splits: Kept[Masks, dict[str, list[Sample]]] = Kept(_read_splits, most=4)
