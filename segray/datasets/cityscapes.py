"""The Cityscapes layout: leftImg8bit/ with gtFine/ or gtCoarse/, labelIds mapped to the 19 train ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from segray.datasets.labels import check_palette, read_labels
from segray.datasets.pairs import by_stem
from segray.datasets.sample import Sample
from segray.errors import LabelError, SegrayError
from segray.masks import IGNORE, Classes
from segray.storage import exists
from segray.uris import join

IMAGES, IMAGE_END = "leftImg8bit", "_leftImg8bit.png"
LABELS = {"fine": "gtFine", "coarse": "gtCoarse"}
SPLITS = {"fine": ("train", "val"), "coarse": ("train", "train_extra", "val")}
UNKNOWN = -1
PLATE = 255  # the id -1 (licence plate) as 8-bit files hold it; the official files hold the vehicle's id there


@dataclass(frozen=True, kw_only=True)
class CityscapesDataset:
    """Street scenes with the 19 classes of the benchmark; everything else is ignored. mode: "fine" or "coarse"."""

    layout: ClassVar[str] = "leftImg8bit/SPLIT/CITY/*_leftImg8bit.png with gtFine/ or gtCoarse/ (Cityscapes)"
    nadir: ClassVar[bool] = False
    uri: str
    classes: Classes
    mode: str

    @classmethod
    def recognises(cls, uri: str) -> bool:
        """Whether the folder of left images lies there."""
        return exists(join(uri, IMAGES))

    @classmethod
    def open(cls, uri: str) -> CityscapesDataset:
        """The data set at a URI with its fine labels, or the coarse ones if only those exist.

        SegrayError when the labels are missing.
        """
        mode = next((mode for mode, folder in LABELS.items() if exists(join(uri, folder))), None)
        if mode is None:
            wanted = " or ".join(LABELS.values())
            raise SegrayError(f"{uri} has {IMAGES}/ but no {wanted}/; unpack the labels beside the images")
        return cls(uri=uri, classes=_classes(), mode=mode)

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key (CITY/CITY_SEQUENCE_FRAME); SegrayError when one lacks its labels."""
        if split == "test":
            raise SegrayError(
                "the public test split of Cityscapes has dummy labels only, so nothing can be learnt or measured on "
                "it; use the split 'val'"
            )
        if split not in self._splits():
            there = ", ".join(self._splits()) or "none"
            raise SegrayError(f"{self.uri} has no split '{split}' with {self.mode} labels; there is {there}")
        folder = LABELS[self.mode]
        images = _below(join(self.uri, IMAGES, split), IMAGE_END)
        masks = _below(join(self.uri, folder, split), f"_{folder}_labelIds.png")
        for key in sorted(images.keys() - masks.keys()):
            raise SegrayError(f"{images[key]} has no labels: {folder}/{split}/{key}_{folder}_labelIds.png is missing")
        if not images:
            raise SegrayError(f"the split '{split}' of {self.uri} holds no *{IMAGE_END}")
        return [Sample(key=key, image=images[key], mask=masks[key]) for key in sorted(images)]

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 train ids with 255 = ignore; LabelError on an id that Cityscapes does not have."""
        labels = read_labels(sample.mask, window=sample.window, size=sample.size)
        check_palette(labels, _colors(), ignore_index=PLATE, source=sample.mask)
        ids = labels.values
        if ids.ndim != 2:
            raise LabelError(f"{sample.mask} holds colours; the labels of Cityscapes are the ids of *_labelIds.png")
        ids = ids.astype(np.int32)  # so that the bounds below fit the type
        train_ids = _train_ids()[np.clip(ids, -1, PLATE)]
        unknown = (train_ids == UNKNOWN) | (ids > PLATE) | (ids < -1)
        if unknown.any():
            value = ids[unknown].flat[0]
            raise LabelError(f"{sample.mask} holds the id {value}, which Cityscapes does not have (0 to 33)")
        return train_ids.astype(np.uint8)

    def _splits(self) -> list[str]:
        """The splits that are there with images and labels."""
        parts = (IMAGES, LABELS[self.mode])
        return [split for split in SPLITS[self.mode] if all(exists(join(self.uri, part, split)) for part in parts)]


@cache
def _train_ids() -> np.ndarray:
    """(256,) int16: label id -> train id, 255 for ignored ids, -1 for ids that do not exist; index -1 is PLATE."""
    from torchvision.datasets import Cityscapes  # lazily: it imports torch

    table = np.full(256, UNKNOWN, np.int16)
    for label in Cityscapes.classes:
        table[label.id] = label.train_id if 0 <= label.train_id < IGNORE else IGNORE
    return table


@cache
def _colors() -> dict[int, tuple[tuple[int, int, int]]]:
    """Label id, as stored in 8-bit files -> its colour."""
    from torchvision.datasets import Cityscapes  # lazily: it imports torch

    return {label.id % 256: (label.color,) for label in Cityscapes.classes}


def _classes() -> Classes:
    from torchvision.datasets import Cityscapes  # lazily: it imports torch

    evaluated = [label for label in Cityscapes.classes if 0 <= label.train_id < IGNORE]
    evaluated.sort(key=lambda label: label.train_id)
    return Classes(names=tuple(c.name for c in evaluated), colors=tuple(c.color for c in evaluated))


def _below(folder: str, ending: str) -> dict[str, str]:
    """Path below the folder without `ending` -> URI of every file that has it."""
    found = by_stem(folder, lambda uri: uri.endswith(ending))
    return {stem.removesuffix(ending.removesuffix(".png")): file.uri for stem, file in found.items()}
