"""Validation with the segmenter that segmentation uses, large images block by block, in one confusion matrix."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from segray.datasets import Labelled, Sample
from segray.grid import Lattice, read_extent
from segray.metrics import confusion_matrix
from segray.ordered import in_order
from segray.regions import Region, unless_all, whole_image
from segray.report import Picture, for_eyes
from segray.segmenter import Segmenter

PICTURE_SIDE = 320  # pixels at most: the page has several pictures of each image
AHEAD = 4  # images read ahead


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A sample to validate. labelled: the sample itself. region: what the network sees, beyond a block's edges too."""

    sample: Sample
    labelled: Labelled
    region: Region


def validate(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    *,
    shown: Collection[Sample],
    read: Callable[[Sample], Labelled],
    pool: ThreadPoolExecutor,
) -> tuple[np.ndarray, list[Picture]]:
    """(K, K + 1) int64 confusion matrix over the samples, each once, and small pictures of those in `shown`.

    A sample with a window is a block of a large scene: its mask is the same as in the mask of the whole scene. read:
    gives the bands of the segmenter's input spec. Without samples the matrix is 0.
    """
    matrix = np.zeros((segmenter.num_classes, segmenter.num_classes + 1), np.int64)
    pictures = []
    truths = in_order(partial(_truth, read=read, lattice=segmenter.lattice), samples, pool=pool, ahead=AHEAD)
    for truth, mask in masks(segmenter, truths):
        labelled, sample = truth.labelled, truth.sample
        matrix += confusion_matrix(labelled.mask, mask, segmenter.num_classes)
        if sample in shown:
            image = for_eyes(labelled.pixels, labelled.valid)
            picture = Picture(title=title_of(sample), image=image, mask=mask, truth=labelled.mask)
            pictures.append(picture.shrunk(PICTURE_SIDE))
    return matrix, pictures


def masks(segmenter: Segmenter, truths: Iterable[Truth]) -> Iterator[tuple[Truth, np.ndarray]]:
    """Each sample with its (H, W) uint8 mask; a batch may hold tiles of several samples."""
    waiting: deque[Truth] = deque()

    def regions() -> Iterator[Region]:
        for truth in truths:
            waiting.append(truth)
            yield truth.region

    for (window_mask,) in segmenter.segment(regions()):
        yield waiting.popleft(), window_mask.mask


def _truth(sample: Sample, *, read: Callable[[Sample], Labelled], lattice: Lattice) -> Truth:
    block = sample.window
    if block is None:
        labelled = read(sample)
        return Truth(sample=sample, labelled=labelled, region=whole_image(labelled.pixels, labelled.valid))
    height, width = sample.size
    extent = read_extent(block, height=height, width=width, lattice=lattice)
    around = read(replace(sample, window=extent))
    rows, cols = block.within(extent)
    labelled = Labelled(
        pixels=around.pixels[:, rows, cols], valid=around.valid[rows, cols], mask=around.mask[rows, cols]
    )
    region = Region(
        height=height,
        width=width,
        block=block,
        windows=(block,),
        extent=extent,
        pixels=around.pixels,
        valid=unless_all(around.valid),
    )
    return Truth(sample=sample, labelled=labelled, region=region)


def title_of(sample: Sample) -> str:
    """The title of a sample's picture, unique to it."""
    window = sample.window
    return sample.key if window is None else f"{sample.key}, from row {window.row_off}, column {window.col_off}"
