"""Files on any fsspec store: read, publish atomically, remove, retry what is transient."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from inspect import signature
from typing import BinaryIO, TypeVar

from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem
from fsspec.core import has_magic

from segray.errors import SegrayError
from segray.store_errors import FINAL_ERRORS, at_fault, describe, store_errors, with_reason
from segray.uris import ATOMIC_PUT, filesystem, is_local, local_path, protocol_of

log = logging.getLogger("segray")
Result = TypeVar("Result")
ATTEMPTS = 4
SILENT_S = 10.0  # a call that failed after longer is logged: some libraries retry for minutes themselves
COPY_BYTES = 2**20
LEFTOVER = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")  # names that `_temporary` makes
TEMPORARY_BYTES = len("..") + 32 + len(".tmp")  # how much longer such a name is than the file's own


@dataclass(frozen=True, slots=True)
class File:
    """An object of a store, or a member of one: URI, size in bytes, and a tag that changes when its content does.

    part: where a member lies in the file that holds it, in its format's notation; "" for a file of its own. error: why
    it cannot be read, where listing already showed that.
    """

    uri: str
    size: int
    etag: str
    part: str = ""
    error: str | None = None


def stat(file: File) -> File:
    """The file with the size and etag that its store gives; FileNotFoundError or the store's error."""
    fs, path = filesystem(file.uri)
    info = retry(lambda: with_reason(fs, path, fs.info))
    return replace(file, size=int(info["size"] or 0), etag=etag_of(info))


def retry(call: Callable[[], Result]) -> Result:
    """The result of a call to a store, retried with growing pauses when the store or the network fails.

    What a retry cannot mend (not found, no permission) is raised at once. Errors are those of `store_errors`.
    """
    for attempt in range(ATTEMPTS - 1):
        started = time.monotonic()
        try:
            with store_errors():
                return call()
        except FINAL_ERRORS:
            raise
        except (OSError, BotoCoreError) as error:  # botocore's network errors are not OSErrors
            if time.monotonic() - started > SILENT_S:
                log.warning("a store does not answer; trying again: %s", describe(error))
            time.sleep(0.2 * 4**attempt)
    with store_errors():
        return call()


def read_bytes(uri: str) -> bytes:
    """The whole content of a file; FileNotFoundError or OSError from the store."""
    fs, path = filesystem(uri)
    return retry(lambda: fs.cat_file(path, **_in_one_request(type(fs))))  # opening a file takes two


@contextmanager
def opened(uri: str) -> Iterator[BinaryIO]:
    """A file to be read in the block, without holding it in memory; FileNotFoundError or OSError from the store.

    What is fetched of it is retried as everything else is; not so what a web server sends as one stream.
    """
    fs, path = filesystem(uri)
    with store_errors(), retry(lambda: fs.open(path, "rb")) as file:
        cache = getattr(file, "cache", None)
        if fetch := getattr(cache, "fetcher", None):
            cache.fetcher = lambda start, stop: retry(lambda: fetch(start, stop))
        yield file


