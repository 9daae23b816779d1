"""Mask shards: the schema that others rely on, the same bytes for the same rows, and rows that read back as written."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tarfile
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from segray.footprints import window_transform
from segray.grid import Window
from segray.masks import GREY, Classes, decode_png
from segray.regions import WindowMask
from segray.shards import (
    CONFIDENCE,
    FAILED,
    MASK,
    NODATA,
    OK,
    SCHEMA,
    STATISTICS,
    MaskRow,
    Place,
    encode_parquet,
    encode_tar,
    failed_row,
    footprint,
    mask_of,
    mask_row,
    read_masks,
    read_metadata,
    read_statistics,
    shard_uri,
    window_of,
    write_shard,
)
from segray.storage import exists, read_bytes
from segray.uris import filesystem

CLASSES = Classes(names=("ground", "house", "road"), colors=((0, 0, 0), (255, 0, 0), (9, 9, 9)))
METADATA = {"classes": CLASSES.to_json(), "ignore_index": 255, "model": "abc", "settings": {"blend": "taper"}}
UTM = (0.1, 0.0, 389000.123456789, 0.0, -0.1, 5820000.987654321)
COLUMNS = {  # as documented, in order
    "image": pa.string(), "row_off": pa.int32(), "col_off": pa.int32(), "height": pa.int32(), "width": pa.int32(),
    "image_height": pa.int32(), "image_width": pa.int32(), "mask": pa.binary(), "status": pa.string(),
    "error": pa.string(), "pixel_counts": pa.list_(pa.int64()), "valid_pixels": pa.int64(),
    "confidence": pa.float32(), "seam_disagreement": pa.float32(), "crs": pa.string(),
    "transform": pa.list_(pa.float64()), "geometry": pa.binary(), "etag": pa.string(),
}  # fmt: skip


def result(window: Window, *, valid: bool = True, seed: int = 0) -> WindowMask:
    """The segmenter's result for a window, a tenth or all of which has no data."""
    mask = np.random.default_rng(seed).integers(0, 3, (window.height, window.width), dtype=np.uint8)
    mask[: max(1, window.height // 10)] = 255
    if not valid:
        mask[:] = 255
    counts = np.bincount(mask[mask < 255], minlength=3).astype(np.int64)
    known = {"confidence": 0.1 + seed / 7, "seam_disagreement": 1 / 3} if valid else {}
    known = known or {"confidence": None, "seam_disagreement": None}
    return WindowMask(window=window, mask=mask, pixel_counts=counts, valid_pixels=int(counts.sum()), **known)


def all_kinds() -> list[MaskRow]:
    placed = Place(image="s3://b/a/scène 1.v2.tif", etag="t1", height=400, width=300, crs="EPSG:32633", transform=UTM)
    bare = Place(image="s3://b/x.png", etag="t2", height=30, width=20)
    return [
        mask_row(placed, result(Window(0, 0, 200, 150)), CLASSES),
        mask_row(placed, result(Window(200, 150, 200, 150), seed=1), CLASSES),
        mask_row(placed, result(Window(0, 150, 200, 150), valid=False), CLASSES),
        mask_row(bare, result(Window(0, 0, 30, 20), seed=2), CLASSES),
        failed_row(bare, Window(0, 0, 30, 20), "x.png cannot be read: it is 'broken'"),
        failed_row(Place(image="s3://b/y.png", etag="t3"), Window(0, 0, 0, 0), "y.png cannot be read"),
    ]


def test_the_schema_is_the_documented_one():
    assert {field.name: field.type for field in SCHEMA} == COLUMNS
    assert SCHEMA.names == list(COLUMNS)
    assert {field.name for field in dataclasses.fields(MaskRow)} == {*COLUMNS, "confidence_map"}
    table = pq.read_table(io.BytesIO(encode_parquet(all_kinds(), METADATA)))
    assert {field.name: field.type for field in table.schema} == COLUMNS


def test_rows_read_back_from_parquet_as_they_were():
    rows = all_kinds()
    table = pq.read_table(io.BytesIO(encode_parquet(rows, METADATA)))
    assert [MaskRow(**row) for row in table.to_pylist()] == rows
    assert json.loads(table.schema.metadata[b"segray"]) == METADATA


def test_statuses_and_what_they_leave_out():
    rows = all_kinds()
    assert [row.status for row in rows] == [OK, OK, NODATA, OK, FAILED, FAILED]
    for row in rows:
        assert (row.mask is not None) == (row.status == OK)
        assert (row.error is not None) == (row.status == FAILED)
        assert (row.confidence is not None) == (row.status == OK)
        assert row.valid_pixels == sum(row.pixel_counts or [])
    assert (decode_png(rows[0].mask) == result(Window(0, 0, 200, 150)).mask).all()
    with Image.open(io.BytesIO(rows[0].mask)) as picture:  # as any viewer reads it
        assert picture.mode == "P"
        assert (np.asarray(picture) == result(Window(0, 0, 200, 150)).mask).all()
        assert np.asarray(picture.convert("RGB"))[-1, -1].tolist() == list(CLASSES.colors[np.asarray(picture)[-1, -1]])


def test_the_window_and_the_mask_of_a_row():
    rows = [vars(row) for row in all_kinds()]
    assert [window_of(row) for row in rows[1:3]] == [Window(200, 150, 200, 150), Window(0, 150, 200, 150)]
    assert np.array_equal(mask_of(rows[1], rows[1]["mask"]), result(Window(200, 150, 200, 150), seed=1).mask)
    assert np.array_equal(mask_of(rows[2], None), np.full((200, 150), 255, np.uint8))


@pytest.mark.parametrize("encode", [encode_parquet, encode_tar])
def test_the_same_rows_give_the_same_bytes(encode):
    first = encode(all_kinds(), METADATA)
    assert encode(all_kinds(), dict(reversed(METADATA.items()))) == first
    assert encode(all_kinds()[::-1], METADATA) != first


def test_geoparquet_metadata_only_when_something_is_georeferenced():
    geo = pq.read_metadata(io.BytesIO(encode_parquet(all_kinds(), METADATA))).metadata[b"geo"]
    column = json.loads(geo)["columns"]["geometry"]
    assert json.loads(geo) == {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    assert (column["encoding"], column["geometry_types"], "crs" in column) == ("WKB", ["Polygon"], False)
    bare = pq.read_metadata(io.BytesIO(encode_parquet(all_kinds()[3:], METADATA))).metadata
    assert b"geo" not in bare
    assert b"segray" in bare


def points(wkb: bytes) -> np.ndarray:
    assert struct.unpack_from("<BIII", wkb) == (1, 3, 1, 5)
    assert len(wkb) == 13 + 80
    return np.array(struct.unpack_from("<10d", wkb, 13)).reshape(5, 2)


def test_footprints_are_where_the_window_lies():
    plain = points(footprint("EPSG:4326", (0.5, 0, 10, 0, -0.25, 50), Window(2, 4, 8, 6)))
    assert plain.tolist() == [[12, 47.5], [15, 47.5], [15, 49.5], [12, 49.5], [12, 47.5]]  # counter-clockwise
    turned = points(footprint("OGC:CRS84", (0, 1, 10, 1, 0, 50), Window(0, 0, 2, 3)))
    assert {tuple(point) for point in turned.tolist()} == {(10, 50), (12, 50), (12, 53), (10, 53)}
    # Web Mercator by its definition: x = R * longitude, y = R * ln(tan(pi / 4 + latitude / 2))
    radius = 6378137.0
    corner = points(footprint("EPSG:3857", (100, 0, radius * 0.2, 0, -100, radius * 0.5), Window(0, 0, 10, 10)))[3]
    assert corner[0] == pytest.approx(np.degrees(0.2), abs=1e-9)
    assert corner[1] == pytest.approx(np.degrees(2 * np.arctan(np.exp(0.5)) - np.pi / 2), abs=1e-9)
    # the central meridian of UTM zone 33 is 15 degrees east
    assert points(footprint("EPSG:32633", (1, 0, 500000, 0, -1, 0), Window(0, 0, 1, 1)))[3] == pytest.approx([15, 0])


WINDOW = Window(0, 0, 100, 100)


def parts(wkb: bytes) -> list[list[tuple[float, float]]]:
    geometry = shapely.from_wkb(wkb)
    assert geometry.is_valid
    polygons = geometry.geoms if geometry.geom_type == "MultiPolygon" else [geometry]
    assert all(shapely.is_ccw(polygon.exterior) for polygon in polygons)
    return [list(polygon.exterior.coords) for polygon in polygons]


@pytest.mark.parametrize(
    ("crs", "transform", "sides"),
    [
        ("OGC:CRS84", (0.01, 0, 179.5, 0, -0.01, 10), [(179.5, 180), (-180, -179.5)]),
        ("OGC:CRS84", (0.01, 0, -180.5, 0, -0.01, 10), [(179.5, 180), (-180, -179.5)]),
        ("OGC:CRS84", (0.01, 0, 180, 0, -0.01, 10), [(-180, -179)]),
        ("OGC:CRS84", (0.01, 0, 190, 0, 0.01, 10), [(-170, -169)]),
        ("OGC:CRS84", (0.01, 0, 179, 0, -0.01, 10), [(179, 180)]),
        ("OGC:CRS84", (3.6, 0, -180, 0, -1.8, 90), [(-180, 180)]),
        ("OGC:CRS84", (3.6, 0, 0, 0, -1.8, 90), [(-180, 180)]),
        ("OGC:CRS84", (3.6, 0, -180.1, 0, -1.8, 90), [(-180, 180)]),
        ("EPSG:32601", (100, 0, 165000, 0, -100, 1110000), [(179.945, 180), (-180, -179.964)]),
        ("EPSG:32760", (100, 0, 825000, 0, -100, 9000000), [(179.956, 180), (-180, -179.952)]),
    ],
)
def test_footprints_are_cut_at_the_antimeridian(crs, transform, sides):
    found = [sorted(x for x, _ in ring)[:: len(ring) - 1] for ring in parts(footprint(crs, transform, WINDOW))]
    assert np.allclose(found, sides, atol=2e-3)
    assert all(-180 <= x <= 180 for side in found for x in side)


def test_geoparquet_names_the_types_of_its_geometries():
    transform = (0.01, 0, 179.85, 0, -0.01, 9)
    place = Place(image="a.tif", etag="", height=10, width=100, crs="OGC:CRS84", transform=transform)
    rows = [mask_row(place, result(window), CLASSES) for window in (Window(0, 0, 10, 20), Window(0, 40, 10, 20))]
    geo = json.loads(pq.read_metadata(io.BytesIO(encode_parquet(rows, METADATA))).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:999999", UTM),
        ("nonsense", UTM),
        ("EPSG:5773", UTM),
        ('LOCAL_CS["site",UNIT["metre",1]]', UTM),
        ('ENGCRS["site",EDATUM["x"],CS[Cartesian,2],AXIS["e",east],AXIS["n",north],LENGTHUNIT["metre",1]]', UTM),
        ("EPSG:32633", (1e300, 0, 1e300, 0, -1e300, 1e300)),
        ("EPSG:32633", (np.nan, 0, 0, 0, -1, 0)),
        ("EPSG:3035", (1, 0, 1e12, 0, -1, 1e12)),
    ],
)
def test_no_footprint_where_there_is_no_way_to_longitude_and_latitude(crs, transform):
    assert footprint(crs, transform, Window(0, 0, 10, 10)) is None
    place = Place(image="a.tif", etag="", height=10, width=10, crs=crs, transform=transform)
    row = mask_row(place, result(Window(0, 0, 10, 10)), CLASSES)
    assert (row.crs, row.geometry) == (crs, None)
    encode_parquet([row], METADATA)


def test_window_transforms():
    assert window_transform(UTM, Window(0, 0, 5, 5)) is UTM
    rotated = (0.1, 0.2, 1.0, 0.3, -0.4, 2.0)
    assert window_transform(rotated, Window(7, 11, 5, 5)) == pytest.approx((0.1, 0.2, 3.5, 0.3, -0.4, 2.5), abs=1e-12)


def test_the_tar_reads_as_webdataset_does():
    rows = all_kinds()
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(encode_tar(rows, METADATA))) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.uname, member.isfile()) == (0, 0, "", True)
            assert "/" not in member.name
            key, extension = member.name.split(".", 1)  # WebDataset's key ends at the first dot
            assert samples == {} or key == list(samples)[-1] or key not in samples  # the files of a sample are adjacent
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    assert len(samples) == len(rows)
    for row, parts in zip(rows, samples.values()):
        assert set(parts) == ({"json", "png"} if row.mask else {"json"})
        assert parts.get("png") == row.mask
        values = json.loads(parts["json"])
        assert values.pop("segray") == METADATA
        assert values.pop("geometry") == (row.geometry.hex() if row.geometry else None)
        assert values == {k: v for k, v in dataclasses.asdict(row).items() if k in STATISTICS}


