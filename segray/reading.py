"""Reading labelled images as a network's input spec has them, and ahead of their use.

No torch here: whoever only inspects data starts in a second, not in ten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from segray.archives.images import bands_for
from segray.archives.raster import Header
from segray.datasets import Dataset, Labelled, Sample, read
from segray.errors import MismatchError
from segray.inputs import InputSpec

Item, Result = TypeVar("Item"), TypeVar("Result")


def read_labelled(dataset: Dataset, sample: Sample, spec: InputSpec, *, explicit_bands: bool) -> Labelled:
    """A labelled image with the bands of the input spec, in its order; grey becomes three bands as viewers show it.

    ImageError, LabelError or MismatchError when image, mask or their types are not as they should be.
    """

    def choose(header: Header) -> tuple[int, ...]:
        if not spec.takes(np.dtype(header.dtype)):
            raise MismatchError(
                f"{sample.image} holds {header.dtype} values, but others of the labelled images {spec.expected}; "
                "convert one or the other, since a network knows one unit"
            )
        return bands_for(spec, header, explicit_bands=explicit_bands, source=sample.image)

    return read(dataset, sample, choose=choose)


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
