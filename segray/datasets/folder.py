"""Labelled data as folders of images and masks with a legend: SPLIT/{images,masks}/STEM.EXT and classes.json."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from segray.archives.images import is_image
from segray.datasets.labels import ENDINGS, check_lossless, read_labels
from segray.datasets.sample import Sample
from segray.errors import LabelError, SegrayError
from segray.masks import IGNORE, Classes, colors_to_mask, ids_to_mask
from segray.storage import exists, filesystem, join, list_files, read_text

LEGEND = "classes.json"


@dataclass(frozen=True, kw_only=True)
class FolderDataset:
    """Images and masks that share a stem; masks hold the legend's ids, or its colours."""

    layout: ClassVar[str] = "{train,val,test}/{images,masks}/STEM.EXT with classes.json"
    nadir: ClassVar[bool] = True
    uri: str
    classes: Classes

    @classmethod
    def recognises(cls, uri: str) -> bool:
        """Whether a legend lies there."""
        return exists(join(uri, LEGEND))

    @classmethod
    def open(cls, uri: str) -> FolderDataset:
        """The data set at a URI; SegrayError when its legend is damaged."""
        legend = join(uri, LEGEND)
        return cls(uri=uri, classes=Classes.parse(read_text(legend), source=legend))

    def splits(self) -> list[str]:
        """The splits that are there."""
        return [split for split in ("train", "val", "test") if exists(join(self.uri, split))]

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key; SegrayError when there are none or a file lacks its partner."""
        if split not in self.splits():
            raise SegrayError(f"{self.uri} has no split '{split}'; there is {', '.join(self.splits()) or 'none'}")
        images = _by_stem(join(self.uri, split, "images"), is_image)
        masks = _by_stem(join(self.uri, split, "masks"), _is_mask)
        for stem in sorted(images.keys() ^ masks.keys()):
            there, lacking = (images[stem], "mask") if stem in images else (masks[stem], "image")
            raise SegrayError(f"{there} has no {lacking}: {join(self.uri, split, lacking + 's')} holds no {stem}.*")
        if not images:
            raise SegrayError(f"the split '{split}' of {self.uri} is empty; put files into its images/ and masks/")
        return [Sample(key=stem, image=images[stem], mask=masks[stem]) for stem in sorted(images)]

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 mask with 255 = ignore; LabelError on an id or a colour that is in no legend."""
        labels = read_labels(sample.mask)
        labelled = labels.labelled
        if labels.nodata is not None:
            if labels.nodata in range(len(self.classes)):
                raise LabelError(
                    f"{sample.mask} declares {labels.nodata:g} as its no-data value, but that is the id of the class "
                    f"'{self.classes.names[int(labels.nodata)]}'; unset the value or use another id"
                )
            labelled = labelled & (labels.values != labels.nodata)
        mask = np.full(labelled.shape, IGNORE, np.uint8)
        decode = ids_to_mask if labels.values.ndim == 2 else colors_to_mask
        mask[labelled] = decode(labels.values[labelled], self.classes, source=sample.mask)
        return mask


def _is_mask(uri: str) -> bool:
    check_lossless(uri)
    return posixpath.splitext(uri)[1].lower() in ENDINGS


def _by_stem(folder: str, wanted: Callable[[str], bool]) -> dict[str, str]:
    """Path below the folder without its ending -> URI; SegrayError when two files share one."""
    root, found = filesystem(folder)[1], {}
    for uri in _listed(folder):
        if wanted(uri):
            stem = posixpath.splitext(uri.partition(root + "/")[2])[0]
            if stem in found:
                raise SegrayError(f"{found[stem]} and {uri} have the same stem; remove one of them")
            found[stem] = uri
    return found


def _listed(folder: str) -> Iterator[str]:
    try:
        yield from (file.uri for file in list_files(folder))
    except FileNotFoundError:  # a store knows no empty folder: the caller says what is missing
        return
