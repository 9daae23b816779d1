"""The output of a segmentation as labelled data: its masks label its images, so that it trains the next model.

A hash of an image's URI says to which split it belongs, so that it stays there whatever is segmented beside it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from segray import plan as plans
from segray.archives.kept import Kept
from segray.datasets.sample import Sample
from segray.errors import LabelError, SegrayError
from segray.grid import Window
from segray.masks import IGNORE, Classes, decode_png
from segray.shards import OK, read_masks, read_statistics, shard_uri
from segray.storage import exists, join

if TYPE_CHECKING:
    from segray.exports.scenes import Masks, Scene

SHARES = {"train": 0.8, "val": 0.9, "test": 1.0}  # the place at which a split ends
THREADS = 16
SHARDS_KEPT = 32  # in a process, some MB each
LISTS_KEPT = 4096  # of the windows in a shard

Pieces = dict[str, list[tuple[Window, bytes | None]]]  # image -> its windows and their masks


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
        from segray.exports.scenes import open_masks  # lazily: what exports need takes a second

        masks = open_masks(uri)
        return cls(uri=uri, classes=masks.classes, masks=masks)

    def splits(self) -> list[str]:
        """The splits that have images."""
        found = self._found()
        return [split for split in SHARES if found[split]]

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key; SegrayError when no image with a mask belongs to it."""
        found = self._found()
        if not found.get(split):
            there = ", ".join(f"{len(samples)} in {name}" for name, samples in found.items())
            raise SegrayError(
                f"{self.uri} has no image of the split '{split}', to which images belong by a hash of their URIs; with "
                f"masks there are {there}: segment more"
            )
        return list(found[split])

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 mask with 255 where the segmentation gave none."""
        window = sample.window or Window(0, 0, *sample.size)
        mask = np.full((window.height, window.width), IGNORE, np.uint8)
        first, last = map(int, sample.tag.split()[:2])
        for number in range(first, last + 1):
            shard = _Shard(output=self.uri, number=number, fmt=self.masks.fmt, digest=self.masks.digest)
            if first < last and not _meeting(_lists.get(shard), sample.image, window):
                continue
            for where, png in _meeting(_contents.get(shard), sample.image, window):
                part = where.intersection(window)
                piece = decode_png(png)
                if piece.shape != (where.height, where.width):
                    raise LabelError(f"{sample.mask} holds a mask of another size than its window; segment anew")
                mask[part.within(window)] = piece[part.within(where)]
        return mask

    def _found(self) -> dict[str, list[Sample]]:
        return _splits.get(_Output(uri=self.uri, digest=self.masks.digest))


@dataclass(frozen=True, kw_only=True)
class _Output:
    """A finished segmentation; digest: of what it holds."""

    uri: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A shard of it."""

    output: str
    number: int
    fmt: str
    digest: str


def place_of(image: str) -> float:
    """Where an image is on the way from train over val to test, 0 to 1, evenly spread: by sha256 of its URI."""
    return int.from_bytes(hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()[:6]) / 2**48


def _read_splits(output: _Output) -> dict[str, list[Sample]]:
    """Split -> the samples of its images that have a mask, sorted by key. It asks all shards what they hold."""
    from segray.exports.scenes import open_masks, pieces_of, whole

    masks = open_masks(output.uri)
    parts = plans.parts(join(output.uri, "plan"))
    with ThreadPoolExecutor(THREADS) as pool:
        pieces = pool.map(lambda shard: pieces_of(masks, shard), range(masks.shards))
        scenes = [scene for scene in whole(chain.from_iterable(pieces)) if _has_mask(scene)]
    samples = [_sample(masks, scene, parts.get(scene.image, "")) for scene in scenes]
    return _shared_out(sorted(samples, key=lambda sample: (place_of(sample.image), sample.key)))


def _shared_out(samples: list[Sample]) -> dict[str, list[Sample]]:
    """The samples, which are sorted by their places, in splits; two images are enough for one to train on and one to
    validate, whatever their places."""
    ends = [bisect_left(samples, end, key=lambda sample: place_of(sample.image)) for end in SHARES.values()]
    train = min(max(ends[0], 1), max(len(samples) - 1, 1))
    val = max(ends[1], train + 1)
    cuts = (0, train, val, len(samples))
    return {split: sorted(samples[start:end]) for split, start, end in zip(SHARES, cuts, cuts[1:])}


def _has_mask(scene: Scene) -> bool:
    return any(piece.status == OK for piece in scene.pieces)


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


def _read_lists(shard: _Shard) -> Pieces:
    from segray.exports.scenes import damage_told

    with damage_told(shard.output, shard.number):
        return _pieces((row, None) for row in read_statistics(shard.output, shard.number, shard.fmt))


def _read_contents(shard: _Shard) -> Pieces:
    from segray.exports.scenes import damage_told

    with damage_told(shard.output, shard.number):
        return _pieces(read_masks(shard.output, shard.number, shard.fmt))


def _pieces(rows: Iterable[tuple[dict, bytes | None]]) -> Pieces:
    """The windows of each image that have a mask."""
    found: Pieces = {}
    for row, png in rows:
        if row["status"] == OK:
            window = Window(*(row[name] for name in ("row_off", "col_off", "height", "width")))
            found.setdefault(row["image"], []).append((window, png))
    return found


def _meeting(pieces: Pieces, image: str, window: Window) -> list[tuple[Window, bytes | None]]:
    """What of an image meets a window."""
    return [(where, png) for where, png in pieces.get(image, ()) if where.meets(window)]


_splits: Kept[_Output, dict[str, list[Sample]]] = Kept(_read_splits, most=4)
_lists: Kept[_Shard, Pieces] = Kept(_read_lists, most=LISTS_KEPT)
_contents: Kept[_Shard, Pieces] = Kept(_read_contents, most=SHARDS_KEPT)
