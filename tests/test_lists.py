"""Lists of URIs and STAC documents: what they name, relative and absolute, and what is refused with a sentence."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import parquet_of
from web import served

from segray.archives import open_archive
from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.storage import File, publish, stat
from segray.uris import join

NAMES = ["s3://b/a 1.tif", "sub/ü.png", "/data/c.jpg", "d::e.png"]
HREF = b'{"type": "Feature", "id": "x", "assets": {"a": {"href": %s}}}'
LISTS = {
    "l.txt": "# a comment\n\n" + "\n".join(f" {name} " for name in NAMES) + "\n",
    "one.csv": "\n".join(NAMES),
    "header.csv": "uri\n" + "\n".join(NAMES),
    "other.csv": "\n \nImage_Path\n" + "\n".join(NAMES),
    "marks.csv": "uri;size\n" + "\n".join(f"{name};1,5" for name in NAMES),
    "tabs.csv": "id\tPath\r\n" + "\r\n".join(f"1\t{name}" for name in NAMES),
    "l.csv": 'id,Path\n1,s3://b/a 1.tif\n2,"sub/ü.png"\n3,/data/c.jpg\n\n4,d::e.png\n',
    "l.parquet": parquet_of(id=[1, 2, 3, 4], uri=NAMES),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_names_its_images_in_order(store: str, name: str) -> None:
    content = LISTS[name]
    publish(join(store, name), content if isinstance(content, bytes) else content.encode())
    files = list(open_archive(join(store, name)).images())
    assert [file.uri for file in files] == [NAMES[0], join(store, NAMES[1]), NAMES[2], join(store, NAMES[3])]
    assert all(file.size < 0 for file in files)  # the store was not asked


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_memory_does_not_grow_with_a_list(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("uri\r\n" + "".join(f"s3://bucket/{k:030d}.tif\r\n" for k in range(20_000)))
    tracemalloc.start()
    images = iter(open_archive(str(tmp_path / name)).images())
    count = sum(file.uri.startswith("s3://bucket/0") and file.uri.endswith(".tif") for file in images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 500_000  # half the size of the file


GEO = {"geo": '{"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}'}
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("metadata", [None, GEO], ids=["plain", "geometries"])
def test_a_tile_index_is_a_list(tmp_path: Path, kind: pa.DataType, metadata: dict[str, str] | None) -> None:
    columns = {"location": pa.array(["a.tif", "b.tif"]).cast(kind), "number": pa.array([1, 2])}
    columns |= {"geometry": pa.array([b"1", b"2"])} if metadata else {}
    pq.write_table(pa.table(columns, metadata=metadata), tmp_path / "index.parquet")
    files = open_archive(str(tmp_path / "index.parquet")).images()
    assert [file.uri for file in files] == [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]


@pytest.mark.parametrize("at_once", [1, 2, 3, 1000])
def test_a_file_that_is_named_again_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("segray.archives.once.AT_ONCE", at_once)
    monkeypatch.setattr("segray.archives.once.RECENT", 2)
    names = ["b.tif", "./a.tif", "a.tif", "x/../b.tif", f"{tmp_path}/b.tif", f"file://{tmp_path}//a.tif", "c.tif"]
    names += ["s3://b/x.tif", "s3://b//x.tif", "s3://b/x.tif", "c.tif"]
    (tmp_path / "l.txt").write_text("\n".join(names))
    items = [{"type": "Feature", "id": "i", "assets": {"image": asset(name)}} for name in names]
    (tmp_path / "l.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    for name in ("l.txt", "l.json"):
        files = [file.uri for file in open_archive(str(tmp_path / name)).images()]
        assert files == [*(str(tmp_path / name) for name in ("b.tif", "a.tif", "c.tif")), *names[7:9]]


@pytest.mark.parametrize("first", ["a.tif", "b;1.png", "c.tar.gz", "d.mbtiles", "s3://b/x,y;z.tif", "sub/no_ending"])
def test_a_csv_file_may_begin_with_an_image(tmp_path: Path, first: str) -> None:
    cell = f'"{first}"' if "," in first else first
    (tmp_path / "l.csv").write_text(f"{cell}\nz.tif\n")
    files = open_archive(str(tmp_path / "l.csv")).images()
    assert [file.uri for file in files] == [first if "://" in first else str(tmp_path / first), str(tmp_path / "z.tif")]


def test_a_cell_may_hold_a_long_footprint(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('uri,wkt\na.tif,"POLYGON((' + "1 2," * 50_000 + '1 2))"\nb.tif,x\n')
    files = open_archive(str(tmp_path / "l.csv")).images()
    assert [file.uri for file in files] == [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]


def test_a_damaged_list_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = parquet_of(uri=[f"{k}.tif" for k in range(10_000)])
    (tmp_path / "l.parquet").write_bytes(data[:4] + bytes(1000) + data[1004:])
    with pytest.raises(SegrayError, match=r"l\.parquet cannot be read as Parquet: "):
        list(open_archive(str(tmp_path / "l.parquet")).images())
    monkeypatch.setattr("segray.archives.lists.MAX_CELL", 100)
    (tmp_path / "l.csv").write_text('uri,note\na.tif,"an open quote\n' + "b.tif,x\n" * 100)
    with pytest.raises(SegrayError, match=r"l\.csv cannot be read as CSV: field larger .*; correct the file"):
        list(open_archive(str(tmp_path / "l.csv")).images())


def test_a_folder_may_be_named_as_a_table(store: str) -> None:
    """Spark and Ray Data write such."""
    folder = join(store, "t.parquet")
    publish(join(folder, "_SUCCESS"), b"")
    for name in ("part-0.parquet", "part-1.parquet"):
        publish(join(folder, name), parquet_of(bytes=[b"1"]))
    names = [file.uri.partition("t.parquet/")[2] for file in open_archive(folder).images()]
    assert names == ["part-0.parquet", "part-1.parquet"]


def test_a_column_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("a,left,right\n1,x.png,y.png\n")
    (tmp_path / "marks.csv").write_text("a;Left;Right\n1,5;x.png;y.png\n")
    publish(str(tmp_path / "l.parquet"), parquet_of(left=["x.png"], right=["y.png"]))
    for name in ("l.csv", "marks.csv", "l.parquet"):
        images = open_archive(str(tmp_path / name), ArchiveOptions(column="right")).images()
        assert [file.uri for file in images] == [str(tmp_path / "y.png")]
        with pytest.raises(SegrayError, match="left, right; give the one that holds the URIs with --column"):
            list(open_archive(str(tmp_path / name)).images())


def test_a_named_column_of_texts_makes_a_list_whatever_bytes_are_beside_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "l.parquet")
    publish(uri, parquet_of(Path=["x.png"], outline=[b"WKB without metadata that says so"]))
    images = open_archive(uri, ArchiveOptions(column="path")).images()
    assert [file.uri for file in images] == [str(tmp_path / "x.png")]
    assert [file.uri for file in open_archive(uri, ArchiveOptions(column="outline")).images()] == [uri]


@pytest.mark.parametrize("column", [None, "a.png"])
@pytest.mark.parametrize("first", ["a.png,1", "1,s3://b/a.png"])
def test_columns_without_a_header_are_refused_lest_the_first_image_be_lost(
    tmp_path: Path, first: str, column: str | None
) -> None:
    column = column and next(cell for cell in first.split(",") if cell.endswith(column))
    (tmp_path / "l.csv").write_text(f"{first}\n{first.replace('a.png', 'b.png')}\n")
    with pytest.raises(SegrayError, match=r"l\.csv has several columns, but no header; name them"):
        list(open_archive(str(tmp_path / "l.csv"), ArchiveOptions(column=column)).images())


def test_the_only_column_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("s3_uri\na.png\n")
    publish(str(tmp_path / "l.parquet"), parquet_of(s3_uri=["a.png"]))
    for name in ("l.csv", "l.parquet"):
        assert [file.uri for file in open_archive(str(tmp_path / name)).images()] == [str(tmp_path / "a.png")]


def test_a_header_may_name_units(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,speed in km/h\na.png,5\n")
    assert [file.uri for file in open_archive(str(tmp_path / "l.csv")).images()] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("l.txt", b"# nothing\n", "lists no image; it should hold one URI per line"),
        ("l.csv", b"", "lists no image"),
        ("l.csv", b"id,uri\n1,a.png\n2\n", "has no column 2 in row 2"),
        ("l.csv", b"filepath;size\na.tif;1\n", "has the columns filepath, size; give the one that holds"),
        ("l.csv", b"image_path\n", "lists no image"),
        ("l.txt", b"\xff\xfe", "cannot be read"),
        ("l.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("l.json", b"{}", "is no STAC item or item collection"),
        ("l.json", b"[" * 10**5, "is no STAC item or item collection"),
        ("l.json", b'{"type": "Feature", "assets": [1]}', "is no STAC item or item collection"),
        ("l.json", HREF % b'null, "roles": ["data"]', "item x of .* has the assets none; name the one"),
        ("l.json", HREF % b"5", "item x of .* has the assets none; name the one"),
        ("l.json", HREF % b'"a.txt", "roles": 5', "item x of .* has the assets a; name the one"),
        ("l.json", b'{"type": "Catalog"}', "is a STAC Catalog, not an item or item collection"),
        ("l.json", b'{"type": "FeatureCollection", "features": []}', "holds no STAC item"),
        ("l.json", b'{"type": "Feature", "id": "x", "assets": {}}', "item x of .* has the assets none; name the one"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SegrayError, match=sentence):
        list(open_archive(str(tmp_path / name)).images())


def test_a_long_list_on_a_web_server_that_sends_no_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("image.tif\n" * 600_000)
    pq.write_table(pa.table({"uri": ["a.tif"]}), tmp_path / "l.parquet")
    with served(tmp_path, parts=False) as address, pytest.raises(SegrayError, match=r"l\.txt cannot be read: The HTTP"):
        list(open_archive(f"{address}/l.txt").images())
    with served(tmp_path, sized=False) as address, pytest.raises(SegrayError, match=r"l\.parquet cannot be read as"):
        list(open_archive(f"{address}/l.parquet").images())


def asset(href: str, *roles: str) -> dict:
    return {"href": href, **({"roles": list(roles)} if roles else {})}


@pytest.mark.parametrize(
    ("assets", "name", "expected"),
    [
        ({"image": asset("a.tif", "data"), "thumbnail": asset("t.png", "thumbnail")}, None, "a.tif"),
        ({"image": asset("a.tif", "data"), "tci": asset("v.tif", "visual")}, None, "a.tif"),
        ({"b": asset("b.tif"), "meta": asset("m.xml", "metadata")}, None, "b.tif"),
        ({"b": asset("b.tif", "data"), "c": asset("s3://x/c.tif", "data")}, "c", "s3://x/c.tif"),
        ({"b": asset("b.tif", "data"), "c": asset("c.tif", "data")}, None, None),
        ({"b": asset("b.tif", "data")}, "c", None),
    ],
)
def test_an_asset_is_chosen_by_role_or_name(tmp_path: Path, assets: dict, name: str | None, expected: str) -> None:
    items = [{"type": "Feature", "id": f"i{k}", "assets": assets} for k in range(2)]
    for document in ({"type": "FeatureCollection", "features": items}, items[0]):
        (tmp_path / "items.json").write_text(json.dumps(document))
        archive = open_archive(str(tmp_path / "items.json"), ArchiveOptions(asset=name))
        if expected is None:
            with pytest.raises(SegrayError, match="item i0 .* name the one to segment with --asset"):
                list(archive.images())
        else:
            uri = expected if "://" in expected else str(tmp_path / expected)
            assert [file.uri for file in archive.images()] == [uri]


@pytest.mark.parametrize("href", ["./a%20b.tif", "a b.tif", "file://{folder}/a%20b.tif", "{folder}/a%20b.tif"])
def test_a_local_asset_is_named_in_the_words_of_a_uri(tmp_path: Path, href: str) -> None:
    item = {"type": "Feature", "id": "i", "assets": {"image": asset(href.format(folder=tmp_path))}}
    (tmp_path / "item.json").write_text(json.dumps(item))
    (file,) = open_archive(str(tmp_path / "item.json")).images()
    assert file.uri.removeprefix("file://") == str(tmp_path / "a b.tif")


@pytest.mark.parametrize("folder", ["./", "../x/", "/x/"])
@pytest.mark.parametrize("signature", ["", "?sig=a/../b%2F"])
def test_an_asset_beside_a_document_on_the_web_keeps_its_escapes(tmp_path: Path, folder: str, signature: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a+b#c d.tif").write_bytes(b"12345")
    item = {"type": "Feature", "id": "i", "assets": {"image": asset(f"{folder}a%2Bb%23c%20d.tif{signature}", "data")}}
    (tmp_path / "x" / "item.json").write_text(json.dumps(item))
    with served(tmp_path) as address:
        (file,) = open_archive(f"{address}/x/item.json").images()
        assert file.uri == f"{address}/x/a%2Bb%23c%20d.tif{signature}"
        assert stat(file).size == 5


def test_stat_asks_the_store(store: str) -> None:
    publish(join(store, "a.bin"), b"12345")
    file = stat(File(join(store, "a.bin"), -1, ""))
    assert file.size == 5
    assert file.etag
    with pytest.raises(FileNotFoundError):
        stat(File(join(store, "b.bin"), -1, ""))
