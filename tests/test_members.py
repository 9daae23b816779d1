"""Every container format lists its images without reading them, reads them back on every store, and survives damage."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from containers import BODIES, CHANCE, WITHOUT, WRITERS, body, container_of, listed, put, tar_of, zip_of
from web import served

from segray.archives import tars
from segray.archives.members import CONTAINERS
from segray.errors import ImageError, SegrayError
from segray.listing import list_files
from segray.storage import File, publish, read_bytes, stat
from segray.uris import join

pytestmark = pytest.mark.usefixtures("own_copies")


def test_every_format_is_written_here():
    endings = {ending for container in CONTAINERS.values() for ending in container.ENDINGS}
    assert endings == {ending.lower() for ending in WRITERS}
    assert container_of("s3://b/a.tiff") is None


@pytest.mark.parametrize("ending", WRITERS)
def test_members_are_listed_in_order_and_read_back(store, ending):
    is_table = ending == ".parquet"
    file = put(join(store, f"a b{ending}"), WRITERS[ending](BODIES if is_table else BODIES | WITHOUT))
    container = container_of(file.uri)
    members = list(container.members(file))
    found = [member for member in members if member is not None]
    scheme = next(name for name, format_ in CONTAINERS.items() if format_ is container)
    names = [f"{row:08d}" for row in range(len(BODIES))] if is_table else list(BODIES)
    assert [member.uri for member in found] == [f"{scheme}://{name}::{file.uri}" for name in names]
    assert [container.read(file.uri, member.part) for member in found] == list(BODIES.values())
    assert {(member.etag, member.error) for member in found} == {(file.etag, None)}
    assert members.count(None) == (0 if is_table else len(WITHOUT))
    if not is_table:
        assert [member.size for member in found] == [len(data) for data in BODIES.values()]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda member: container.read(file.uri, member.part), found * 20))
    assert read == list(BODIES.values()) * 20


@pytest.mark.parametrize("ending", WRITERS)
def test_a_container_may_have_a_signed_address(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(WRITERS[ending](BODIES))
    with served(tmp_path) as address:
        file = stat(File(f"{address}/a{ending}?sig=a/b.png&x=1", -1, ""))
        assert [body(file, member) for member in listed(file).values()] == list(BODIES.values())


@pytest.mark.parametrize("ending", [".tar.gz", ".parquet"])
def test_a_web_server_need_not_say_how_large_a_container_is(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(WRITERS[ending](BODIES))
    with served(tmp_path, sized=False) as address:
        file = stat(File(f"{address}/a{ending}", -1, ""))
        assert [body(file, member) for member in listed(file).values()] == list(BODIES.values())


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_a_web_server_that_sends_no_parts_gives_no_wrong_member(tmp_path, ending):
    bodies = {f"{name}.png": CHANCE.bytes(3000) for name in "abc"}  # of equal size, so that their headers are alike
    (tmp_path / f"a{ending}").write_bytes(WRITERS[ending](bodies))
    with served(tmp_path, parts=False) as address:
        file = stat(File(f"{address}/a{ending}", -1, ""))
        first, *others = listed(file).values()
        assert body(file, first) == bodies["a.png"]
        for member in others:
            with pytest.raises(ImageError, match="its web server sends no parts of files; copy it"):
                body(file, member)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
def test_the_uri_of_a_member_opens_with_fsspec(tmp_path, ending):
    file = put(str(tmp_path / f"a{ending}"), WRITERS[ending](BODIES))
    with fsspec.open_files([member.uri for member in listed(file).values()])[1] as opened:
        assert opened.read() == BODIES["b/ü 水.JPG"]


@pytest.mark.parametrize("ending", [".tar", ".TGZ", ".zip"])
def test_the_uri_of_a_member_is_an_image_of_its_own(tmp_path, ending):
    for uri, member in listed(put(str(tmp_path / f"a{ending}"), WRITERS[ending](BODIES))).items():
        assert read_bytes(member.uri) == BODIES[uri]


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
        with pytest.raises(ImageError, match=re.escape(uri)):
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
    (member,) = listed(put(str(tmp_path / "b.zip"), data.replace(b"a\0b.png", b"\0ab.png"))).values()
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


@pytest.mark.parametrize("ending", WRITERS)
def test_whatever_is_damaged_is_an_error_of_its_own_or_a_row(tmp_path, ending):
    data, chance = WRITERS[ending](BODIES), np.random.default_rng(len(ending))
    for number in range(60):
        spoilt = bytearray(data)
        for place in chance.integers(0, len(data), 1 + number % 3):
            spoilt[place] = chance.integers(256)
        for place in chance.integers(max(0, len(data) - 800), len(data), number % 4):  # where directories lie
            spoilt[place] = chance.integers(256)
        file = put(str(tmp_path / f"{number}{ending}"), bytes(spoilt[: len(data) - number % 5 // 4 * number]))
        try:
            found = list(container_of(file.uri).members(file))
        except SegrayError:  # a table whose column no longer holds bytes
            continue
        for member in found:
            if member and member.error is None:
                try:
                    body(file, member)
                except ImageError as error:
                    assert file.uri in str(error)
