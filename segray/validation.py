"""Validation: whole images through the segmenter that deployment uses, counted in one confusion matrix."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from segray.datasets import Labelled, Sample
from segray.metrics import confusion_matrix
from segray.reading import in_order
from segray.regions import Region, whole_image
from segray.report import Picture, for_eyes
from segray.segmenter import Segmenter

PICTURE_SIDE = 320  # pixels, at most: a page has several of each image
AHEAD = 4  # images read ahead


def validate(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    *,
    shown: Collection[Sample],
    read: Callable[[Sample], Labelled],
    pool: ThreadPoolExecutor,
) -> tuple[np.ndarray, list[Picture]]:
    """(K, K + 1) int64 confusion matrix over the samples, each once, and small pictures of those that are shown.

    read: gives the bands of the segmenter's input spec. Without samples the matrix is 0.
    """
    matrix = np.zeros((segmenter.num_classes, segmenter.num_classes + 1), np.int64)
    pictures = []
    images = in_order(read, samples, pool=pool, ahead=AHEAD)
    for sample, (labelled, mask) in zip(samples, masks(segmenter, images)):
        matrix += confusion_matrix(labelled.mask, mask, segmenter.num_classes)
        if sample in shown:
            image = for_eyes(labelled.pixels, labelled.valid)
            picture = Picture(title=sample.key, image=image, mask=mask, truth=labelled.mask)
            pictures.append(picture.shrunk(PICTURE_SIDE))
    return matrix, pictures


def masks(segmenter: Segmenter, images: Iterable[Labelled]) -> Iterator[tuple[Labelled, np.ndarray]]:
    """Each image with its (H, W) uint8 mask; batches of tiles run across images."""
    waiting: deque[Labelled] = deque()

    def regions() -> Iterator[Region]:
        for labelled in images:
            waiting.append(labelled)
            yield whole_image(labelled.pixels, labelled.valid)

    for (window_mask,) in segmenter.segment(regions()):
        yield waiting.popleft(), window_mask.mask
