"""Every container format lists its images without reading them, reads them back on every store, and survives damage."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem, register_implementation
from s3fs.core import S3File

from segray.archives import tables, tars, zips
from segray.archives.entries import MAX_MEMBER_BYTES
from segray.archives.members import CONTAINERS, container_of
from segray.errors import ImageError, SegrayError
from segray.storage import File, join, list_files, publish

CHANCE = np.random.default_rng(0)
BODIES = {name: CHANCE.bytes(size) for name, size in {"a.png": 3000, "b/ü 水.JPG": 70_000, "c.tif": 1}.items()}
WITHOUT = {"notes.txt": b"1", ".x.png": b"2", "__MACOSX/a.png": b"3", "b/.cache/x.jpg": b"4", "noending": b"5"}


def tar_of(bodies: dict[str, bytes], mode: str = "w", **options: object) -> bytes:
    """A tar with files of those names and bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as tar:
        for name, body in bodies.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def zip_of(bodies: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with files of those names and bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, body in bodies.items():
            archive.writestr(name, body)
    return out.getvalue()


def table_of(bodies: dict[str, bytes]) -> bytes:
    """A table of images in row groups of two, as Hugging Face writes them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": body, "path": name} for name, body in bodies.items()], kind)
    out = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": pa.array(range(len(bodies)))}), out, row_group_size=2)
    return out.getvalue()


WRITERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    ".tar": tar_of,
    ".tar.gz": lambda bodies: tar_of(bodies, "w:gz"),
    ".TGZ": lambda bodies: tar_of(bodies, "w:gz", format=tarfile.GNU_FORMAT),
    ".zip": zip_of,
    ".Zip": lambda bodies: zip_of(bodies, zipfile.ZIP_STORED),
    ".parquet": table_of,
}


@pytest.fixture(autouse=True)
def own_copies(monkeypatch, tmp_path):
    """Unpacked copies in the folder of the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def put(uri: str, data: bytes) -> File:
    """The file as it is listed once it holds the data."""
    publish(uri, data)
    return next(list_files(uri))


def listed(file: File) -> dict[str, File]:
    """The members of a container by name."""
    return {member.uri.split("://")[1].split("::")[0]: member for member in container_of(file.uri).members(file)}


def body(file: File, member: File) -> bytes:
    """The bytes of a member."""
    return container_of(file.uri).read(file.uri, member.part)


def test_every_format_is_written_here():
    endings = {ending for container in CONTAINERS.values() for ending in container.ENDINGS}
    assert endings == {ending.lower() for ending in WRITERS}
    assert container_of("s3://b/a.tiff") is None


@pytest.mark.parametrize("ending", WRITERS)
def test_members_are_listed_in_order_and_read_back(store, ending):
    is_table = ending == ".parquet"
    file = put(join(store, f"a b{ending}"), WRITERS[ending](BODIES if is_table else BODIES | WITHOUT))
    container = container_of(file.uri)
    listing = container.members(file)
    found = list(listing)
    scheme = next(name for name, format_ in CONTAINERS.items() if format_ is container)
    names = [f"{row:08d}" for row in range(len(BODIES))] if is_table else list(BODIES)
    assert [member.uri for member in found] == [f"{scheme}://{name}::{file.uri}" for name in names]
    assert [container.read(file.uri, member.part) for member in found] == list(BODIES.values())
    assert {(member.etag, member.error) for member in found} == {(file.etag, None)}
    assert listing.skipped == (0 if is_table else len(WITHOUT))
    if not is_table:
        assert [member.size for member in found] == [len(data) for data in BODIES.values()]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda member: container.read(file.uri, member.part), found * 20))
    assert read == list(BODIES.values()) * 20


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
def test_the_uri_of_a_member_opens_with_fsspec(tmp_path, ending):
    file = put(str(tmp_path / f"a{ending}"), WRITERS[ending](BODIES))
    with fsspec.open_files([member.uri for member in listed(file).values()])[1] as opened:
        assert opened.read() == BODIES["b/ü 水.JPG"]


def test_a_span_is_where_the_bytes_lie(tmp_path):
    data = tar_of(BODIES)
    for name, member in listed(put(str(tmp_path / "a.tar"), data)).items():
        start, size = tars.span(member.part)
        assert data[start : start + size] == BODIES[name]
    for ending in (".tar.gz", ".zip", ".parquet"):
        file = put(str(tmp_path / f"a{ending}"), WRITERS[ending](BODIES))
        assert {container_of(file.uri).span(member.part) for member in listed(file).values()} == {None}


@pytest.mark.parametrize("ending", WRITERS)
def test_an_empty_container_has_no_members(store, ending):
    assert listed(put(join(store, f"a{ending}"), WRITERS[ending]({}))) == {}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("data", [b"", b"x", b"no container " * 100])
def test_what_is_no_container_is_one_row_with_the_reason(store, ending, data):
    file = put(join(store, f"a{ending}"), data)
    (member,) = container_of(file.uri).members(file)
    assert member.uri == file.uri
    assert file.uri in member.error