@pytest.mark.parametrize(
    "image", ["s3://b/c.d/frame_7.jpg", "tar://drive/frame_7.jpg::s3://b/other.tar", "zip://frame_7.jpg::/a/photos.zip"]
)
def test_keys_in_the_tar_have_the_name_of_the_image(image):
    row = failed_row(Place(image=image, etag=""), Window(0, 0, 0, 0), "x")
    with tarfile.open(fileobj=io.BytesIO(encode_tar([row], {}))) as tar:
        assert tar.getnames() == ["00000-frame_7-0-0.json"]


def test_names_of_images_cannot_lead_out_of_the_tar():
    names = ["../../etc/passwd.png", "a" * 300 + ".png", "/.png", "é/水.png", "a\n.png", "..", ""]
    rows = [failed_row(Place(image=name, etag=""), Window(0, 0, 0, 0), "x") for name in names * 2]
    with tarfile.open(fileobj=io.BytesIO(encode_tar(rows, {}))) as tar:
        members = tar.getnames()
    assert len(set(members)) == len(rows)
    assert all(name.isascii() and len(name) <= 100 and not {"/", "\n"} & set(name) for name in members)
    assert all(name.count(".") == 1 for name in members)


@pytest.mark.parametrize("tail", [10, 5000, 6000, 7000, 8000, 10_000, 2**20])  # from less than the footer to all of it
def test_statistics_leave_the_masks_where_they_are(tmp_path, monkeypatch, tail):
    monkeypatch.setattr("segray.shards.TAIL_BYTES", tail)
    rows = all_kinds() * 3
    write_shard(str(tmp_path), 0, rows=rows, formats=("parquet",), metadata=METADATA)
    fresh = [{k: v for k, v in dataclasses.asdict(row).items() if k in STATISTICS} for row in rows]
    assert read_statistics(str(tmp_path), 0, "parquet") == fresh


