"""Ranges are the file's bytes, whatever the store; failures of the store and truncated files are remembered."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

from segray.archives import ranges
from segray.archives.ranges import StoredFile, read_range
from segray.errors import ImageError
from segray.storage import publish
from segray.uris import join

DATA = np.random.default_rng(0).bytes(50_000)


class FragileFileSystem(MemoryFileSystem):
    """Files in memory whose reads fail from the byte `fails_from` on."""

    protocol = "fragile"
    store: dict = {}
    fails_from = 0

    def cat_file(self, path, start=None, end=None, **options):
        if start >= self.fails_from:
            raise OSError("the store is down")
        return super().cat_file(path, start=start, end=end, **options)


@pytest.fixture
def small_pieces(monkeypatch):
    """Limits so small that 50 kB are a large file."""
    for name, value in (("WHOLE_BYTES", 1000), ("PIECE_BYTES", 700), ("GAP_BYTES", 90), ("PAGE_BYTES", 300)):
        monkeypatch.setattr(ranges, name, value)


@pytest.mark.parametrize("limit", [1000, 50_000, 50_001])  # below, at and above the file's size
def test_ranges_are_the_bytes_of_the_file(store, small_pieces, monkeypatch, limit):
    monkeypatch.setattr(ranges, "WHOLE_BYTES", limit)
    uri, chance = join(store, "x.bin"), random.Random(0)
    publish(uri, DATA)
    if "://" not in uri:
        uri = f"file://{uri}"
    file = StoredFile(uri, header_only=False)
    assert (file.size(), file.is_whole) == (50_000, limit > 50_000)
    for count in (1, 2, 30):
        starts = [chance.randrange(49_000) for _ in range(count)]
        sizes = [chance.choice([1, 5, 300, 1000]) for _ in range(count)]
        expected = [DATA[start : start + size] for start, size in zip(starts, sizes)]
        assert file.read_ranges(starts, sizes) == expected
        assert [file.read(start, size) for start, size in zip(starts, sizes)] == expected
    assert file.read(0, 10**6) == DATA
    assert (file.read(49_990, 100), file.read(60_000, 5)) == (DATA[-10:], b"")
    assert file.error is None
    file.close()


@pytest.mark.parametrize("limit", [1000, 10**6])
def test_ranges_beyond_the_end_are_an_error(small_pieces, monkeypatch, limit):
    monkeypatch.setattr(ranges, "WHOLE_BYTES", limit)
    publish("memory://ranges/x.bin", DATA)
    file = StoredFile("memory://ranges/x.bin", header_only=False)
    assert file.read_ranges([49_990, 10], [20, 5]) == [DATA[-10:] + bytes(10), DATA[10:15]]
    assert "50000 bytes" in str(file.error)
    assert "50010" in str(file.error)


def test_a_failing_store_is_remembered_after_retries(small_pieces, no_pause, monkeypatch):
    register_implementation("fragile", FragileFileSystem, clobber=True)
    monkeypatch.setattr(FragileFileSystem, "fails_from", 10**9)
    publish("fragile://x.bin", DATA)
    file = StoredFile("fragile://x.bin", header_only=False)
    monkeypatch.setattr(FragileFileSystem, "fails_from", 2000)
    assert file.read_ranges([10, 1990, 9000], [20, 5, 20]) == [DATA[10:30], DATA[1990:1995], bytes(20)]
    assert (str(file.error), no_pause) == ("the store is down", [0.2, 0.8, 3.2])


def test_a_file_that_changes_is_never_read_in_part(s3, small_pieces):
    uri = join(s3, "changing.bin")
    publish(uri, DATA)
    file = StoredFile(uri, header_only=False)
    assert not file.changed()
    publish(uri, DATA[::-1])
    assert file.changed()
    assert file.read_ranges([5000], [10]) == [bytes(10)]
    assert isinstance(file.error, ImageError)
    assert "changed while it was read" in str(file.error)


def test_one_range_is_the_bytes_of_the_file(store):
    uri = join(store, "x.bin")
    publish(uri, DATA)
    for start, size in ((0, 50_000), (0, 1), (49_990, 10), (49_990, 500), (50_000, 5), (60_000, 5), (7, 0)):
        assert read_range(uri, start, size) == DATA[start : start + size]
    with pytest.raises(ImageError, match=r"none\.bin cannot be read: it does not exist"):
        read_range(join(store, "none.bin"), 0, 5)


def test_missing_and_empty_files(store):
    prefix = "" if "://" in store else "file://"
    with pytest.raises(FileNotFoundError):
        StoredFile(prefix + join(store, "none.bin"), header_only=True)
    publish(join(store, "empty.bin"), b"")
    assert StoredFile(prefix + join(store, "empty.bin"), header_only=True).size() == 0