@pytest.mark.parametrize("ending", WRITERS)
def test_a_container_that_is_gone_is_one_row(store, ending):
    uri = join(store, f"a{ending}")
    publish(join(store, "other"), b"")
    (member,) = container_of(uri).members(File(uri, 10, "1"))
    assert "does not exist" in member.error


@pytest.mark.parametrize("ending", WRITERS)
def test_members_of_a_container_that_is_gone_or_replaced(store, ending):
    file = put(join(store, f"a{ending}"), WRITERS[ending](BODIES))
    first = next(container_of(file.uri).members(file))
    other = put(join(store, f"b{ending}"), b"x" * 100)
    for uri in (join(store, f"none{ending}"), other.uri):
        with pytest.raises(ImageError, match="(?s)" + ("none" if "none" in uri else "b")):
            container_of(uri).read(uri, first.part)


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a/../../x.png", "a::b.png", "..\\x.png", "C:\\x.png"])
@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip"])
def test_a_name_that_leads_elsewhere_is_a_row_with_the_reason(tmp_path, ending, name):
    writer = WRITERS.get(ending) or WRITERS[".TGZ"]
    file = put(str(tmp_path / f"a{ending}"), writer({name: b"1", "./fine..png": b"2"}))
    bad, good = container_of(file.uri).members(file)
    assert "its name" in bad.error
    assert bad.uri.count("::") == 1
    assert (good.error, body(file, good)) == (None, b"2")


def test_a_nul_in_a_name_is_a_row_with_the_reason(tmp_path):
    data = zip_of({"aXb.png": b"1"}).replace(b"aXb.png", b"a\0b.png")
    (member,) = listed(put(str(tmp_path / "a.zip"), data)).values()
    assert "NUL" in member.error
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"path": "a\0b.png"}
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    (member,) = listed(put(str(tmp_path / "a.tar"), data)).values()
    assert "NUL" in member.error


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_several_members_of_one_name_counts(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (("x.png", b"1"), ("y.png", b"2"), ("x.png", b"3")):
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if "gz" in ending else "w") as tar:
            for name, data in (("x.png", b"1"), ("y.png", b"2"), ("./x.png", b"3")):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(data))
    file = next(list_files(str(path)))
    assert [body(file, member) for member in container_of(file.uri).members(file)] == [b"2", b"3"]


# ---- tar


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
    listing = tars.members(file)
    (member,) = listing
    assert (member.uri, body(file, member)) == (f"tar://{long}::{path}", b"abc")
    assert listing.skipped == 5


def test_names_in_other_encodings_are_listed_and_read(tmp_path):
    data = tar_of({"grün.png": b"1"}, format=tarfile.GNU_FORMAT, encoding="latin-1")
    file = put(str(tmp_path / "a.tar"), data)
    assert {name: body(file, member) for name, member in listed(file).items()} == {"gr\\xfcn.png": b"1"}


def test_a_webdataset_lists_its_images_alone(store):
    samples = {f"{k:05d}.{ending}": f"{k}{ending}".encode() for k in range(50) for ending in ("cls", "jpg", "json")}
    file = put(join(store, "shard-000000.tar"), tar_of(samples))
    listing = tars.members(file)
    assert [body(file, member) for member in listing] == [f"{k}jpg".encode() for k in range(50)]
    assert listing.skipped == 100


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
    assert [member.error is not None for member in list(tars.members(file))][-1]


def test_a_header_that_says_a_huge_name_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2**31)
    (member,) = tars.members(next(list_files(str(path))))
    assert "at once" in member.error


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


# ---- zip


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
    listing = zips.members(next(list_files(str(path))))
    assert [member.uri for member in listing] == [f"zip://of windows.png::{path}"]
    assert listing.skipped == 2


def test_local_headers_have_lengths_of_their_own(store):
    """As of streamed archives, behind a stub, and with an extra field longer than what is read ahead."""
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


# ---- Parquet


def write_table(path: Path, **columns: pa.Array) -> File:
    """A Parquet file of those columns, as it is listed."""
    pq.write_table(pa.table(columns), path)
    return next(list_files(str(path)))


def test_the_column_of_images_is_found_or_asked_for(tmp_path):
    one, two = pa.array([b"1"]), pa.array([b"2"], pa.large_binary())
    struct_of = pa.array([{"path": "x", "bytes": b"3"}], pa.struct([("path", pa.string()), ("bytes", pa.binary())]))
    cases = [
        ({"anything": one, "label": pa.array([1])}, None, b"1"),
        ({"anything": two}, None, b"2"),
        ({"anything": struct_of}, None, b"3"),
        ({"mask": one, "Image": two}, None, b"2"),
        ({"png": one, "img": struct_of}, None, b"3"),
        ({"mask": one, "image": two}, "mask", b"1"),
        ({"a.bytes": one, "a": struct_of}, "a.bytes", b"1"),
    ]
    for number, (columns, column, expected) in enumerate(cases):
        file = write_table(tmp_path / f"{number}.parquet", **columns)
        (member,) = tables.members(file, column)
        assert body(file, member) == expected
    file = write_table(tmp_path / "x.parquet", left=one, right=two)
    with pytest.raises(SegrayError, match="left, right; choose one with --column"):
        list(tables.members(file))
    with pytest.raises(SegrayError, match="'up'.*left, right"):
        list(tables.members(file, "up"))
    with pytest.raises(SegrayError, match="no column of images"):
        list(tables.members(write_table(tmp_path / "y.parquet", label=pa.array([1]), name=pa.array(["x"]))))


