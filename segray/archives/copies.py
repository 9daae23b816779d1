"""Copies of stored files on the local disk, for formats that cannot be read by range; made once per machine.

They lie in the user's own folder below the temporary folder, named by a hash of URI and version. A copy gets its name
once it is complete; processes and threads that want the same one wait for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from segray.archives.ranges import read_range
from segray.errors import ImageError, SegrayError
from segray.listing import list_files
from segray.store_errors import full_disk_named
from segray.uris import local_path

MAX_COPIES = max(8, 2 * (os.cpu_count() or 1))  # kept at a time; as many as a machine may read at once
GRACE_S = 60.0  # a copy used more recently stays: its reader may be about to open it
ABANDONED_S = 3600.0  # an unfinished copy that has not grown for so long: its process was killed
MAX_UNPACKED_BYTES = 2**36
MAX_RATIO = 200  # imagery packs to about half its size, long runs of one byte to a thousandth
SMALL_BYTES = 2**24  # up to this size any ratio is allowed: a tar that is mostly padding exceeds MAX_RATIO
PIECE_BYTES = 2**23
FETCHERS = 4  # concurrent requests: a store gives some 90 MB/s per connection


def local_copy(uri: str, etag: str, *, gunzip: bool = False) -> str:
    """The path of a local file with the content of a stored one, unpacked if `gunzip`; open it within a minute.

    A local file that need not be unpacked is its own copy. etag: the version that was listed. ImageError when the file
    is gone, has another version, is damaged, or is a decompression bomb; a store's own error passes through.
    """
    path = local_path(uri)
    if path and not gunzip:
        return path
    folder = _folder()
    key = hashlib.sha256(f"{path or uri}\0{etag}\0{gunzip}".encode("utf-8", "surrogateescape")).hexdigest()
    copy = os.path.join(folder, key)
    with _lock(folder, key[:2]):
        if os.path.exists(copy):
            os.utime(copy)
            return copy
        check_version(uri, etag)
        temporary = f"{copy}.tmp"  # under the lock nobody else writes it; what a killed process left is overwritten
        try:
            _write(temporary, uri, gunzip=gunzip)
            check_version(uri, etag)
            os.replace(temporary, copy)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    _prune(folder)
    return copy


def _write(path: str, uri: str, *, gunzip: bool) -> None:
    with full_disk_named(path), open(path, "wb") as file:
        for piece in _unpacked(uri) if gunzip else _pieces(uri):
            file.write(piece)


def _pieces(uri: str) -> Iterator[bytes]:
    """The bytes of a file in order, fetched several pieces at once."""
    with ThreadPoolExecutor(FETCHERS, thread_name_prefix="copy") as pool:
        start = 0
        while True:
            starts = range(start, start + FETCHERS * PIECE_BYTES, PIECE_BYTES)
            for piece in pool.map(lambda first: read_range(uri, first, PIECE_BYTES), starts):
                if piece:
                    yield piece
                if len(piece) < PIECE_BYTES:
                    return
            start = starts.stop


def _unpacked(uri: str) -> Iterator[bytes]:
    """The unpacked bytes of a gzip file of one or several streams; ImageError when it is damaged or a bomb."""
    inflater, packed, unpacked = _inflater(), 0, 0
    try:
        for piece in _pieces(uri):
            packed, rest = packed + len(piece), piece
            while rest:
                if inflater.eof:
                    rest = rest.lstrip(b"\0")  # padding between or after the streams
                    if not rest:
                        break
                    inflater = _inflater()
                data = inflater.decompress(rest, PIECE_BYTES)
                unpacked += len(data)
                _check_bomb(uri, packed, unpacked)
                yield data
                rest = inflater.unconsumed_tail or inflater.unused_data
        yield inflater.flush()  # at most what the last few bytes unpack to
    except zlib.error as error:
        raise ImageError(f"{uri} is damaged and cannot be unpacked: {error}") from error
    if not inflater.eof:
        raise ImageError(f"{uri} is cut off: after {packed} bytes its last gzip stream is incomplete")


def _inflater() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: a gzip header is expected, and its checksum verified


def _check_bomb(uri: str, packed: int, unpacked: int) -> None:
    if unpacked > min(MAX_UNPACKED_BYTES, max(SMALL_BYTES, MAX_RATIO * packed)):
        raise ImageError(
            f"{uri} unpacks to over {unpacked} bytes from {packed}; unpack it yourself and give the plain tar"
        )


def check_version(uri: str, etag: str) -> None:
    """ImageError when a file is gone, or has another version than the one that was listed."""
    try:
        found = next(list_files(uri)).etag
    except FileNotFoundError as error:
        raise ImageError(f"{uri} cannot be read: it does not exist") from error
    except SegrayError as error:
        raise ImageError(str(error)) from error
    if found != etag:
        raise ImageError(f"{uri} changed since it was listed ({etag} then, {found} now); run again with --overwrite")


def _folder() -> str:
    """The user's own folder of copies; SegrayError when others own it or may write to it."""
    folder = os.path.join(tempfile.gettempdir(), f"segray-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise SegrayError(f"{folder} does not belong to this user alone; remove it, or set TMPDIR to another folder")
    return folder


@contextmanager
def _lock(folder: str, name: str, *, wait: bool = True) -> Iterator[None]:
    """A lock on the copies whose names begin with `name`, held by one thread of one process of the machine.

    BlockingIOError when another holds it, unless `wait`.
    """
    with open(os.path.join(folder, f"{name}.lock"), "ab") as file:
        # released when the file is closed, even by a kill
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _prune(folder: str) -> None:
    """Remove the least recently used copies, and what killed processes left behind."""
    now, copies = time.time(), []
    for entry in os.scandir(folder):
        try:
            age = now - entry.stat().st_mtime
        except FileNotFoundError:  # another process removed it
            continue
        if entry.name.endswith(".tmp") and age > ABANDONED_S:
            Path(entry.path).unlink(missing_ok=True)
        elif "." not in entry.name:
            copies.append((age, entry.path))
    for age, path in sorted(copies)[MAX_COPIES:]:
        if age > GRACE_S:
            _unlink_unused(path)


def _unlink_unused(path: str) -> None:
    """Remove a copy, unless it was handed out since the folder was listed, or is about to be."""
    folder, name = os.path.split(path)
    with suppress(FileNotFoundError, BlockingIOError), _lock(folder, name[:2], wait=False):
        if time.time() - os.stat(path).st_mtime > GRACE_S:
            os.unlink(path)
