"""A stored file reads as a Python file does, within its limit; short jumps read on, long ones do not."""

from __future__ import annotations

import io
import os
import random

import numpy as np
import pytest
from web import served

from segray.archives.ranges import GAP_BYTES
from segray.archives.seekable import MAX_STEP_BYTES, STEP_BYTES, Seekable
from segray.errors import ImageError
from segray.storage import publish
from segray.uris import join

DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.mark.parametrize("length", [0, 1, 40_000, 3_000_000])
def test_it_reads_as_a_file_in_memory_does(store, length):
    uri, chance = join(store, "x.bin"), random.Random(length)
    publish(uri, DATA[:length])
    expected = io.BytesIO(DATA[:length])
    with Seekable(uri, limit=length) as file:
        assert (file.size, file.seek(0, os.SEEK_END), file.tell()) == (length, length, length)
        for _ in range(60):
            whence = chance.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            base = {os.SEEK_SET: 0, os.SEEK_CUR: file.tell(), os.SEEK_END: length}[whence]
            place = chance.randrange(length + 20) - base
            expected.seek(file.seek(place, whence))
            size = min(chance.choice([0, 1, 512, STEP_BYTES + 1, MAX_STEP_BYTES + 1]), length)
            assert file.read(size) == expected.read(size)
            assert file.tell() == expected.tell()
        assert (file.seek(0), file.read()) == (0, DATA[:length])


def test_limits(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(DATA)
    with Seekable(str(path), limit=100) as file:
        assert len(file.read(100)) == 100
        for size in (101, -1, -2):
            with pytest.raises(ValueError, match="exceed the 100 allowed"):
                file.read(size)
        with pytest.raises(OSError, match="before the beginning"):
            file.seek(-1)
        assert file.error is None
    with pytest.raises(FileNotFoundError):
        Seekable(str(tmp_path / "none"), limit=1)


@pytest.mark.parametrize("uri", ["/nowhere/a.tar", "memory://nowhere/a.tar"])
def test_a_file_that_cannot_be_opened_can_be_closed(uri):
    file = Seekable.__new__(Seekable)
    with pytest.raises(FileNotFoundError):
        file.__init__(uri, limit=1)
    file.close()  # as Python does once nobody refers to it; since 3.13 it shows the error of a `close` that fails


def test_a_file_that_becomes_shorter_while_it_is_read_is_damaged(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(DATA)
    with served(tmp_path) as address, Seekable(f"{address}/x.tar", limit=STEP_BYTES) as file:
        path.write_bytes(DATA[:1_000_000])
        file.seek(2_000_000)
        with pytest.raises(ImageError, match="x.tar changed while it was read; run again with --overwrite"):
            file.read(STEP_BYTES)


@pytest.mark.parametrize("jump, share", [(GAP_BYTES // 2, 1.0), (GAP_BYTES * 2, 0.15)])
def test_what_is_fetched_for_headers_that_lie_a_jump_apart(monkeypatch, jump, share):
    fetched, fetch = [], Seekable._fetch

    def counted(self, start, stop):
        fetched.append(stop - start)
        return fetch(self, start, stop)

    monkeypatch.setattr(Seekable, "_fetch", counted)
    publish("memory://seekable/x.bin", DATA)
    with Seekable("memory://seekable/x.bin", limit=512) as file:
        for place in range(0, len(DATA), jump):
            file.seek(place)
            assert file.read(512) == DATA[place : place + 512]
    assert sum(fetched) <= share * len(DATA)
    assert len(fetched) <= (15 if share == 1.0 else len(DATA) // jump + 1)
