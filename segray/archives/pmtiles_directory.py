"""The directories of PMTiles version 3 and its tile ids (https://github.com/protomaps/PMTiles, spec/v3), as arrays.

A level of a large set has 10^7 tiles: entry by entry, Python would take minutes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

MAX_BYTES = 2**24  # of a directory, packed or not; the specification limits root directories to 16 kB
MAX_VARINT_BYTES = 9  # 63 bits: more than any file has bytes, or any level tiles
GZIP = 16 + zlib.MAX_WBITS


@dataclass(frozen=True, kw_only=True)
class Directory:
    """Entries in order of their tile ids, (n,) int64 each: first id, tile count (0: a leaf directory), offset, length.

    Offsets are bytes from the start of the tile data or of the leaf directories.
    """

    ids: np.ndarray
    runs: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def find(self, tile_id: int) -> int | None:
        """The entry that has a tile or leads to it, None when there is none."""
        place = int(np.searchsorted(self.ids, tile_id, side="right")) - 1
        if place < 0 or (self.runs[place] and tile_id >= self.ids[place] + self.runs[place]):
            return None
        return place


def unpack(data: bytes, *, gzipped: bool) -> bytes:
    """The uncompressed bytes of a directory; ValueError when it is damaged, or unpacks to more than `MAX_BYTES`."""
    if gzipped:
        unpacking = zlib.decompressobj(GZIP)
        try:
            data = unpacking.decompress(data, MAX_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if unpacking.unconsumed_tail:
            raise ValueError(f"a directory has more than {MAX_BYTES} bytes")
        if not unpacking.eof:
            raise ValueError("a directory is cut off")
    return data


def parse(data: bytes) -> Directory:
    """The entries of an unpacked directory; ValueError unless their ids ascend and their lengths make sense."""
    numbers = varints(data)
    count = int(numbers[0]) if len(numbers) else 0
    if count < 1 or len(numbers) != 4 * count + 1:
        raise ValueError(f"a directory says that it has {count} entries, but holds {len(numbers)} numbers")
    steps, runs, lengths, places = numbers[1:].reshape(4, count)
    ids = np.cumsum(steps)
    ends = ids + np.maximum(runs, 1)
    if (ids < 0).any() or (ends <= ids).any() or (ids[1:] < ends[:-1]).any():
        raise ValueError("the tile ids of a directory do not ascend")
    if (lengths < 1).any() or places[0] < 1:
        raise ValueError("an entry of a directory has no place")
    # 0 means: directly after the previous entry
    base = np.maximum.accumulate(np.where(places > 0, np.arange(count), 0))
    before = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    offsets = places[base] - 1 + before - before[base]
    if (offsets < 0).any():
        raise ValueError("an entry of a directory has no place")
    return Directory(ids=ids, runs=runs, offsets=offsets, lengths=lengths)


def varints(data: bytes) -> np.ndarray:
    """(n,) int64: the LEB128 numbers in some bytes; ValueError when the last is cut off or one has over 63 bits."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if len(octets) and (not len(ends) or ends[-1] != len(octets) - 1):
        raise ValueError("a directory is cut off")
    sizes = np.diff(ends, prepend=-1)
    if len(sizes) and sizes.max() > MAX_VARINT_BYTES:
        raise ValueError(f"a number in a directory has {sizes.max()} bytes")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(int(sizes.max(initial=0))):
        has = sizes > place
        numbers[has] |= (octets[(ends - sizes + 1)[has] + place] & 0x7F).astype(np.int64) << (7 * place)
    return numbers


def first_id(zoom: int) -> int:
    """The id of the first tile of a level: the number of tiles of all lower zoom levels."""
    return (4**zoom - 1) // 3


def places(ids: np.ndarray, zoom: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 x and y of tile ids of one level: decoded along the Hilbert curve, from its finest turns up."""
    rest = ids - first_id(zoom)
    x, y = np.zeros_like(rest), np.zeros_like(rest)
    for level in range(zoom):
        side = 1 << level
        right, down = (rest >> 1) & 1, (rest ^ (rest >> 1)) & 1
        flip = (down == 0) & (right == 1)
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(down == 0, y, x), np.where(down == 0, x, y)
        x, y, rest = x + side * right, y + side * down, rest >> 2
    return x, y
