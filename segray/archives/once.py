"""What documents name, each file once: of lists with millions of lines, some name a file again."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from segray.storage import File

AT_ONCE = 250  # files looked up together
RECENT = 2**16  # digests that are kept apart, since each look-up adds some, and to add to all of them moves them all


def once(files: Iterable[File]) -> Iterator[File]:
    """The files in their order, less those that one before them names.

    Only 8 bytes are kept of each name. Two of 10 million have the same ones, so that the second is taken for the first,
    in 3 of a million lists that long.
    """
    rest, recent, older = iter(files), np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    while batch := list(islice(rest, AT_ONCE)):
        digests = np.array([_digest(file.uri) for file in batch], np.uint64)
        distinct, first = np.unique(digests, return_index=True)
        new = ~(_within(distinct, recent) | _within(distinct, older))
        recent = _merged(recent, distinct[new])
        if len(recent) >= RECENT:
            recent, older = recent[:0], _merged(older, recent)
        yield from (batch[number] for number in np.sort(first[new]))


def _within(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are among known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _merged(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Two sorted arrays as one."""
    return np.insert(known, np.searchsorted(known, values), values)


def _digest(uri: str) -> int:
    """8 bytes that stand for a file, under whichever of its names: the dots in a local path say nothing."""
    path = uri.removeprefix("file://")
    name = posixpath.normpath(path) if path.startswith("/") else uri
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