@pytest.mark.parametrize("tail", [10, 5000, 6000, 7000, 10_000, 2**20])
def test_a_layer_is_read_without_the_others(tmp_path, monkeypatch, tail):
    monkeypatch.setattr("segray.shards.TAIL_BYTES", tail)
    found = result(Window(200, 150, 200, 150), seed=1)
    steps = np.random.default_rng(0).integers(1, 65536, (200, 150)).astype(np.uint16)
    place = Place(image="s3://b/a.tif", etag="t1", height=400, width=300)
    rows = [mask_row(place, dataclasses.replace(found, confidences=steps), CLASSES), *all_kinds()]
    metadata = {**METADATA, "settings": {"confidence": True}}
    write_shard(str(tmp_path), 0, rows=rows, formats=("parquet",), metadata=metadata)
    read, plain = [], filesystem(str(tmp_path))[0].cat_file
    monkeypatch.setattr(
        "fsspec.implementations.local.LocalFileSystem.cat_file",
        lambda self, path, start=None, end=None: read.append((start or 0, end)) or plain(path, start, end),
    )
    for layer in (MASK, CONFIDENCE):
        read.clear()
        layers = [data for _, data in read_masks(str(tmp_path), 0, "parquet", layer, alone=True)]
        assert layers == [getattr(row, layer) for row in rows]
        size = filesystem(str(tmp_path))[0].size(shard_uri(str(tmp_path), 0, "parquet"))
        if tail == 7000:
            assert sum(end - start for start, end in read) < 0.8 * size


