"""Georeferenced scenes with labels on grids of their own, or as polygons: SPLIT/{images,labels}/STEM.EXT, classes.json.

Labels are brought to the image's grid window by window: rasters by the nearest pixel, polygons by the pixel centres
that they cover. Where there is no label, the mask is 255 or, with polygons, the background class if there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from segray.archives.images import read_header
from segray.archives.raster import Header
from segray.datasets.features import VectorFile
from segray.datasets.labels import decode, is_label, read_labels
from segray.datasets.pairs import LABELS, LEGEND, VECTORS, check_split, images_of, kinds_of_labels, pairs
from segray.datasets.regrid import label_pixels
from segray.datasets.sample import Sample
from segray.datasets.vectors import burn
from segray.errors import LabelError, SegrayError
from segray.grid import Window
from segray.listing import files_if_any, names
from segray.masks import IGNORE, Classes
from segray.storage import exists, read_text
from segray.uris import ending, join

STRIPE_PIXELS = 2**20  # brought to the image's grid at a time, at some 50 bytes each


@dataclass(frozen=True, kw_only=True)
class ScenesDataset:
    """Scenes and their labels. attribute, ids: of vector labels, see `VectorFile`.

    background: the id of pixels without a feature, 255 if classes.json neither names one nor has a class "background".
    """

    layout: ClassVar[str] = (
        "{train,val,test}/images/STEM.tif with labels/STEM.{tif,png,geojson,gpkg,parquet} or "
        "labels.{geojson,gpkg,parquet}, and classes.json"
    )
    nadir: ClassVar[bool] = True
    uri: str
    classes: Classes
    ids: tuple[tuple[str, int], ...]
    attribute: str | None = None
    background: int = IGNORE

    @classmethod
    def recognises(cls, uri: str) -> bool:
        """Whether a legend lies there, and a split has `labels`, not just `masks`."""
        return exists(join(uri, LEGEND)) and "labels" in kinds_of_labels(uri)

    @classmethod
    def open(cls, uri: str) -> ScenesDataset:
        """The data set at a URI; SegrayError when its legend is damaged."""
        legend = join(uri, LEGEND)
        text = read_text(legend)
        classes = Classes.parse(text, source=legend)
        document = json.loads(text)
        ignored = [
            str(entry["name"])
            for entry in document["classes"]
            if entry["id"] == classes.ignore_index and "name" in entry
        ]
        ids = {str(number): number for number in range(len(classes))} | {str(classes.ignore_index): IGNORE}
        ids |= dict.fromkeys(ignored, IGNORE) | {name: number for number, name in enumerate(classes.names)}
        attribute, background = document.get("attribute"), str(document.get("background", "background"))
        if not isinstance(attribute, str | None):
            raise SegrayError(f'{legend} gives {attribute!r} as attribute; give the name of one, as in "landuse"')
        if "background" in document and background not in ids:
            raise SegrayError(f"{legend} names '{background}' as background; give the name or the id of a class")
        return cls(
            uri=uri,
            classes=classes,
            ids=tuple(ids.items()),
            attribute=attribute,
            background=ids.get(background, IGNORE),
        )

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key; SegrayError when there are none or a file lacks its partner."""
        check_split(self.uri, split)
        folder = join(self.uri, split)
        there = sorted(names(folder) & LABELS)
        if len(there) > 1:
            raise SegrayError(f"{folder} has labels more than once, as {' and as '.join(there)}; keep one of them")
        if there not in ([], ["labels"]):
            files = list(files_if_any(join(folder, there[0])))
            if len(files) != 1:
                raise SegrayError(f"{join(folder, there[0])} is a folder of {len(files)} files; write them as one file")
            found = ((stem, image, files[0]) for stem, image in images_of(folder).items())
        else:
            found = pairs(folder, "labels", lambda uri: ending(uri) in VECTORS or is_label(uri))
        meant = f"{self.attribute}\n{self.background}"  # what classes.json says of features changes masks, too
        return [
            Sample(key=stem, image=image.uri, mask=label.uri, tag=f"{image.etag}\n{label.etag}\n{meant}")
            for stem, image, label in found
        ]

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 mask with 255 = ignore, on the grid of the image.

        LabelError on an unknown id, colour or class, and when the labels cannot be placed on the image.
        """
        image_tag, label_tag, *_ = sample.tag.split("\n")
        image = _header(sample.image, image_tag)
        window = sample.window or Window(0, 0, image.height, image.width)
        if ending(sample.mask) in VECTORS:
            if image.crs is None or image.transform is None:
                raise LabelError(f"{sample.image} has no georeference, so {sample.mask} cannot be placed on it; set it")
            file = VectorFile(uri=sample.mask, tag=label_tag, attribute=self.attribute, ids=self.ids)
            return burn(file, image, window, background=self.background)
        label = _header(sample.mask, label_tag)
        if image.transform is None or label.transform is None:  # then both must have the same pixels
            if label.transform and (image.height, image.width) != (label.height, label.width):
                raise LabelError(
                    f"{sample.image} has no georeference, so {sample.mask}, which differs in size, cannot be placed "
                    "on it; set it"
                )
            labels = read_labels(sample.mask, window=window, size=(image.height, image.width))
            return decode(labels, self.classes, source=sample.mask)
        if (image.crs is None) != (label.crs is None):
            lacking = sample.image if image.crs is None else sample.mask
            raise LabelError(f"{lacking} has no CRS, so {sample.mask} cannot be placed on its image; set it")
        parts = [self._regridded(sample, (image, label), stripe) for stripe in _stripes(window)]
        return np.concatenate(parts)

    def _regridded(self, sample: Sample, grids: tuple[Header, Header], window: Window) -> np.ndarray:
        """The mask of a window of the image from a raster on another grid; grids: of image and label."""
        rows, cols = label_pixels(*grids, window)
        mask = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = (rows >= 0) & (cols >= 0)
        if not inside.any():
            return mask
        top, left = rows[rows >= 0].min(), cols[cols >= 0].min()
        part = Window(int(top), int(left), int(rows.max() - top) + 1, int(cols.max() - left) + 1)
        ids = decode(read_labels(sample.mask, window=part), self.classes, source=sample.mask)
        np.copyto(mask, ids[np.maximum(rows - top, 0), np.maximum(cols - left, 0)], where=inside)
        return mask


@lru_cache(4096)
def _header(uri: str, tag: str) -> Header:
    """The grid of an image or a label raster. tag: of its version."""
    return read_header(uri)


def _stripes(window: Window) -> Iterator[Window]:
    """The window in stripes of whole rows."""
    step = max(1, STRIPE_PIXELS // window.width)
    for row in range(0, window.height, step):
        yield Window(window.row_off + row, window.col_off, min(step, window.height - row), window.width)
