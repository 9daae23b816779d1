"""Parquet tables: which column holds the images, rows without bytes, limits and damage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from containers import CHANCE, body, put, table_of

from segray.archives import tables
from segray.archives.images import read_image
from segray.errors import ImageError, SegrayError
from segray.grid import Window
from segray.listing import list_files
from segray.storage import File


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
        ({"anything": one.cast(pa.binary_view())}, None, b"1"),
        ({"anything": one.dictionary_encode()}, None, b"1"),
        ({"anything": struct_of}, None, b"3"),
        ({"mask": one, "Image": two}, None, b"2"),
        ({"png": one, "img": struct_of}, None, b"3"),
        ({"mask": one, "image": two}, "mask", b"1"),
        ({"a.bytes": one, "a": struct_of}, "a.bytes", b"1"),
        ({"mask": one, "Photo": two}, "photo", b"2"),
        ({"PHOTO": one, "photo": two}, "photo", b"2"),
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


def test_a_table_without_images_is_skipped(tmp_path):
    plain = write_table(tmp_path / "a.parquet", label=pa.array([1]), name=pa.array(["x"]))
    shapes = pa.table({"geometry": pa.array([b"1"])}, metadata={"geo": '{"columns": {"geometry": {}}}'})
    pq.write_table(shapes, tmp_path / "b.parquet")
    equal = write_table(tmp_path / "e.parquet", label=pa.array(np.zeros(10**5, np.int64)))
    assert equal.size < 10**5  # more rows than bytes
    for file in (plain, equal, next(list_files(str(tmp_path / "b.parquet")))):
        assert list(tables.members(file, "image")) == [None]
    both = {"geometry": pa.array([b"1"]), "image": pa.array([b"2"])}
    pq.write_table(pa.table(both, metadata={"geo": '{"columns": {"geometry": {}}}'}), tmp_path / "c.parquet")
    file = next(list_files(str(tmp_path / "c.parquet")))
    (member,) = tables.members(file)
    assert body(file, member) == b"2"
    for broken in ("no json", "[]", '{"columns": null}'):
        pq.write_table(pa.table({"a": pa.array([b"3"])}, metadata={"geo": broken}), tmp_path / "d.parquet")
        (member,) = tables.members(next(list_files(str(tmp_path / "d.parquet"))))


def test_more_rows_than_bytes_are_damage(tmp_path):
    file = write_table(tmp_path / "a.parquet", image=pa.array([b"1"] * 100))
    (member,) = tables.members(File(file.uri, 99, file.etag))
    assert (member.uri, "100 rows in 99 bytes" in member.error) == (file.uri, True)


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


def test_a_row_whose_value_is_missing_fails_alone(tmp_path):
    """Equal values are stored once and numbered: damage may leave numbers of values that are not there."""
    values = [bytes([number]) * 99 for number in range(3)]
    pq.write_table(pa.table({"image": pa.array(values)}), tmp_path / "a.parquet", compression="none")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    place = data.index(b"\2\3\x24", data.index(values[2]))  # 2 bits each, of a multiple of 8, which are 0, 1, 2
    data[place + 2] = 0b110100  # 0, 1, 3
    file = put(str(tmp_path / "a.parquet"), bytes(data))
    *sound, damaged = tables.members(file)
    assert [body(file, member) for member in sound] == values[:2]
    with pytest.raises(ImageError, match="a.parquet is damaged in row 2 of row group 0: .*out-of-bounds"):
        body(file, damaged)


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


def test_a_raster_that_unpacks_to_more_than_may_be_held_is_refused(tmp_path):
    with rasterio.MemoryFile() as memory:
        options = {"count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate", "sparse_ok": True}
        with memory.open(driver="GTiff", height=20_000, width=20_000, **options):
            pass  # sparse: no block takes a byte
        file = write_table(tmp_path / "a.parquet", image=pa.array([memory.read()]))
    (member,) = tables.members(file)
    with pytest.raises(ImageError, match="00000000::.*it has 1200000000 bytes, more than the 1073741824 that are"):
        read_image(member.uri, part=member.part)
    assert read_image(member.uri, part=member.part, window=Window(0, 0, 9, 9)).pixels.shape == (3, 9, 9)