class StrictFileSystem(MemoryFileSystem):
    """Files in memory that want ranges with a start and an end, as Azure does."""

    protocol = "strict"
    store: dict = {}

    def cat_file(self, path, start=None, end=None, **options):
        if start is not None and not 0 <= start < end:
            raise ValueError(f"bytes={start}-{end} is no range")
        return super().cat_file(path, start=start, end=end, **options)


def test_a_shard_that_another_machine_wrote_anew_has_its_new_size(s3):
    output, rows = f"{s3}/written-anew", all_kinds()
    write_shard(output, 0, rows=rows[:1], formats=("parquet",), metadata=METADATA)
    fs, path = filesystem(shard_uri(output, 0, "parquet"))
    fs.ls(path.rpartition("/")[0])  # and it caches the listing
    type(fs)(skip_instance_cache=True).pipe_file(path, encode_parquet(rows * 3, METADATA))
    assert len(read_statistics(output, 0, "parquet")) == len(rows) * 3


@pytest.mark.parametrize("tail", [10, 6000, 2**20])
def test_statistics_are_read_where_ranges_cannot_be_counted_from_the_end(monkeypatch, tail):
    register_implementation("strict", StrictFileSystem, clobber=True)
    monkeypatch.setattr("segray.shards.TAIL_BYTES", tail)
    rows = all_kinds() * 3
    write_shard("strict://out", 0, rows=rows, formats=("parquet",), metadata=METADATA)
    assert [row["image"] for row in read_statistics("strict://out", 0, "parquet")] == [row.image for row in rows]
    assert read_metadata("strict://out", 0, "parquet") == METADATA


