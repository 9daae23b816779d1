"""A copy is made once per machine and version, appears whole, and never outgrows its limits."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from containers import put
from fsspec.implementations.memory import MemoryFileSystem
from web import served

from segray.archives import copies
from segray.archives.copies import local_copy
from segray.errors import ImageError, SegrayError
from segray.listing import list_files
from segray.storage import publish
from segray.uris import join

DATA = np.random.default_rng(0).bytes(100_000)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """The folder of copies, in that of the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary" / f"segray-{os.getuid()}"


def kept(folder: Path) -> list[str]:
    """The names of the copies."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("size", [0, 1, 100_000])
@pytest.mark.parametrize("gunzip", [False, True])
def test_a_copy_is_the_content(store, monkeypatch, folder, size, gunzip):
    monkeypatch.setattr(copies, "PIECE_BYTES", 1000)
    file = put(join(store, "a.bin"), gzip.compress(DATA[:size]) if gunzip else DATA[:size])
    path = local_copy(file.uri, file.etag, gunzip=gunzip)
    assert Path(path).read_bytes() == DATA[:size]
    if gunzip or "://" in store:
        assert kept(folder) == [Path(path).name]
        assert folder.stat().st_mode & 0o777 == 0o700
    else:
        assert path == file.uri


def test_a_web_server_that_sends_no_parts_ends_a_copy(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(copies, "PIECE_BYTES", 1000)
    (tmp_path / "a.bin").write_bytes(DATA)
    with served(tmp_path, parts=False) as address, pytest.raises(ImageError, match="sends no parts of files"):
        local_copy(f"{address}/a.bin", next(list_files(f"{address}/a.bin")).etag)
    assert kept(folder) == []


def test_streams_one_behind_another_and_padding_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "PIECE_BYTES", 777)
    data = gzip.compress(DATA) + bytes(2000) + gzip.compress(b"end") + bytes(512)
    file = put(str(tmp_path / "a.gz"), data)
    assert Path(local_copy(file.uri, file.etag, gunzip=True)).read_bytes() == DATA + b"end"


@pytest.mark.parametrize("piece", [64, 1000, 2**23])
def test_long_runs_are_unpacked_to_their_end(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(copies, "PIECE_BYTES", piece)
    for size in (1000, 64 * 100, 99_999):
        file = put(str(tmp_path / f"{size}.gz"), gzip.compress(bytes(size)))
        assert Path(local_copy(file.uri, file.etag, gunzip=True)).read_bytes() == bytes(size)


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-5], lambda data: data[:50_000], lambda data: b"", lambda data: b"no"]
)
def test_what_is_damaged_is_refused_and_leaves_nothing(tmp_path, folder, spoil):
    file = put(str(tmp_path / "a.gz"), spoil(gzip.compress(DATA)))
    with pytest.raises(ImageError, match=r"a\.gz is (damaged|cut off)"):
        local_copy(file.uri, file.etag, gunzip=True)
    assert kept(folder) == []


def test_a_wrong_checksum_is_refused(tmp_path, folder):
    data = bytearray(gzip.compress(DATA))
    data[-6] ^= 1
    file = put(str(tmp_path / "a.gz"), bytes(data))
    with pytest.raises(ImageError, match="damaged"):
        local_copy(file.uri, file.etag, gunzip=True)
    assert kept(folder) == []


def test_a_bomb_is_refused(tmp_path, folder, monkeypatch):
    file = put(str(tmp_path / "a.gz"), gzip.compress(bytes(10**8)))
    with pytest.raises(ImageError, match="unpack it yourself"):
        local_copy(file.uri, file.etag, gunzip=True)
    assert kept(folder) == []
    file = put(str(tmp_path / "b.gz"), gzip.compress(DATA))
    monkeypatch.setattr(copies, "MAX_UNPACKED_BYTES", len(DATA) - 1)
    with pytest.raises(ImageError, match="unpack it yourself"):
        local_copy(file.uri, file.etag, gunzip=True)


def test_another_version_is_another_copy(store):
    old = put(join(store, "a.gz"), gzip.compress(b"old"))
    first = local_copy(old.uri, old.etag, gunzip=True)
    time.sleep(0.01)
    new = put(old.uri, gzip.compress(b"newer"))
    assert Path(local_copy(new.uri, new.etag, gunzip=True)).read_bytes() == b"newer"
    assert Path(local_copy(old.uri, old.etag, gunzip=True)).read_bytes() == b"old"
    os.unlink(first)
    with pytest.raises(ImageError, match="changed since it was listed"):
        local_copy(old.uri, old.etag, gunzip=True)


def test_a_file_that_is_gone(store):
    publish(join(store, "other"), b"")
    with pytest.raises(ImageError, match="does not exist"):
        local_copy(join(store, "none.gz"), "1", gunzip=True)


def test_the_copies_used_longest_ago_go(monkeypatch, folder):
    monkeypatch.setattr(copies, "MAX_COPIES", 3)
    files = [put(f"memory://copies/{k}.bin", b"%d" % k) for k in range(5)]
    paths = [local_copy(file.uri, file.etag) for file in files]
    assert all(os.path.exists(path) for path in paths)  # used within the last minute
    for age, path in zip((100, 500, 400, 300, 200), paths):
        os.utime(path, (time.time() - age,) * 2)
    (folder / f"{'0' * 64}.tmp").write_bytes(b"left by a killed process")
    (folder / f"{'1' * 64}.tmp").write_bytes(b"in the making")
    os.utime(folder / f"{'0' * 64}.tmp", (1, 1))
    assert local_copy(files[2].uri, files[2].etag) == paths[2]  # used again
    last = put("memory://copies/last.bin", b"last")
    paths.append(local_copy(last.uri, last.etag))
    assert [os.path.exists(path) for path in paths] == [True, False, True, False, False, True]
    assert [name for name in kept(folder) if name.endswith(".tmp")] == [f"{'1' * 64}.tmp"]


def test_a_copy_that_is_handed_out_while_others_go_stays(monkeypatch, folder):
    monkeypatch.setattr(copies, "MAX_COPIES", 0)
    used, held = (local_copy(*_listed(f"memory://copies/{name}.bin")) for name in ("used", "held"))
    for path in (used, held):
        os.utime(path, (1, 1))
    scan = os.scandir

    def before_it_is_used(path: str) -> list[os.DirEntry]:
        entries = list(scan(path))
        for entry in entries:
            entry.stat()  # cached by the entry
        os.utime(used)
        return entries

    with copies._lock(str(folder), Path(held).name[:2]), monkeypatch.context() as patch:
        patch.setattr("os.scandir", before_it_is_used)
        copies._prune(str(folder))
    assert os.path.exists(used) and os.path.exists(held)
    os.utime(used, (1, 1))
    copies._prune(str(folder))
    assert not os.path.exists(used) and not os.path.exists(held)


def test_a_folder_of_somebody_else_is_not_used(tmp_path, folder):
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(SegrayError, match="TMPDIR"):
        local_copy(*_listed("memory://copies/x.bin"))
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SegrayError, match="TMPDIR"):
        local_copy(*_listed("memory://copies/x.bin"))


def test_threads_that_want_one_copy_wait_for_the_first(monkeypatch):
    reads, read = [], MemoryFileSystem.cat_file

    def counted(self, path, **options):
        reads.append(threading.get_ident())
        time.sleep(0.05)
        return read(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    monkeypatch.setattr(copies, "FETCHERS", 1)
    uri, etag = _listed("memory://copies/x.bin")
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: local_copy(uri, etag), range(8)))
    assert (len(paths), len(reads)) == (1, 1)


def test_processes_that_want_one_copy_get_it_whole_even_if_one_is_killed(tmp_path, folder):
    source = tmp_path / "a.gz"
    source.write_bytes(gzip.compress(np.random.default_rng(0).bytes(2**26), 1))
    file = next(list_files(str(source)))
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[3]\n"
        "from segray.archives.copies import local_copy\n"
        "import hashlib; path = local_copy(sys.argv[1], sys.argv[2], gunzip=True)\n"
        "sys.stdout.write(hashlib.sha256(open(path, 'rb').read()).hexdigest())"
    )
    command = [sys.executable, "-c", code, file.uri, file.etag, str(folder.parent)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.tmp")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first.kill()
    found = {process.communicate(timeout=60)[0] for process in others}
    first.wait(10)
    assert len(found) == 1
    assert len(kept(folder)) == 1
    assert (folder / kept(folder)[0]).stat().st_size == 2**26


def _listed(uri: str) -> tuple[str, str]:
    file = put(uri, DATA)
    return file.uri, file.etag


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("gunzip", [False, True])
def test_a_disk_without_room_for_a_copy_is_named(tmp_path, gunzip):
    (tmp_path / "a.gz").write_bytes(gzip.compress(os.urandom(100_000)))
    with pytest.raises(OSError, match="No space left") as caught:
        copies._write("/dev/full", str(tmp_path / "a.gz"), gunzip=gunzip)
    assert caught.value.filename == "/dev/full"
