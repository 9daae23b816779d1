"""Random crops of labelled images in batches, cut ahead of their use by threads.

Threads, not processes: object store clients and Ray workers do not survive a fork, and decoders and NumPy let other
threads run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from segray.augment import Augment, crop_sample
from segray.datasets import Labelled
from segray.masks import IGNORE
from segray.reading import in_order, memory_of
from segray.sampling import crop_generator, share

CACHE_BYTES = 2**30  # decoded images that a worker keeps, so that many crops of one image cost one decoding


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of one worker and step. pixels: (N, C, P, P) of the source's type; valid: (N, P, P) bool; mask: uint8."""

    pixels: torch.Tensor
    valid: torch.Tensor
    mask: torch.Tensor


def reading_threads(count: int) -> ThreadPoolExecutor:
    """Threads that read and crop; torch computes on one core in each, since the training step needs the others."""
    return ThreadPoolExecutor(count, thread_name_prefix="segray-read", initializer=torch.set_num_threads, initargs=(1,))


class ImageCache:
    """The last images used, up to a number of bytes; several threads that want one image read it once."""

    def __init__(self, read_image: Callable[[int], Labelled], *, max_bytes: int = CACHE_BYTES) -> None:
        self._read, self._max_bytes, self._bytes = read_image, max_bytes, 0
        self._images: OrderedDict[int, Labelled] = OrderedDict()
        self._reading: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def get(self, index: int) -> Labelled:
        """The image of that number."""
        with self._lock:
            reading = self._reading[index]
        with reading:
            with self._lock:
                if index in self._images:
                    self._images.move_to_end(index)
                    return self._images[index]
            labelled = self._read(index)
            with self._lock:
                self._keep(index, labelled)
            return labelled

    def _keep(self, index: int, labelled: Labelled) -> None:
        self._images[index] = labelled
        self._bytes += memory_of(labelled)
        while self._bytes > self._max_bytes:
            self._bytes -= memory_of(self._images.popitem(last=False)[1])


def void_batch(count: int, bands: int, crop: int) -> Batch:
    """A batch without a pixel that counts."""
    return Batch(
        pixels=torch.zeros((count, bands, crop, crop), dtype=torch.uint8),
        valid=torch.zeros((count, crop, crop), dtype=torch.bool),
        mask=torch.full((count, crop, crop), IGNORE, dtype=torch.uint8),
    )


@dataclass(frozen=True, kw_only=True)
class CropLoader:
    """The batches of one worker. positions per step and their order: see `sampling`."""

    cache: ImageCache
    augment: Augment
    pool: ThreadPoolExecutor
    batch_size: int
    rank: int
    world_size: int
    seed: int

    def batches(self, epoch: int, order: np.ndarray, first: int = 0) -> Iterator[Batch]:
        """This worker's crops of every step of an epoch from the `first` on, read ahead by two steps."""
        steps = len(order) // self.batch_size
        parts = [
            share(step, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)
            for step in range(first, steps)
        ]
        positions = (position for part in parts for position in part)
        ahead = 2 * len(parts[0])
        crops = in_order(lambda p: self._crop(epoch, p, int(order[p])), positions, pool=self.pool, ahead=ahead)
        for part in parts:
            yield _stack(list(islice(crops, len(part))))

    def _crop(self, epoch: int, position: int, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labelled = self.cache.get(image)
        rng = crop_generator(self.seed, epoch, position)
        return crop_sample(labelled.pixels, labelled.valid, labelled.mask, augment=self.augment, rng=rng)


def _stack(crops: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Batch:
    pixels, valid, mask = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*crops))
    return Batch(pixels=pixels, valid=valid, mask=mask)
