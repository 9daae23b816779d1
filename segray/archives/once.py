"""The files that a document names, each once: a list of millions of lines may name a file twice."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from segray.storage import File

AT_ONCE = 250  # files looked up together
RECENT = 2**16  # digests kept in a smaller array, to which each look-up adds: adding to a sorted array moves all of it


def once(files: Iterable[File]) -> Iterator[File]:
    """The files in their order, without those that were named before.

    Only an 8-byte digest of each name is kept. In 3 of a million lists of 10 million names, two names have the same
    digest, and the second file is left out.
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
    """Which of the values are among the known ones; `known` is sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _merged(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Two sorted arrays as one."""
    return np.insert(known, np.searchsorted(known, values), values)


def _digest(uri: str) -> int:
    """8 bytes that stand for a file; a local path is normalised first, with or without file://."""
    path = uri.removeprefix("file://")
    name = posixpath.normpath(path) if path.startswith("/") else uri
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
