"""Which crops make up a training step: pure functions of seed, epoch and step, whatever the number of workers."""

from __future__ import annotations

import numpy as np

# What a number is drawn for, so that no two streams of one seed and epoch coincide. Never 0: NumPy takes trailing
# zeros of a seed for absent ones.
ORDER, CROP, WORKER = 1, 2, 3


def steps_per_epoch(images: int, *, crops_per_image: int, batch_size: int) -> int:
    """Whole batches in one pass over the crops, at least 1."""
    return max(1, images * crops_per_image // batch_size)


def epoch_order(
    images: int, *, crops_per_image: int, positions: int, together: int, seed: int, epoch: int
) -> np.ndarray:
    """(positions,) int64: the image that each crop of an epoch is cut from.

    A random permutation of images x crops_per_image crops, cut off (or, when there are too few, repeated) at
    `positions`. Crops of `together` images are mixed with each other only, so that an image from which many crops are
    cut needs to be decoded but once while those images fit into memory.
    """
    rng = np.random.default_rng([seed, epoch, ORDER])
    shuffled = rng.permutation(images)
    if crops_per_image > 1:
        groups = (np.repeat(shuffled[k : k + together], crops_per_image) for k in range(0, images, together))
        shuffled = np.concatenate([rng.permutation(group) for group in groups])
    return np.resize(shuffled, positions)


def share(step: int, *, batch_size: int, rank: int, world_size: int) -> range:
    """Positions in the epoch's order of those crops of a step that one worker takes: every world_size-th."""
    return range(step * batch_size + rank, (step + 1) * batch_size, world_size)


def crop_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random generator of one crop."""
    return np.random.default_rng([seed, epoch, CROP, position])


def worker_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's own randomness in a step of the whole training (dropout)."""
    return int(np.random.default_rng([seed, step, WORKER, rank]).integers(2**62))
