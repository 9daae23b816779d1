"""Reading labelled images as a network's input spec has them, and ahead of their use.

No torch here: whoever only inspects data starts in a second, not in ten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import numpy as np

from segray.datasets import Dataset, Labelled, Sample, read
from segray.inputs import InputSpec, check_pixels

Item, Result = TypeVar("Item"), TypeVar("Result")


def read_labelled(dataset: Dataset, sample: Sample, spec: InputSpec, *, explicit_bands: bool) -> Labelled:
    """A labelled image with the bands of the input spec, in its order; grey becomes three bands as viewers show it.

    ImageError, LabelError or MismatchError when image, mask or their types are not as they should be.
    """
    labelled = read(dataset, sample)
    pixels = labelled.pixels
    if pixels.shape[0] == 1 and pixels.dtype == np.uint8 and max(spec.bands) == 2:
        pixels = np.broadcast_to(pixels, (3, *labelled.valid.shape))
    bands = pixels.shape[0]
    check_pixels(spec, bands=bands, dtype=pixels.dtype, explicit_bands=explicit_bands, source=sample.image)
    return replace(labelled, pixels=pixels if spec.bands == tuple(range(bands)) else pixels[list(spec.bands)])


def memory_of(labelled: Labelled) -> int:
    """Bytes that a labelled image takes."""
    return labelled.pixels.nbytes + labelled.valid.nbytes + labelled.mask.nbytes


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Result]:
    """function(item) of each item, in order, at most `ahead` of them under way; its error is raised in its turn."""
    rest, running = iter(items), deque()
    try:
        running.extend(pool.submit(function, item) for item in islice(rest, ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result
    finally:
        for future in running:
            future.cancel()
