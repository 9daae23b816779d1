"""Labelled data as folders of images and masks with a legend: SPLIT/{images,masks}/STEM.EXT and classes.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from segray.datasets.labels import decode, is_label, read_labels
from segray.datasets.pairs import LEGEND, check_split, kinds_of_labels, pairs
from segray.datasets.sample import Sample
from segray.masks import Classes
from segray.storage import exists, read_text
from segray.uris import join


@dataclass(frozen=True, kw_only=True)
class FolderDataset:
    """Images and masks that share a stem; masks hold the legend's ids, or its colours."""

    layout: ClassVar[str] = "{train,val,test}/{images,masks}/STEM.EXT with classes.json"
    nadir: ClassVar[bool] = True
    uri: str
    classes: Classes

    @classmethod
    def recognises(cls, uri: str) -> bool:
        """Whether a legend lies there, and a split has `masks`."""
        return exists(join(uri, LEGEND)) and "masks" in kinds_of_labels(uri)

    @classmethod
    def open(cls, uri: str) -> FolderDataset:
        """The data set at a URI; SegrayError when its legend is damaged."""
        legend = join(uri, LEGEND)
        return cls(uri=uri, classes=Classes.parse(read_text(legend), source=legend))

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key; SegrayError when there are none or a file lacks its partner."""
        check_split(self.uri, split)
        found = pairs(join(self.uri, split), "masks", is_label)
        return [Sample(key=stem, image=image.uri, mask=mask.uri) for stem, image, mask in found]

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 mask with 255 = ignore; LabelError on an id or a colour that the legend does not have."""
        labels = read_labels(sample.mask, window=sample.window, size=sample.size)
        return decode(labels, self.classes, source=sample.mask)
