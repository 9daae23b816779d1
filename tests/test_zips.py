"""Zip archives: wrong sizes, damage, other compressions."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest
from containers import BODIES, CHANCE, body, put, zip_of

from segray.archives import zips
from segray.errors import ImageError
from segray.listing import list_files
from segray.uris import join


def test_a_member_that_says_two_gigabytes_is_refused(tmp_path):
    data = zip_of({"x.png": bytes(10**6)}).replace(struct.pack("<I", 10**6), struct.pack("<I", 2**31))
    file = put(str(tmp_path / "a.zip"), data)
    (member,) = zips.members(file)
    assert (member.size, "2147483648 bytes" in member.error) == (2**31, True)
    with pytest.raises(ImageError, match="2147483648 bytes"):
        body(file, member)


@pytest.mark.parametrize("said", [100, 10**6 - 1, 10**6 + 1])
def test_a_member_that_lies_about_its_size_is_refused(tmp_path, said):
    data = zip_of({"x.png": bytes(10**6)})
    lying = data.replace(struct.pack("<I", 10**6), struct.pack("<I", said))
    file = put(str(tmp_path / "a.zip"), lying)
    (member,) = zips.members(file)
    assert member.size == said
    with pytest.raises(ImageError, match="does not unpack to"):
        body(file, member)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_checksum_is_refused(tmp_path, method):
    image = CHANCE.bytes(1000)
    data = bytearray(zip_of({"x.png": image}, method))
    data[len(data) // 2] ^= 1
    file = put(str(tmp_path / "a.zip"), bytes(data))
    with pytest.raises(ImageError, match="damaged"):
        body(file, next(zips.members(file)))


def test_encrypted_and_foreign_methods_are_rows_with_the_reason(tmp_path):
    (member,) = zips.members(put(str(tmp_path / "a.zip"), zip_of({"x.png": b"1"}, zipfile.ZIP_LZMA)))
    assert "method 14" in member.error
    data = bytearray(zip_of({"x.png": b"1"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    (member,) = zips.members(put(str(tmp_path / "b.zip"), bytes(data)))
    assert "encrypted" in member.error


def test_links_and_folders_of_a_zip_are_skipped(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("x.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder.png/", b"")
        archive.writestr(zipfile.ZipInfo("of windows.png"), b"1")
    *skipped, member = zips.members(next(list_files(str(path))))
    assert (skipped, member.uri) == ([None, None], f"zip://of windows.png::{path}")


def test_local_headers_have_lengths_of_their_own(store):
    """As in streamed archives, behind a stub, and with an extra field longer than what is read ahead."""
    out = io.BytesIO()

    class Pipe(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            return out.write(data)

    with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("x.png")
        info.extra = struct.pack("<HH", 0x7777, 5000) + bytes(5000)
        archive.writestr(info, b"1" * 3000)
        archive.writestr("y.png", b"2" * 3000)
    file = put(join(store, "a.zip"), b"#!/bin/sh stub\n" * 10 + out.getvalue())
    assert [body(file, member)[:1] for member in zips.members(file)] == [b"1", b"2"]


def test_a_truncated_zip_is_one_row(store):
    file = put(join(store, "a.zip"), zip_of(BODIES)[:-100])
    (member,) = zips.members(file)
    assert (member.uri, "damaged" in member.error) == (file.uri, True)


def test_a_directory_that_is_said_to_lie_elsewhere_is_an_error(tmp_path):
    data = bytearray(zip_of(BODIES))
    data[-6:-2] = struct.pack("<I", struct.unpack("<I", data[-6:-2])[0] + 10**6)
    assert all(member.error for member in zips.members(put(str(tmp_path / "a.zip"), bytes(data))))


def test_a_member_beyond_any_file_is_a_row_with_the_reason(tmp_path):
    data = zip_of({"x.png": b"1"})
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry, extra = bytearray(data[start:end]), struct.pack("<HHQ", 1, 8, 2**63)  # zip64's place of the local header
    struct.pack_into("<H", entry, 30, len(extra))
    struct.pack_into("<I", entry, 42, 2**32 - 1)
    tail = bytearray(data[end:])
    struct.pack_into("<I", tail, 12, len(entry) + len(extra))
    (member,) = zips.members(put(str(tmp_path / "a.zip"), data[:start] + entry + extra + tail))
    assert "the directory of the zip is damaged" in member.error


def test_checksums_are_those_of_the_members(tmp_path):
    file = put(str(tmp_path / "a.zip"), zip_of(BODIES))
    assert [member.part[-8:] for member in zips.members(file)] == [f"{zlib.crc32(b):08x}" for b in BODIES.values()]


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """So a few megabytes would unpack to many terabytes, a gigabyte a member."""
    data = bytearray(zip_of({name: bytes(10**6) for name in ("x.png", "y.png", "z.png")}))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[second + 42 : second + 46] = bytes(4)  # where y.png begins
    x, y, z = zips.members(put(str(tmp_path / "a.zip"), bytes(data)))
    assert ["overlaps the next member" in (member.error or "") for member in (x, y, z)] == [True, True, False]
