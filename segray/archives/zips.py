"""Zip archives: listed from the directory at their end, stored and deflated members read by range."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from segray.archives import entries
from segray.archives.entries import damaged, is_wanted, too_large
from segray.archives.ranges import read_range
from segray.archives.seekable import Seekable
from segray.errors import ImageError
from segray.storage import File
from segray.store_errors import FINAL_ERRORS

ENDINGS = (".zip",)
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
MAX_DIRECTORY_BYTES = 2**27  # some million members; each takes a kilobyte of memory while they are listed
MAX_PLACE = 2**62  # no store has so long a file, and no system call takes a place of 64 bits
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, bytes of the name, bytes of the extra field
AHEAD_BYTES = 2**10  # for name and extra field, whose lengths only the local header gives
ENCRYPTED = 1
# What zipfile raises on an invalid directory.
DAMAGE = (zipfile.BadZipFile, OSError, ValueError, OverflowError, EOFError, struct.error, NotImplementedError)


def members(file: File, column: str | None = None) -> Iterator[File | None]:
    """The images of a zip in the order of its directory; of members with the same name, the last counts.

    `column` is for other formats. No member is read. A store's own error passes through.
    """
    try:
        with Seekable(file.uri, limit=MAX_DIRECTORY_BYTES) as stream:
            infos = _directory(stream, file.uri)
    except (ImageError, *FINAL_ERRORS) as error:
        yield damaged(file, error)
        return
    last, overlapping = {info.orig_filename: info for info in infos}, _overlapping(infos)
    for info in infos:
        if not is_wanted(info.orig_filename) or not _is_file(info):
            yield None
        elif last[info.orig_filename] is info:
            yield _file(file, info, overlaps=info.header_offset in overlapping)


def span(part: str) -> tuple[int, int] | None:
    """None: only the local header in front of a member, not the directory, shows where its bytes start."""
    return None


def read(uri: str, part: str) -> bytes:
    """The bytes of a member; ImageError when it is damaged, cut off, or unpacks to more or less than it says."""
    method, place, size, crc = part.split(" ")
    start, packed = map(int, place.split("+"))
    if error := too_large(max(int(size), packed)):
        raise ImageError(f"the member at byte {start} of {uri} cannot be read: {error}")
    body = _body(uri, start, packed)
    data = body if method == "stored" else _inflate(body, int(size))
    if data is None or len(data) != int(size):
        raise ImageError(f"the member at byte {start} of {uri} is damaged: it does not unpack to {size} bytes")
    if zlib.crc32(data) != int(crc, 16):
        raise ImageError(f"the member at byte {start} of {uri} is damaged: its checksum is wrong")
    return data


def _body(uri: str, start: int, packed: int) -> bytes:
    """The packed bytes of the member whose local header begins at `start`; usually one request."""
    data = read_range(uri, start, LOCAL_HEADER.size + AHEAD_BYTES + packed)
    if len(data) < LOCAL_HEADER.size or not data.startswith(zipfile.stringFileHeader):
        raise ImageError(f"{uri} has no member at byte {start}; run again with --overwrite")
    _, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(data)
    first = LOCAL_HEADER.size + name_bytes + extra_bytes
    if len(data) < first + packed:
        data += read_range(uri, start + len(data), first + packed - len(data))
    if len(data) < first + packed:
        raise ImageError(f"{uri} is cut off: {first + packed - len(data)} bytes of the member at {start} are missing")
    return data[first : first + packed]


def _inflate(body: bytes, size: int) -> bytes | None:
    """The unpacked bytes, at most one more than `size`; None unless the body is a complete deflate stream."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(body, size + 1)
    except zlib.error:
        return None
    return data if inflater.eof else None


def _overlapping(infos: list[zipfile.ZipInfo]) -> set[int]:
    """Where members begin that reach into the next, as in a bomb in which many share the same packed bytes."""
    order = sorted(infos, key=lambda info: info.header_offset)
    ends = (info.header_offset + LOCAL_HEADER.size + info.compress_size for info in order)
    return {info.header_offset for info, end, after in zip(order, ends, order[1:]) if end > after.header_offset}


def _directory(stream: Seekable, uri: str) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(stream) as archive:
            return archive.infolist()
    except DAMAGE as error:
        if stream.error is not None:  # zipfile takes a failing store for a file that is not a zip
            raise stream.error from None
        raise ImageError(f"{uri} is damaged, its members cannot be listed: {error}") from error


def _file(file: File, info: zipfile.ZipInfo, *, overlaps: bool) -> File:
    method, error = METHODS.get(info.compress_type), too_large(max(info.file_size, info.compress_size))
    if info.flag_bits & ENCRYPTED:
        error = "it is encrypted; pack it without a password"
    elif not 0 <= info.header_offset < MAX_PLACE:  # the directory's own size or place is wrong
        error = "the directory of the zip is damaged"
    elif overlaps:
        error = "it overlaps the next member, as in a decompression bomb; pack it anew"
    elif method is None:
        error = f"it is packed by method {info.compress_type}; pack it stored or deflated"
    part = f"{method} {info.header_offset}+{info.compress_size} {info.file_size} {info.CRC:08x}"
    return entries.member(file, "zip", info.orig_filename, size=info.file_size, part=part, error=error)


def _is_file(info: zipfile.ZipInfo) -> bool:
    """Whether a member is not a folder, link or device; zips made elsewhere than on Unix name folders alone."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    folder = info.filename.endswith("/")  # what its `is_dir` of Python 3.11 asks fails on a name that begins with NUL
    return not folder and kind in (0, stat.S_IFREG)
