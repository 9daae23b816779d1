"""Which crops make up a training step: pure functions of seed, epoch and step, for any number of workers."""

from __future__ import annotations

import numpy as np

# What random numbers are drawn for, so that no two streams of one seed and epoch coincide. Never 0: NumPy ignores
# trailing zeros of a seed.
ORDER, CROP, WORKER, BALANCE = 1, 2, 3, 4
ANY = -1  # in place of a class: the crop may hold any


def steps_per_epoch(images: int, *, crops_per_image: int, batch_size: int) -> int:
    """Whole batches in one pass over the crops, at least 1."""
    return max(1, images * crops_per_image // batch_size)


def epoch_order(
    images: int, *, crops_per_image: int, positions: int, together: int, seed: int, epoch: int
) -> np.ndarray:
    """(positions,) int64: the image that each crop of an epoch is cut from.

    A random permutation of images x crops_per_image crops, cut off (or, if there are too few, repeated) at
    `positions`. Crops are mixed only within groups of `together` images, so that an image with many crops is decoded
    only once if such a group fits into memory.
    """
    rng = np.random.default_rng([seed, epoch, ORDER])
    shuffled = rng.permutation(images)
    if crops_per_image > 1:
        groups = (np.repeat(shuffled[k : k + together], crops_per_image) for k in range(0, images, together))
        shuffled = np.concatenate([rng.permutation(group) for group in groups])
    return np.resize(shuffled, positions)


def balanced(
    order: np.ndarray, counts: np.ndarray, *, part: float, span: int, crops: int, seed: int, epoch: int
) -> np.ndarray:
    """(positions, 2) int64: an epoch's order, part of it redrawn by class, and the class a crop must hold, or ANY.

    counts: (images, K) pixels of each class. part: probability that a crop is drawn by class: first a class, all that
    occur being equally likely, then an image in proportion to its pixels of the class. Within a span of positions
    each drawn image gives `crops` crops, since it must be decoded for them.
    """
    result = np.stack([order, np.full(len(order), ANY)], axis=1)
    if not counts.any():
        return result
    rng = np.random.default_rng([seed, epoch, BALANCE])
    present = np.flatnonzero(counts.sum(axis=0))
    heaps = np.cumsum(counts, axis=0)
    for start in range(0, len(order), span):
        chosen = start + np.flatnonzero(rng.random(min(span, len(order) - start)) < part)
        draws = -(-len(chosen) // crops)
        classes = rng.choice(present, draws)
        pixels = rng.integers(heaps[-1, classes])  # the number of one of all pixels of the class
        images = np.zeros(draws, np.int64)
        for label in present:
            of_class = classes == label
            images[of_class] = np.searchsorted(heaps[:, label], pixels[of_class], side="right")
        drawn = np.repeat(np.stack([images, classes], axis=1), crops, axis=0)
        result[chosen] = rng.permutation(drawn)[: len(chosen)]
    return result


def pixel_of(mask: np.ndarray, label: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """(row, column) of a random pixel of that class in an (H, W) mask, all equally likely; None if there is none."""
    found = mask == label
    ends = np.cumsum(np.count_nonzero(found, axis=1))
    if not ends[-1]:
        return None
    number = int(rng.integers(ends[-1]))
    row = int(np.searchsorted(ends, number, side="right"))
    return row, int(np.flatnonzero(found[row])[number - ends[row]])  # a negative index: from the end of the row


def share(step: int, *, batch_size: int, rank: int, world_size: int) -> range:
    """Positions in the epoch's order of the crops of a step that one worker takes: every world_size-th."""
    return range(step * batch_size + rank, (step + 1) * batch_size, world_size)


def crop_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random generator of one crop."""
    return np.random.default_rng([seed, epoch, CROP, position])


def worker_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's own randomness (dropout) in a step, counted from the start of the training."""
    return int(np.random.default_rng([seed, step, WORKER, rank]).integers(2**62))
