"""Labelled data: one module per layout, recognised by what lies at the URI."""

from __future__ import annotations

import numpy as np

from segray.archives.images import read_image
from segray.archives.raster import Choose
from segray.datasets.cityscapes import CityscapesDataset
from segray.datasets.folder import FolderDataset
from segray.datasets.labels import size_error
from segray.datasets.mask_shards import MaskShardsDataset
from segray.datasets.sample import Dataset, Labelled, Sample
from segray.datasets.scenes import ScenesDataset
from segray.errors import LabelError, SegrayError
from segray.listing import names
from segray.masks import IGNORE
from segray.uris import absolute

__all__ = ["DATASETS", "Dataset", "Labelled", "Sample", "open_dataset", "read"]

DATASETS = {
    "folder": FolderDataset,
    "scenes": ScenesDataset,
    "cityscapes": CityscapesDataset,
    "mask_shards": MaskShardsDataset,
}


def open_dataset(uri: str) -> Dataset:
    """The labelled data at a URI; SegrayError when no layout, or more than one, is recognised there."""
    uri = absolute(uri)
    found = [name for name, layout in DATASETS.items() if layout.recognises(uri)]
    if not found and not names(uri):
        raise SegrayError(f"{uri} does not exist or holds no file; check the URI given with --data")
    if len(found) != 1:
        layouts = "; or ".join(layout.layout for layout in DATASETS.values())
        what = f"holds the layouts {' and '.join(found)} at once" if found else "holds no labelled data"
        raise SegrayError(f"{uri} {what}; it must hold exactly one of: {layouts}")
    return DATASETS[found[0]].open(uri)


def read(dataset: Dataset, sample: Sample, *, choose: Choose = None) -> Labelled:
    """The pixels of a sample, in the bands that `choose` selects, and their mask, 255 where the pixels have no data.

    ImageError when a file cannot be read; LabelError when the sizes differ or the mask holds an unknown value.
    """
    raster = read_image(sample.image, part=sample.part, window=sample.window, choose=choose)
    mask = dataset.read_mask(sample)
    pixels, valid, want = raster.pixels, raster.valid, (raster.height, raster.width)
    have = mask.shape if sample.window is None else sample.size
    if have != want:
        raise LabelError(size_error(sample.mask, have=have, want=want, image=sample.image))
    if sample.window is not None and raster.window != sample.window:  # a picture is read whole
        rows, cols = sample.window.within(raster.window)
        pixels, valid = pixels[:, rows, cols].copy(), valid[rows, cols].copy()
    return Labelled(pixels=pixels, valid=valid, mask=np.where(valid, mask, np.uint8(IGNORE)))