def test_jobs_that_ask_for_confidences_write_them_in_percent(store):
    found = result(Window(200, 150, 200, 150), seed=1)
    steps = np.random.default_rng(0).integers(1, 65536, (200, 150)).astype(np.uint16)
    place = Place(image="s3://b/a.tif", etag="t1", height=400, width=300)
    rows = [mask_row(place, dataclasses.replace(found, confidences=steps), CLASSES), *all_kinds()[2:]]
    metadata = {**METADATA, "settings": {**METADATA.get("settings", {}), "confidence": True}}
    write_shard(store, 3, rows=rows, formats=("png", "parquet"), metadata=metadata)
    for fmt in ("parquet", "png"):
        layers = [layer for _, layer in read_masks(store, 3, fmt, CONFIDENCE)]
        assert [layer is not None for layer in layers] == [True, *[False] * (len(rows) - 1)]
        with Image.open(io.BytesIO(layers[0])) as picture:  # as any viewer reads it
            assert (picture.mode, picture.info["transparency"]) == ("L", 255)
            percent = np.asarray(picture)
        assert (percent == decode_png(layers[0], GREY)).all()
        assert ((percent == 255) == (found.mask == 255)).all()
        assert np.abs(percent / 100 - steps / 65535)[found.mask != 255].max() <= 0.005 + 1e-6
        for alone in (False, True):
            assert [mask for _, mask in read_masks(store, 3, fmt, alone=alone)] == [row.mask for row in rows]
            assert [found for _, found in read_masks(store, 3, fmt, CONFIDENCE, alone=alone)] == layers
        assert len(read_statistics(store, 3, fmt)) == len(rows)
    names = pq.read_schema(io.BytesIO(read_bytes(shard_uri(store, 3, "parquet")))).names
    assert names == [*SCHEMA.names[:8], "confidence_map", *SCHEMA.names[8:]]


def test_statistics_are_the_same_from_both_formats(store):
    rows = all_kinds()
    write_shard(store, 12, rows=rows, formats=("png", "parquet"), metadata=METADATA)
    fresh = [{k: v for k, v in dataclasses.asdict(row).items() if k in STATISTICS} for row in rows]
    for fmt in ("parquet", "png"):
        assert exists(shard_uri(store, 12, fmt))
        assert read_statistics(store, 12, fmt) == fresh
        masks = read_masks(store, 12, fmt)
        assert [mask for _, mask in masks] == [row.mask for row in rows]
        assert [values["image"] for values, _ in masks] == [row.image for row in rows]
        with pytest.raises((ValueError, KeyError)) if fmt == "parquet" else nullcontext():
            assert not any(layer for _, layer in read_masks(store, 12, fmt, CONFIDENCE))
    assert shard_uri(store, 12, "parquet").endswith("/masks/shard-00000012.parquet")
    assert shard_uri(store, 12, "png").endswith("/masks/shard-00000012.tar")