def read_text(uri: str) -> str:
    """The whole content of a UTF-8 text file, without a byte order mark; SegrayError when it cannot be read."""
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise SegrayError(f"{uri} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise at_fault(error)(f"{uri} cannot be read: {describe(error)}") from error


def exists(uri: str) -> bool:
    """Whether a file or a folder is there; asks the store, never a cache. SegrayError when that is refused."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    with refusals_named(uri):
        return retry(lambda: fs.exists(path))


def is_file(uri: str) -> bool:
    """Whether a file is there, and not just a folder of that name; asks as `exists` does."""
    if path := local_path(uri):
        return os.path.isfile(path)
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    with refusals_named(uri):
        try:
            return retry(lambda: fs.info(path))["type"] == "file"
        except FileNotFoundError:
            return False


@contextmanager
def refusals_named(uri: str) -> Iterator[None]:
    """Turns a refusal to say what is there into a SegrayError with the URI, which the errors of stores lack."""
    try:
        yield
    except PermissionError as error:
        advice = "correct the URI, or " + (
            "the rights on it" if is_local(uri) else "the permissions of your credentials"
        )
        raise SegrayError(f"{uri} cannot be looked at: {describe(error)}; {advice}") from error


def publish(uri: str, data: bytes) -> None:
    """Write a file atomically: at every moment it is either absent (or as before) or complete.

    Object stores do that by themselves; elsewhere a temporary file beside it is renamed.
    """
    _publish(uri, lambda file: file.write(data), lambda fs, path: fs.pipe_file(path, data))


def publish_file(uri: str, source: str) -> None:
    """Write the content of a local file atomically, as `publish` does, without holding it in memory."""
    with open(source, "rb") as content:  # opened before anything is written
        _publish(
            uri,
            lambda file: shutil.copyfileobj(content, file, COPY_BYTES),
            lambda fs, path: fs.put_file(source, path),
        )


def remove(uri: str) -> None:
    """Remove a file or everything below a prefix; it is no error if nothing is there."""
    if not exists(uri):
        return
    fs, path = filesystem(uri)
    if has_magic(path) and not is_local(uri):  # fsspec would take the path as a pattern and remove what matches
        for name in fs.find(path):
            retry(lambda name=name: fs.rm_file(name))
    else:
        retry(lambda: fs.rm(path, recursive=True))


def remove_file(uri: str) -> None:
    """Remove one file; it is no error if nothing, or a folder, is there."""
    fs, path = filesystem(uri)
    try:
        retry(lambda: fs.rm_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (IsADirectoryError, PermissionError):  # systems differ in their error for a folder
        if not fs.isdir(path):
            raise


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files that a killed process left below a folder (see `publish`)."""
    fs, path = filesystem(folder)
    if protocol_of(fs) not in ATOMIC_PUT and fs.exists(path):
        for name in _local_files(path) if is_local(folder) else fs.find(path):
            if LEFTOVER.fullmatch(posixpath.basename(name)):
                with suppress(FileNotFoundError):  # a late writer has renamed it by now
                    fs.rm_file(name)


def _publish(uri: str, write: Callable[[BinaryIO], object], send: Callable[[AbstractFileSystem, str], object]) -> None:
    """See `publish`. write: writes the content to an open local file. send: puts it at a path of any other store."""
    fs, path = filesystem(uri)
    if protocol_of(fs) in ATOMIC_PUT:
        retry(lambda: send(fs, path))
        return
    temporary = _temporary(fs, path)
    if protocol_of(fs) in ("file", "local"):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # or every retry would fill a full disk further
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return
    retry(lambda: send(fs, temporary))
    fs.mv(temporary, path)


@cache
def _in_one_request(kind: type[AbstractFileSystem]) -> dict[str, int]:
    """Arguments that make `cat_file` of a kind of store ask once: s3fs (2026) first asks for the size, to split it."""
    parameters = signature(getattr(kind, "_cat_file", kind.cat_file)).parameters
    return {"max_concurrency": 1} if "max_concurrency" in parameters else {}


def _temporary(fs: AbstractFileSystem, path: str) -> str:
    """A name beside a path, whose folder is made if need be; `remove_leftovers` recognises such names."""
    parent, name = posixpath.split(path)
    fs.makedirs(parent, exist_ok=True)
    return posixpath.join(parent, f".{name}.{uuid.uuid4().hex}.tmp")


def _local_files(folder: str) -> Iterator[str]:
    """The paths of all files below a folder, streamed: fsspec's `find` would hold a dict of each. Follows no links.

    What cannot be listed, or is gone by now, is left out.
    """
    folders = [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield entry.path


def etag_of(info: dict) -> str:
    """A tag that changes when a file does, from what a store says about it."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "CRC", "mtime", "last_modified", "Last-Modified", "created"):
        if value := info.get(key):
            value = value.timestamp() if isinstance(value, datetime) else value
            return f"{info['size']}-{value}" if key in ("mtime", "Last-Modified", "created") else str(value).strip('"')
    return str(info["size"])
