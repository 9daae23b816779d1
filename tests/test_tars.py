"""Tar archives of all kinds: names, links, sparse files, damage."""

from __future__ import annotations

import io
import os
import struct
import tarfile

import pytest
from containers import CHANCE, WRITERS, body, listed, put, tar_of

from segray.archives import tars
from segray.archives.entries import MAX_MEMBER_BYTES
from segray.errors import ImageError
from segray.listing import list_files
from segray.storage import publish
from segray.uris import join

pytestmark = pytest.mark.usefixtures("own_copies")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_links_folders_and_devices(tmp_path, kind):
    path = tmp_path / "a.tar"
    long = "d" * 90 + "/" + "é" * 200 + ".png"
    with tarfile.open(path, "w", format=kind) as tar:
        for type_ in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{type_.decode()}.png")
            info.type, info.linkname = type_, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo(long)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    file = next(list_files(str(path)))
    *skipped, member = tars.members(file)
    assert (member.uri, body(file, member)) == (f"tar://{long}::{path}", b"abc")
    assert skipped == [None] * 5


def test_names_in_other_encodings_are_listed_and_read(tmp_path):
    data = tar_of({"grün.png": b"1"}, format=tarfile.GNU_FORMAT, encoding="latin-1")
    file = put(str(tmp_path / "a.tar"), data)
    assert {name: body(file, member) for name, member in listed(file).items()} == {"gr\\xfcn.png": b"1"}


def test_a_webdataset_lists_its_images_alone(store):
    samples = {f"{k:05d}.{ending}": f"{k}{ending}".encode() for k in range(50) for ending in ("cls", "jpg", "json")}
    file = put(join(store, "shard-000000.tar"), tar_of(samples))
    found = list(tars.members(file))
    assert [body(file, member) for member in found if member] == [f"{k}jpg".encode() for k in range(50)]
    assert found.count(None) == 100


def test_a_sparse_member_is_a_row_with_the_reason(tmp_path):
    info = tarfile.TarInfo("x.tif")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    file = put(str(tmp_path / "a.tar"), info.tobuf(tarfile.GNU_FORMAT) + bytes(512) + tar_of({"y.png": b"1"}))
    sparse, good = tars.members(file)
    assert "sparse" in sparse.error
    assert body(file, good) == b"1"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_a_truncated_tar_lists_what_is_whole_and_says_so(store, ending):
    data = WRITERS[ending]({f"{k}.png": CHANCE.bytes(100_000) for k in range(5)})
    file = put(join(store, f"a{ending}"), data[:350_000])
    found = list(tars.members(file))
    assert found[-1].uri == file.uri
    assert found[-1].error
    if ending == ".tar":
        assert [member.error is None for member in found] == [True, True, True, False, False]
        assert [len(body(file, member)) for member in found[:3]] == [100_000] * 3
        with pytest.raises(ImageError, match="cut off"):
            body(file, found[3])


@pytest.mark.parametrize("at", [0, 50_000, 201_728])  # first header, body (unharmed), third header
def test_a_damaged_header_is_said_and_nothing_is_made_up(tmp_path, at):
    data = bytearray(tar_of({f"{k}.png": bytes([k]) * 100_000 for k in range(4)}))
    data[at : at + 100] = b"\xff" * 100
    found = list(tars.members(put(str(tmp_path / "a.tar"), bytes(data))))
    count = {0: 0, 201_728: 2}.get(at, 4)
    assert [member.error is None for member in found] == [True] * count + [False] * (count < 4)


def test_a_negative_size_ends_the_listing(tmp_path):
    header = bytearray(tarfile.TarInfo("x.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    file = put(str(tmp_path / "a.tar"), bytes(header) + bytes(10_240))
    (member,) = tars.members(file)
    assert (member.uri, "below 0" in member.error) == (file.uri, True)


def test_a_header_that_says_a_huge_name_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2**31)
    (member,) = tars.members(next(list_files(str(path))))
    assert "in one read" in member.error


def test_large_members_have_a_span_and_are_not_read_whole(tmp_path):
    info = tarfile.TarInfo("x.tif")
    info.size = MAX_MEMBER_BYTES + 1
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf())
    os.truncate(path, 512 + 2**30 + 10_240)
    file = next(list_files(str(path)))
    (member,) = tars.members(file)
    assert (member.error, tars.span(member.part)) == (None, (512, MAX_MEMBER_BYTES + 1))
    with pytest.raises(ImageError, match="file of its own"):
        body(file, member)


def test_a_read_of_another_version_is_refused(tmp_path):
    file = put(str(tmp_path / "a.tar"), tar_of({"x.png": b"1" * 100, "y.png": b"2" * 5000}))
    member = listed(file)["y.png"]
    publish(file.uri, tar_of({"x.png": b"1" * 100, "y.png": b"2" * 4000}))
    with pytest.raises(ImageError, match="--overwrite"):
        body(file, member)
