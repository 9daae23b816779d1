"""PMTiles version 3 on any store: raster tiles in one file, read by range; its directories are cached."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from pmtiles.tile import (
    Compression,
    MagicNumberNotFound,
    SpecVersionUnsupported,
    TileType,
    deserialize_header,
    zxy_to_tileid,
)

from segray.archives.kept import Kept
from segray.archives.pmtiles_directory import MAX_BYTES, Directory, first_id, parse, places, unpack
from segray.archives.ranges import StoredFile
from segray.archives.xyz import MAX_ZOOM
from segray.errors import ImageError
from segray.uris import local_path

HEADER_BYTES = 127
MAX_DEPTH = 3  # directories on the way to a tile, besides the root
KEPT_DIRECTORIES = 64
MAX_TILE_BYTES = 2**26
TILES_AT_ONCE = 2**16
VECTOR = (TileType.MVT, TileType.MLT)
RASTER = (TileType.PNG, TileType.JPEG, TileType.WEBP)


class PMTiles:
    """A PMTiles file. Any number of threads may use it."""

    def __init__(self, uri: str, etag: str = "") -> None:
        """Read its header; ImageError when it is not PMTiles or has no raster tiles, else the store's own error."""
        self.uri = uri
        path = local_path(uri)
        self._fetch = self._local(path) if path else StoredFile(uri, header_only=True).fetch
        this = weakref.proxy(self)  # in a cycle, the file would stay open until Python looks for such
        self._directories: Kept[tuple[int, int], Directory] = Kept(lambda at: this._load(*at), most=KEPT_DIRECTORIES)
        with self._one_sentence():
            self._header = deserialize_header(self._bytes(0, HEADER_BYTES, what="header"))
        self._check_type()

    def zooms(self) -> list[int]:
        """The zoom levels that have tiles, ascending; ImageError when a directory is damaged."""
        levels = range(self._header["min_zoom"], min(self._header["max_zoom"], MAX_ZOOM) + 1)
        return [zoom for zoom in levels if next(self._runs(zoom), None) is not None]

    def tiles(self, zoom: int) -> Iterator[tuple[int, int]]:
        """(x, y) of the level's tiles in the order of their ids; ImageError when a directory is damaged."""
        for ids in _together(self._runs(zoom)):
            x, y = places(ids, zoom)
            yield from zip(x.tolist(), y.tolist())

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        """The bytes of a tile, None when there is no such tile; ImageError on damage, else the store's error."""
        tile_id, place = zxy_to_tileid(zoom, x, y), self._root
        with self._one_sentence():
            for _ in range(MAX_DEPTH + 1):
                directory = self._directories.get(place)
                entry = directory.find(tile_id)
                if entry is None:
                    return None
                offset, length = int(directory.offsets[entry]), int(directory.lengths[entry])
                if directory.runs[entry]:
                    _check_length(length, MAX_TILE_BYTES, what=f"tile {zoom}/{x}/{y}")
                    start = self._header["tile_data_offset"] + offset
                    return self._bytes(start, length, what=f"tile {zoom}/{x}/{y}")
                place = self._leaf(offset, length)
            raise ValueError(f"its directories are more than {MAX_DEPTH} deep")

    @property
    def _root(self) -> tuple[int, int]:
        return self._header["root_offset"], self._header["root_length"]

    def _leaf(self, offset: int, length: int) -> tuple[int, int]:
        return self._header["leaf_directory_offset"] + offset, length

    def _runs(self, zoom: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of the ids of a level that have tiles, ascending."""
        low, high = first_id(zoom), first_id(zoom + 1)
        with self._one_sentence():
            yield from self._walk(self._root, low, high, depth=0)

    def _walk(self, place: tuple[int, int], low: int, high: int, *, depth: int) -> Iterator[tuple[int, int]]:
        """The runs within [low, high) of a directory and its leaves.

        A leaf may only hold ids from its entry's up to the next entry's, else ValueError: so no leaf is visited twice,
        and no cycle is followed.
        """
        if depth > MAX_DEPTH:
            raise ValueError(f"its directories are more than {MAX_DEPTH} deep")
        directory = self._directories.get(place)
        first = max(0, int(np.searchsorted(directory.ids, low, side="right")) - 1)
        last = int(np.searchsorted(directory.ids, high))
        for entry in range(first, last):
            start, run = int(directory.ids[entry]), int(directory.runs[entry])
            if run:
                if max(start, low) < min(start + run, high):
                    yield max(start, low), min(start + run, high)
                continue
            leaf = self._leaf(int(directory.offsets[entry]), int(directory.lengths[entry]))
            end = int(directory.ids[entry + 1]) if entry + 1 < len(directory.ids) else None
            self._check_leaf(leaf, start, end)
            yield from self._walk(leaf, low, high if end is None else min(high, end), depth=depth + 1)

    def _check_leaf(self, leaf: tuple[int, int], start: int, end: int | None) -> None:
        found = self._directories.get(leaf)
        last = int(found.ids[-1] + max(found.runs[-1], 1))
        if found.ids[0] < start or (end is not None and last > end):
            raise ValueError("a leaf directory holds tile ids of another")

    def _local(self, path: str) -> Callable[[int, int], bytes]:
        """A function that reads [start, stop) of a local file; it stays open, so all bytes are of one version."""
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return lambda start, stop: os.pread(file, stop - start, start)

    def _load(self, offset: int, length: int) -> Directory:
        _check_length(length, MAX_BYTES, what="a directory")
        packed = self._bytes(offset, length, what="a directory")
        return parse(unpack(packed, gzipped=self._header["internal_compression"] == Compression.GZIP))

    def _bytes(self, offset: int, length: int, *, what: str) -> bytes:
        if offset + length > sys.maxsize:  # a header has 64 bits for a position, an operating system 63
            raise ValueError(f"its {what.removeprefix('a ')} is said to lie at byte {offset}")
        data = self._fetch(offset, offset + length)
        if len(data) != length:
            raise ValueError(f"its {what.removeprefix('a ')} is cut off at byte {offset + len(data)}")
        return data

    def _check_type(self) -> None:
        kind, packing = self._header["tile_type"], self._header["internal_compression"]
        if kind in VECTOR:
            raise ImageError(f"{self.uri} holds vector tiles ({kind.name.lower()}); give raster tiles: png, jpg, webp")
        if kind not in RASTER:
            raise ImageError(f"{self.uri} holds tiles of the type {kind.name.lower()}; segray reads png, jpg, webp")
        if packing not in (Compression.GZIP, Compression.NONE):
            raise ImageError(f"{self.uri} has directories packed with {packing.name.lower()}; rewrite it with gzip")
        if self._header["tile_compression"] not in (Compression.NONE, Compression.UNKNOWN):
            raise ImageError(f"{self.uri} has tiles that are compressed a second time; rewrite it without")

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except (MagicNumberNotFound, UnicodeDecodeError) as error:
            raise ImageError(f"{self.uri} is not a PMTiles file: it does not begin like one") from error
        except SpecVersionUnsupported as error:
            raise ImageError(
                f"{self.uri} is PMTiles of another version than 3; convert it with `pmtiles convert`"
            ) from error
        except ValueError as error:
            raise ImageError(f"{self.uri} cannot be read as PMTiles: {error}") from error


def _together(runs: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The ids in runs, about `TILES_AT_ONCE` at a time: most runs are of one tile."""
    held, count = [], 0
    for start, stop in runs:
        for first in range(start, stop, TILES_AT_ONCE):
            held.append(np.arange(first, min(first + TILES_AT_ONCE, stop)))
            count += len(held[-1])
            if count >= TILES_AT_ONCE:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _check_length(length: int, most: int, *, what: str) -> None:
    if not 0 < length <= most:
        raise ValueError(f"{what} has {length} bytes")
