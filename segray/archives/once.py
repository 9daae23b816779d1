"""What documents name, each file once: of lists with millions of lines, some name a file again."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from segray.storage import File

AT_ONCE = 2**16  # files looked up together


def once(files: Iterable[File]) -> Iterator[File]:
    """The files in their order, less those that one before them names.

    Only 8 bytes are kept of each name. Two of 10 million have the same ones, so that the second is taken for the first,
    in 3 of a million lists that long.
    """
    rest, seen = iter(files), np.zeros(0, np.uint64)
    while batch := list(islice(rest, AT_ONCE)):
        digests = np.array([_digest(file.uri) for file in batch], np.uint64)
        distinct, first = np.unique(digests, return_index=True)
        places = np.searchsorted(seen, distinct)
        known = seen[np.minimum(places, len(seen) - 1)] == distinct if len(seen) else np.zeros(len(distinct), bool)
        seen = np.insert(seen, places[~known], distinct[~known])
        yield from (batch[number] for number in np.sort(first[~known]))


def _digest(uri: str) -> int:
    """8 bytes that stand for a file, under whichever of its names: the dots in a local path say nothing."""
    path = uri.removeprefix("file://")
    name = posixpath.normpath(path) if path.startswith("/") else uri
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