def test_rows_without_bytes_are_errors(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file = write_table(
        tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": "x"}, None, {"bytes": b"1"}], kind)
    )
    *none, good = tables.members(file)
    for member in none:
        with pytest.raises(ImageError, match="no bytes in row"):
            body(file, member)
    assert body(file, good) == b"1"


def test_a_column_that_is_too_large_is_refused(tmp_path, monkeypatch):
    file = put(str(tmp_path / "a.parquet"), table_of({str(k): CHANCE.bytes(1000) for k in range(4)}))
    members = list(tables.members(file))
    monkeypatch.setattr(tables, "MAX_COLUMN_BYTES", 1500)
    assert all("smaller row groups" in member.error for member in tables.members(file))
    with pytest.raises(ImageError, match="smaller row groups"):
        body(file, members[0])


def test_a_value_repeated_ever_so_often_is_held_once(tmp_path):
    image = CHANCE.bytes(10**6)
    file = write_table(tmp_path / "a.parquet", image=pa.DictionaryArray.from_arrays(np.zeros(3000, np.int32), [image]))
    member = list(tables.members(file))[2999]
    before = pa.total_allocated_bytes()
    assert body(file, member) == image
    assert pa.total_allocated_bytes() - before < 10**8


def test_a_damaged_row_group_fails_alone_and_a_new_version_is_read_anew(tmp_path):
    images = {str(k): CHANCE.bytes(5000) for k in range(6)}
    data = bytearray(table_of(images))
    place = data.index(images["2"][:100]) - 200
    data[place : place + 300] = b"\xff" * 300
    file = put(str(tmp_path / "a.parquet"), bytes(data))
    members = list(tables.members(file))
    for k in (2, 3):
        with pytest.raises(ImageError, match="damaged"):
            body(file, members[k])
    assert body(file, members[5]) == images["5"]
    again = put(file.uri, table_of(images) + b"")
    os.utime(file.uri, (1, 1))
    again = next(list_files(file.uri))
    assert [body(again, member) for member in tables.members(again)] == list(images.values())


# ---- damage of any kind


@pytest.mark.parametrize("ending", WRITERS)
def test_whatever_is_damaged_is_an_error_of_its_own_or_a_row(tmp_path, ending):
    data, chance = WRITERS[ending](BODIES), np.random.default_rng(len(ending))
    for number in range(60):
        spoilt = bytearray(data)
        for place in chance.integers(0, len(data), 1 + number % 3):
            spoilt[place] = chance.integers(256)
        for place in chance.integers(max(0, len(data) - 800), len(data), number % 4):  # where directories are
            spoilt[place] = chance.integers(256)
        file = put(str(tmp_path / f"{number}{ending}"), bytes(spoilt[: len(data) - number % 5 // 4 * number]))
        try:
            found = list(container_of(file.uri).members(file))
        except SegrayError:  # a table whose column is no longer one of bytes
            continue
        for member in found:
            if member.error is None:
                try:
                    body(file, member)
                except ImageError as error:
                    assert file.uri in str(error)


# ---- what listing costs


class CountingFileSystem(AbstractFileSystem):
    """A local file as a store without a cache; what is asked of it is counted."""

    protocol = "counting"
    requests: list[int] = []  # noqa: RUF012
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
def counting(monkeypatch):
    """The sizes of the requests made so far."""
    register_implementation("counting", CountingFileSystem, clobber=True)
    requests: list[int] = []
    monkeypatch.setattr(CountingFileSystem, "requests", requests)
    monkeypatch.setattr("segray.storage.time.sleep", lambda seconds: None)
    return requests


def file_of(path: Path) -> File:
    """A local file as a file of the counting store."""
    return File(f"counting://{path}", path.stat().st_size, "1")


@pytest.mark.parametrize("size", [200, 100_000])
def test_a_tar_of_20_000_members_is_listed_by_its_headers(tmp_path, counting, size):
    path, count = tmp_path / "a.tar", 20_000
    with path.open("wb") as out:  # the bodies are holes
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
        assert len(counting) < 50  # no request a member where members are short
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


def test_checksums_are_those_of_the_members(tmp_path):
    file = put(str(tmp_path / "a.zip"), zip_of(BODIES))
    assert [member.part[-8:] for member in zips.members(file)] == [f"{zlib.crc32(b):08x}" for b in BODIES.values()]
