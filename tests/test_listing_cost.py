"""How many requests listing and reading containers takes."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png
from containers import BODIES, CHANCE, WRITERS, body, container_of, put, tar_of
from fsspec import AbstractFileSystem, register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.core import S3File

from segray.archives import tables, tars, zips
from segray.archives.options import ArchiveOptions
from segray.expand import SMALL_PICTURE_BYTES, Cutting, expand
from segray.inputs import InputSpec
from segray.listing import _walk_s3, list_files
from segray.storage import File, publish
from segray.uris import join

pytestmark = pytest.mark.usefixtures("own_copies")


class CountingFileSystem(AbstractFileSystem):
    """A local file as a store without a cache, which counts its requests."""

    protocol = "counting"
    requests: list[int] = []
    broken = False

    def info(self, path, **options):
        return {"name": path, "size": os.stat(path).st_size, "type": "file", "mtime": 1.0}

    def cat_file(self, path, start=None, end=None, **options):
        if self.broken:
            raise OSError("the store is down")
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        self.requests.append(len(data))
        return data


@pytest.fixture
def counting(monkeypatch, no_pause):
    """The sizes of the requests made so far."""
    register_implementation("counting", CountingFileSystem, clobber=True)
    requests: list[int] = []
    monkeypatch.setattr(CountingFileSystem, "requests", requests)
    return requests


def file_of(path: Path) -> File:
    """A local file as a file of the counting store."""
    return File(f"counting://{path}", path.stat().st_size, "1")


@pytest.mark.parametrize("size", [200, 100_000])
def test_a_tar_of_20_000_members_is_listed_by_its_headers(tmp_path, counting, size):
    path, count = tmp_path / "a.tar", 20_000
    with path.open("wb") as out:  # the bodies are holes in a sparse file
        for k in range(count):
            info = tarfile.TarInfo(f"{k:05d}.jpg")
            info.size = size
            out.write(info.tobuf())
            out.seek(-(-size // 512) * 512, 1)
        out.write(bytes(1024))
    found = list(tars.members(file_of(path)))
    assert len(found) == count
    assert found[-1].part == f"{path.stat().st_size - 1024 - -(-size // 512) * 512}+{size}"
    if size == 200:
        assert len(counting) < 50  # short members do not take a request each
    else:
        assert sum(counting) < path.stat().st_size * 0.05
        assert len(counting) < count + 10


def test_a_zip_of_20_000_members_is_listed_by_its_directory(tmp_path, counting):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(20_000):
            archive.writestr(f"{k:05d}.jpg", bytes(1000))
    found = list(zips.members(file_of(path)))
    assert (len(found), found[-1].uri) == (20_000, f"zip://19999.jpg::counting://{path}")
    assert sum(counting) < 20_000 * 80
    assert len(counting) < 6
    counting.clear()
    assert zips.read(f"counting://{path}", found[-1].part) == bytes(1000)
    assert len(counting) == 1


def test_a_table_is_listed_by_its_footer_and_a_row_group_is_read_once(tmp_path, counting):
    path = tmp_path / "a.parquet"
    images = [CHANCE.bytes(10_000) for _ in range(2000)]
    pq.write_table(pa.table({"image": pa.array(images)}), path, row_group_size=500)
    found = list(tables.members(file_of(path)))
    assert len(found) == 2000
    assert sum(counting) < 200_000
    counting.clear()
    assert [tables.read(f"counting://{path}", member.part) for member in found] == images
    assert sum(counting) < 1.1 * path.stat().st_size


def test_the_footer_of_a_table_is_not_read_for_each_row_group(tmp_path, counting):
    path = tmp_path / "a.parquet"
    images = [CHANCE.bytes(1000) for _ in range(400)]
    pq.write_table(pa.table({"image": pa.array(images)}), path, row_group_size=1)
    found = list(tables.members(file_of(path)))
    counting.clear()
    assert [tables.read(f"counting://{path}", member.part) for member in found] == images
    assert sum(counting) < 10 * path.stat().st_size  # a page for each row group, and the footer once


def test_a_table_is_planned_by_its_footer_unless_its_images_are_large(tmp_path, counting):
    spec = InputSpec(bands=(0, 1, 2), scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, tile=32, overlap=8)
    options = {"explicit_bands": False, "shard_pixels": 10**6, "options": ArchiveOptions()}
    cutting = Cutting(spec=spec, lattice=spec.lattice("taper"), **options)
    small = [CHANCE.bytes(10_000) for _ in range(2000)]  # any bytes: nobody looks at them
    large = [png(np.zeros((8, 9, 3), np.uint8)) + bytes(SMALL_PICTURE_BYTES) for _ in range(2)]
    for images, measured in ((small, False), (large, True)):
        path = tmp_path / f"{measured}.parquet"
        pq.write_table(pa.table({"image": pa.array(images)}), path, use_dictionary=False, compression="none")
        counting.clear()
        items = [item for found in expand((file_of(path),), cutting) for item in found.items]
        assert len(items) == len(images)
        assert all((item.height == 8) is measured and item.error is None for item in items)
        assert (sum(counting) > path.stat().st_size / 2) is measured


def test_no_folder_is_asked_whether_it_is_a_file(monkeypatch):
    names, asked, info = [f"{folder}/a.png" for folder in range(20)], [], MemoryFileSystem.info
    for name in names:
        publish(f"memory://asked/{name}", b"1")
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: asked.append(path) or info(self, path))
    assert sorted(file.uri.partition("asked/")[2] for file in list_files("memory://asked")) == sorted(names)
    assert asked == ["/asked"]


class KeepingFileSystem(MemoryFileSystem):
    """A store that keeps its listings until it is told to forget them, as those of Google and Azure do."""

    protocol = "keeping"
    kept: dict[str, list] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("keeping://"))

    def ls(self, path, detail=True, **options):
        return self.kept.setdefault(path, super().ls(path, detail=detail, **options))

    def invalidate_cache(self, path=None):
        for name in [path] if path else list(self.kept):
            self.kept.pop(name, None)


def test_listings_of_folders_are_not_kept():
    register_implementation("keeping", KeepingFileSystem, clobber=True)
    for folder in range(20):
        publish(f"memory://kept/{folder}/a.png", b"1")
    assert sum(1 for _ in list_files("keeping://kept")) == 20
    assert KeepingFileSystem.kept == {}


class Bucket:
    """A bucket of S3 with those keys, in order, which counts the pages of its listings."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.pages = sorted(keys), 0

    def call_s3(self, method, *, Bucket, Prefix, MaxKeys=1000, ContinuationToken=""):
        self.pages += 1
        found = [key for key in self.keys if key.startswith(Prefix) and key > ContinuationToken]
        page = {"Contents": [{"Key": key, "Size": 1, "ETag": "x"} for key in found[:MaxKeys]]}
        more = {"IsTruncated": True, "NextContinuationToken": found[MaxKeys - 1]} if len(found) > MaxKeys else {}
        return page | more


