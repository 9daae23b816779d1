"""Random crops of labelled images in batches, cut in advance by threads.

Threads, not processes: object store clients and Ray workers do not survive a fork, and decoders and NumPy release the
interpreter lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch

from segray.archives.kept import Kept
from segray.augment import Augment, crop_sample
from segray.datasets import Labelled
from segray.masks import IGNORE
from segray.ordered import in_order
from segray.reading import memory_of
from segray.sampling import ANY, crop_generator, pixel_of, share

MAX_READERS = 8  # even with 16 cores: 16 threads wait for the interpreter, and cut a fifth fewer crops
BATCHES_AHEAD = 2  # cut in advance
IMAGES_AHEAD = 512  # crops whose images are read in advance: an image of 4 Mpx takes half a second from a store
READERS_AHEAD = 4
CACHE_BYTES = 2**30  # of decoded images that a worker keeps, so that many crops of one image cost one decoding


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of one worker and step. pixels: (N, C, P, P) of the source's type; valid: (N, P, P) bool; mask: uint8."""

    pixels: torch.Tensor
    valid: torch.Tensor
    mask: torch.Tensor


class _Crop(NamedTuple):
    """A crop to cut: epoch, from 1; position in the epoch's order; image; the class that it must hold, or ANY."""

    epoch: int
    position: int
    image: int
    label: int


def reader_count(cores: int) -> int:
    """How many threads read and crop for a worker with that many cores."""
    return min(MAX_READERS, 2 * cores)


def reading_threads(count: int) -> ThreadPoolExecutor:
    """Threads that read and crop; torch uses one core in each, since the training step needs the others."""
    return ThreadPoolExecutor(count, thread_name_prefix="segray-read", initializer=torch.set_num_threads, initargs=(1,))


class ImageCache(Kept[int, Labelled]):
    """The most recently used images, up to a number of bytes; an image that several threads want is read once.

    Separate threads read images in advance: crops of images already there need not wait for them.
    """

    def __init__(self, read_image: Callable[[int], Labelled], *, max_bytes: int = CACHE_BYTES) -> None:
        super().__init__(read_image, most=max_bytes, size=memory_of)
        self._ahead = ThreadPoolExecutor(READERS_AHEAD, thread_name_prefix="segray-ahead")

    def read_ahead(self, index: int) -> Future | None:
        """Begin to read an image unless it is there; an error is left for `get`, which reads it again, to raise."""
        with self._lock:
            there = index in self._values
        return None if there else self._ahead.submit(self.get, index)

    def room(self) -> int:
        """How many images may be read ahead: as many of mean size as fill half of the bytes; 1 before any was read."""
        with self._lock:
            return max(1, self._most // 2 * len(self._values) // max(1, self._taken))


def void_batch(count: int, bands: int, crop: int) -> Batch:
    """A batch in which no pixel counts."""
    return Batch(
        pixels=torch.zeros((count, bands, crop, crop), dtype=torch.uint8),
        valid=torch.zeros((count, crop, crop), dtype=torch.bool),
        mask=torch.full((count, crop, crop), IGNORE, dtype=torch.uint8),
    )


@dataclass(frozen=True, kw_only=True)
class CropLoader:
    """The batches of one worker. Which crops make a step, and in which order: see `sampling`."""

    cache: ImageCache
    augment: Augment
    pool: ThreadPoolExecutor
    batch_size: int
    rank: int
    world_size: int
    seed: int

    def batches(self, order: Callable[[int], np.ndarray], *, steps: range, per_epoch: int) -> Iterator[Batch]:
        """This worker's crops of some steps, cut in advance: those of the next epoch while one is validated.

        order: epoch (from 1) -> (positions, 2): the image of each crop, and the class that it must hold or ANY (see
        `sampling`). steps: numbered from the start of the training; per_epoch: how many of them make an epoch.
        """
        count = len(self._share(0))
        coming = self._reading_ahead(self._crops(order, steps, per_epoch))
        crops = in_order(self._cut, coming, pool=self.pool, ahead=BATCHES_AHEAD * count)
        with ThreadPoolExecutor(1, thread_name_prefix="segray-stack") as beside:  # the step need not wait for a copy
            yield from in_order(lambda _: _stack(list(islice(crops, count))), steps, pool=beside, ahead=1)

    def _share(self, index: int) -> range:
        return share(index, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)

    def _crops(self, order: Callable[[int], np.ndarray], steps: range, per_epoch: int) -> Iterator[_Crop]:
        """This worker's crops of the steps, one by one."""
        for epoch, of_epoch in groupby(steps, key=lambda step: 1 + step // per_epoch):
            rows = order(epoch)
            for step in of_epoch:
                for position in self._share(step % per_epoch):
                    yield _Crop(epoch, position, *rows[position].tolist())

    def _reading_ahead(self, crops: Iterator[_Crop]) -> Iterator[_Crop]:
        """The crops one by one; meanwhile the images of the next ones are read, unless they are already there."""
        coming, futures = deque(), {}
        try:
            while True:
                while len(coming) < IMAGES_AHEAD and len(futures) < self.cache.room() and (crop := next(crops, None)):
                    coming.append(crop)
                    if crop.image not in futures and (future := self.cache.read_ahead(crop.image)):
                        futures[crop.image] = future
                if not coming:
                    return
                futures.pop(coming[0].image, None)
                yield coming.popleft()
        finally:
            for future in futures.values():
                future.cancel()

    def _cut(self, crop: _Crop) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labelled = self.cache.get(crop.image)
        rng = crop_generator(self.seed, crop.epoch, crop.position)
        around = None if crop.label == ANY else pixel_of(labelled.mask, crop.label, rng)
        return crop_sample(labelled.pixels, labelled.valid, labelled.mask, augment=self.augment, rng=rng, around=around)


def _stack(crops: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Batch:
    pixels, valid, mask = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*crops))
    return Batch(pixels=pixels, valid=valid, mask=mask)
