"""Tar archives (GNU, pax, WebDataset): listed from header to header, members read by range; .tar.gz unpacked once."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator

from segray.archives import entries
from segray.archives.copies import local_copy
from segray.archives.entries import damaged, is_wanted, too_large
from segray.archives.ranges import read_range
from segray.archives.seekable import Seekable
from segray.errors import ImageError
from segray.storage import File
from segray.store_errors import FINAL_ERRORS
from segray.uris import bare

ENDINGS = (".tar", ".tar.gz", ".tgz")
BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 2**20  # of a pax header or a long name; a header may claim any size
# What tarfile raises on invalid headers, also deeply nested ones.
DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError)


def members(file: File, column: str | None = None) -> Iterator[File | None]:
    """The images of a tar; of members with the same name, the last counts, as when a tar is unpacked.

    `column` is for other formats. Bodies are not read, except short ones between headers. A store's own error passes
    through.
    """
    packed = not bare(file.uri).endswith(".tar")
    found: dict[str, File] = {}
    broken: BaseException | None = None
    try:
        path = local_copy(file.uri, file.etag, gunzip=True) if packed else file.uri
        with Seekable(path, limit=MAX_HEADER_BYTES) as stream:
            for info in _headers(stream, file.uri):
                name = posixpath.normpath(info.name)
                found.pop(name, None)
                if is_wanted(info.name) and info.isreg():
                    found[name] = _file(file, info, end=stream.size, packed=packed)
                else:
                    yield None
    except (ImageError, *FINAL_ERRORS) as error:
        broken = error
    yield from found.values()
    if broken is not None:
        yield damaged(file, broken)


def span(part: str) -> tuple[int, int] | None:
    """(start, size) of a member in a plain tar, None in a packed one."""
    place, of, _ = part.partition(" of ")
    start, size = place.split("+")
    return None if of else (int(start), int(size))


def read(uri: str, part: str) -> bytes:
    """The bytes of a member; ImageError when it is cut off, too large, or no longer where it was listed."""
    place, of, etag = part.partition(" of ")
    start, size = map(int, place.split("+"))
    if error := too_large(size):
        raise ImageError(f"the member at byte {start} of {uri} cannot be read: {error}")
    path = local_copy(uri, etag, gunzip=True) if of else uri
    data = read_range(path, start - BLOCK, BLOCK + size)  # with its header, to check that it is the right member
    if not _heads(data[:BLOCK], size):
        raise ImageError(f"{uri} has no member of {size} bytes at byte {start}; run again with --overwrite")
    if len(data) < BLOCK + size:
        raise ImageError(f"{uri} is cut off: {BLOCK + size - len(data)} of {size} bytes from byte {start} are missing")
    return data[BLOCK:]


def _heads(block: bytes, size: int) -> bool:
    """Whether a block is the header of a member of that size, or has 0 because a pax header before it says the size."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace").size in (size, 0)
    except tarfile.HeaderError:
        return False


def _file(file: File, info: tarfile.TarInfo, *, end: int, packed: bool) -> File:
    part, error = f"{info.offset_data}+{info.size}", None
    if packed:
        part, error = f"{part} of {file.etag}", too_large(info.size)
    if info.issparse():
        error = "it is stored as a sparse file; pack it without --sparse"
    elif info.offset_data + info.size > end:
        error = f"it is cut off, the tar ends at byte {end}"
    return entries.member(file, "tar", info.name, size=info.size, part=part, error=error)


def _headers(stream: Seekable, uri: str) -> Iterator[tarfile.TarInfo]:
    """The headers up to the end mark, or to the end of a file that ends with a whole member; ImageError on damage."""
    place = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # or tarfile would keep all
                if info.size < 0 or tar.offset <= place:
                    raise tarfile.ReadError(f"the header at byte {info.offset} says a size below 0")
                place = tar.offset
                yield info
            stream.seek(tar.offset)
            if any(stream.read(BLOCK)):  # tarfile takes any block that is not a header for the end
                raise tarfile.ReadError(f"there is no header at byte {tar.offset}")
    except DAMAGE as error:
        if stream.error is not None:
            raise stream.error from None
        raise ImageError(f"{uri} is damaged, what follows byte {place} cannot be listed: {error}") from error