@pytest.mark.parametrize("key", ["a", "/a", "x//a", "x/a b?#"])
def test_the_neighbours_of_a_folder_are_not_listed_with_it(key):
    neighbours = [f"{key}{more}{number}" for more in ("-old/", "0/") for number in range(5000)]
    for own in ([key], [f"{key}/1.png", f"{key}//2.png"], [f"{key}/{number:04d}.png" for number in range(1500)]):
        bucket = Bucket(neighbours + own)
        assert [name for name, _ in _walk_s3(bucket, f"b/{key}")] == sorted(f"b/{name}" for name in own)
        assert bucket.pages <= 3


def test_a_tar_on_s3_is_listed_without_its_bodies(s3, monkeypatch):
    fetched, fetch = [], S3File._fetch_range

    def counted(self, start, end):
        fetched.append(end - start)
        return fetch(self, start, end)

    file = put(join(s3, "large.tar"), tar_of({f"{k}.png": bytes(200_000) for k in range(100)}))
    monkeypatch.setattr(S3File, "_fetch_range", counted)
    assert len(list(tars.members(file))) == 100
    assert (90 < len(fetched) < 110, sum(fetched) < 600_000) == (True, True)


@pytest.mark.parametrize("ending", [".tar", ".zip", ".parquet", ".tar.gz"])
def test_a_failing_store_is_no_fault_of_the_container(tmp_path, counting, monkeypatch, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(WRITERS[ending](BODIES))
    file = File(f"counting://{path}", path.stat().st_size, f"{path.stat().st_size}-1.0")
    first = next(container_of(file.uri).members(file))
    for copy in tmp_path.glob("segray-*/*"):
        copy.unlink()
    tables._columns._values.clear()
    monkeypatch.setattr(CountingFileSystem, "broken", True)
    for call in (lambda: list(container_of(file.uri).members(file)), lambda: body(file, first)):
        with pytest.raises(OSError, match="the store is down"):
            call()
