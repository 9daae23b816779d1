"""Labelled data: one file a layout, found by what lies at the URI."""

from __future__ import annotations

import numpy as np

from segray.archives.images import read_image
from segray.datasets.cityscapes import CityscapesDataset
from segray.datasets.folder import FolderDataset
from segray.datasets.sample import Dataset, Labelled, Sample
from segray.errors import LabelError, SegrayError
from segray.masks import IGNORE
from segray.storage import absolute

__all__ = ["DATASETS", "Dataset", "Labelled", "Sample", "open_dataset", "read"]

DATASETS = {"folder": FolderDataset, "cityscapes": CityscapesDataset}


def open_dataset(uri: str, *, mode: str | None = None) -> Dataset:
    """The labelled data at a URI; SegrayError when no layout, or more than one, is recognised there.

    mode: "fine" or "coarse" labels, where the layout has both.
    """
    uri = absolute(uri)
    found = [name for name, layout in DATASETS.items() if layout.recognises(uri)]
    if len(found) != 1:
        layouts = "; or ".join(layout.layout for layout in DATASETS.values())
        what = f"holds the layouts {' and '.join(found)} at once" if found else "holds no labelled data"
        raise SegrayError(f"{uri} {what}; exactly one is needed of: {layouts}")
    if mode and found != ["cityscapes"]:
        raise SegrayError(f"{uri} has no choice of '{mode}' labels; only the Cityscapes layout has")
    return DATASETS[found[0]].open(uri, **({"mode": mode} if mode else {}))


def read(dataset: Dataset, sample: Sample) -> Labelled:
    """An image and its mask; the mask is 255 where the image has no data.

    ImageError when a file cannot be read; LabelError when the sizes differ or the mask holds an unknown value.
    """
    raster, mask = read_image(sample.image), dataset.read_mask(sample)
    if mask.shape != raster.valid.shape:
        raise LabelError(_size_error(sample, mask.shape, raster.valid.shape))
    return Labelled(pixels=raster.pixels, valid=raster.valid, mask=np.where(raster.valid, mask, np.uint8(IGNORE)))


def _size_error(sample: Sample, mask: tuple[int, ...], image: tuple[int, ...]) -> str:
    hint = "masks are never resized"
    if mask == image[::-1]:
        hint = "the image's EXIF orientation turns it, so draw the mask on the turned image or remove that tag"
    sizes = f"{mask[0]} x {mask[1]} pixels (height x width), but its image {sample.image} has {image[0]} x {image[1]}"
    return f"{sample.mask} has {sizes}; {hint}"
