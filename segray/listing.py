"""Listing what lies below a prefix of any fsspec store, in order and without a request per object."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from functools import partial

from fsspec import AbstractFileSystem
from fsspec.core import split_protocol

from segray.storage import File, etag_of, refusals_named, retry
from segray.store_errors import FINAL_ERRORS, describe, with_reason
from segray.uris import filesystem, is_chain, is_local, protocol_of


def list_files(uri: str) -> Iterator[File]:
    """Every file below a prefix (or the one file that the URI names), in the order of their paths.

    Hidden files and folders (leading dot) are left out; a pipe, a device or a link to itself has an error. No request
    is made per object, and an S3 listing is streamed page by page, so that memory does not grow with it.
    FileNotFoundError when nothing is there, SegrayError when the store refuses to list it.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found, local = False, is_local(uri)
    chain = uri[uri.index("::") :] if is_chain(uri) else ""
    with refusals_named(uri):
        for name, info in _walk_s3(fs, path) if protocol_of(fs) in ("s3", "s3a") else _walk(fs, path):
            found = True
            relative = name[len(path) :]
            if not any(part.startswith(".") for part in relative.split("/")):
                size = int(info["size"] or 0)  # web servers need not give it
                error = no_file(name) if local and info["type"] == "other" else None  # a link, or none of the usual
                yield File(name if local else address(fs, name, uri) + chain, size, etag_of(info), error=error)
    if not found:
        raise FileNotFoundError(f"{uri} holds nothing")


def address(fs: AbstractFileSystem, name: str, uri: str) -> str:
    """The URI of a name in a file system, with the scheme of `uri`; fsspec may use another (abfs for az)."""
    found = fs.unstrip_protocol(name)
    scheme, own = split_protocol(uri)[0], split_protocol(found)[0]
    return found if scheme is None or own is None else scheme + found.removeprefix(own)


def no_file(path: str) -> str | None:
    """Why a local path cannot be read as a file is, in a sentence; None where it can, or nothing is there.

    Whoever opens a pipe waits for ever; a device may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:  # a link to nothing: whoever opens it says so
        return None
    except OSError as error:
        return f"{path} cannot be read: {describe(error)}"
    if stat.S_ISREG(mode):
        return None
    what = "it is a folder, not a file" if stat.S_ISDIR(mode) else "it is no file, but a pipe, a device or the like"
    return f"{path} cannot be read: {what}"


def files_if_any(uri: str) -> Iterator[File]:
    """As `list_files`, but yields nothing, without an error, where nothing is there: stores have no empty folders."""
    try:
        yield from list_files(uri)
    except FileNotFoundError:
        return


def file_info(fs: AbstractFileSystem, path: str) -> dict | None:
    """What a store says of a file, None where the path is none, or nobody may know; the store's error when it fails.

    fsspec's `isfile` takes a failing store for one without the file.
    """
    try:
        info = retry(lambda: with_reason(fs, path, fs.info))
    except FINAL_ERRORS:  # what is forbidden may be listed all the same
        return None
    return info if info["type"] == "file" else None


def names(uri: str) -> set[str]:
    """The names of what lies directly in a folder; none when there is no such folder. One listing, never cached."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        with refusals_named(uri):
            entries = retry(lambda: fs.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {posixpath.basename(entry.rstrip("/")) for entry in entries}


def _walk(fs: AbstractFileSystem, path: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Depth first, one folder listing per level in memory. Sorted by whole path, as object stores sort keys.

    Links to folders are followed, except those that lead back to a folder above them. above: the folders above.
    """
    # further down, the folder's listing says what is a file; a bucket is none, and may be one to be listed alone
    if not above and "/" in path and (info := file_info(fs, path)):
        yield path, info
        return
    try:
        entries = retry(lambda: fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return
    fs.invalidate_cache(path)  # those of Google and Azure would keep the listing of every folder in memory
    above = (*above, os.path.realpath(path))
    for info in sorted(entries, key=lambda info: info["name"] + "/" * _is_folder(info)):
        if info["name"].rstrip("/") == path.rstrip("/"):
            continue
        if _is_folder(info):
            if not (info.get("islink") and os.path.realpath(info["name"]) in above):
                yield from _walk(fs, info["name"], above)
        elif info.get("islink") and not no_file(info["name"]):  # a listing has the time of the link, not of the file
            yield info["name"], file_info(fs, info["name"]) or info
        else:
            yield info["name"], info


def _is_folder(info: dict) -> bool:
    """Whether an entry of a folder is a folder itself; a link to one has another type."""
    return info["type"] == "directory" or bool(info.get("islink")) and os.path.isdir(info["name"])


def _walk_s3(fs: AbstractFileSystem, path: str) -> Iterator[tuple[str, dict]]:
    """The pages of ListObjectsV2 as they come: s3fs's own listing would hold all of them in memory."""
    bucket, _, key = path.partition("/")
    pages = partial(fs.call_s3, "list_objects_v2", Bucket=bucket)
    if key and not key.endswith("/"):
        # The object of that name, the first that begins with it; and then only what lies below: all that begins with
        # the name of a folder may be millions of objects of its neighbours.
        for entry in retry(partial(pages, Prefix=key, MaxKeys=1)).get("Contents", []):
            if entry["Key"] == key:
                yield f"{bucket}/{key}", {"size": entry["Size"], "ETag": entry["ETag"]}
        key += "/"
    token: dict[str, str] = {}
    while True:
        page = retry(partial(pages, Prefix=key, **token))
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                yield f"{bucket}/{entry['Key']}", {"size": entry["Size"], "ETag": entry["ETag"]}
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
