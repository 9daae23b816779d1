"""Tile sets: every format lists and reads the same tiles, and reports a broken file in a sentence."""

from __future__ import annotations

import gzip
import sqlite3
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pmtiles.reader import MemorySource, Reader
from pmtiles.tile import (
    Compression,
    Entry,
    TileType,
    deserialize_directory,
    serialize_directory,
    serialize_header,
    tileid_to_zxy,
    zxy_to_tileid,
)
from tiles import KINDS, encoded, mbtiles, noise, pmtiles, write_set, write_tree

from segray.archives import open_archive, pmtiles_directory
from segray.archives.mbtiles import MBTiles
from segray.archives.options import ArchiveOptions
from segray.archives.pmtiles import PMTiles
from segray.archives.tilesets import TILESETS
from segray.archives.xyz import TMS, XYZ, tile_tree
from segray.errors import ImageError, SegrayError
from segray.listing import list_files
from segray.storage import publish
from segray.uris import filesystem, join

# not square, not symmetric, with a hole; different places at each zoom
PLACES = [(3, 1, 2), (3, 2, 2), (3, 4, 3), (5, 9, 11), (5, 9, 12), (5, 12, 11)]
TILES = {place: encoded(noise(k)) for k, place in enumerate(PLACES)}


def open_set(kind: str, uri: str):
    """The tile set at a URI, with the tag of its file from a listing."""
    return TILESETS[kind](uri, "" if kind in ("xyz", "tms") else next(list_files(uri)).etag)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_lists_and_reads_the_same_tiles(store, kind):
    found = open_set(kind, write_set(kind, join(store, "set"), TILES))
    assert found.zooms() == [3, 5]
    for zoom in (3, 5):
        assert sorted(found.tiles(zoom)) == sorted(place[1:] for place in PLACES if place[0] == zoom)
    assert {place: found.read(*place) for place in PLACES} == TILES
    assert found.read(3, 3, 2) is None
    assert found.read(3, 1, 5) is None  # the row of (3, 1, 2) in the other scheme
    assert found.read(4, 1, 2) is None
    if kind in ("mbtiles", "pmtiles"):
        assert list(found.tiles(4)) == []
    else:
        with pytest.raises(FileNotFoundError):
            list(found.tiles(4))


def test_the_dictionary_has_the_formats_that_are_tested():
    assert set(TILESETS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_set(tmp_path, kind):
    found = open_set(kind, write_set(kind, str(tmp_path / "set"), TILES))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda place: found.read(*place), PLACES * 50)) == list(TILES.values()) * 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_that_nobody_uses_any_more_is_closed_at_once(tmp_path, kind):
    found = open_set(kind, write_set(kind, str(tmp_path / "set"), TILES))
    assert found.read(*PLACES[0]) == TILES[PLACES[0]]
    gone = weakref.ref(found)
    del found
    assert gone() is None


def test_a_zoom_folder_is_a_set_of_one_zoom_and_its_rows_flip(store):
    write_tree(join(store, "tree"), TILES)
    found = XYZ(join(store, "tree", "5"))
    assert found.zooms() == [5]
    assert found.uri == XYZ(join(store, "tree")).uri
    assert found.read(5, 12, 11) == TILES[5, 12, 11]
    assert sorted(TMS(join(store, "tree", "5")).tiles(5)) == [(9, 19), (9, 20), (12, 20)]


def test_endings_may_differ_and_other_files_are_no_tiles(store):
    write_tree(store, {(2, 1, 1): encoded(noise(0)), (2, 1, 2): encoded(noise(1), "JPEG")})
    for name in ("2/1/1.png.aux.xml", "2/1/01.png", "2/tiles.json", "2/1/x.png", "index.html"):
        publish(join(store, name), b"-")
    publish(join(store, "2", "3", "0.PNG"), encoded(noise(2)))
    found = XYZ(store, endings=("jpg", "PNG", "png"))
    assert sorted(found.tiles(2)) == [(1, 1), (1, 2), (3, 0)]
    assert found.read(2, 1, 2) == encoded(noise(1), "JPEG")
    assert found.read(2, 3, 0) == encoded(noise(2))
    assert found.zooms() == [2]


@pytest.mark.parametrize(
    ("names", "below", "kind"),
    [
        (["17/70000/40000.png", "17/70000/40001.jpg", "8/0/255.webp"], "", "xyz"),
        (["17/70000/40000.png", "17/70000/40000.png.aux.xml", "leaflet.html"], "", "xyz"),
        (["17/70000/40000.png", "tilemapresource.xml"], "", "tms"),
        (["17/70000/40000.png", "tilemapresource.xml"], "17", "tms"),
        (["17/70000/40000.png", "17/131071/0.png"], "17", "xyz"),
        (["17/70000/40000.png", "17/131072/0.png"], "17", None),  # x is too large for the zoom
        (["3/1/8.png"], "", None),
        (["31/1/8.png"], "", None),
        (["2021/05/12.png"], "", None),  # dates
        (["2021/05/12.png"], "2021", None),
        (["21/05/12.png"], "", None),
        (["a.png", "3/1/2.png"], "", None),
        (["3/1/2.png", "3/1/2.tif"], "", None),
        (["3/1/2/3.png"], "", None),
        (["3/1.png"], "", None),
        (["3/1/2.txt"], "", None),
        (["x/3/1/2.png"], "", None),
    ],
)
def test_a_tree_of_tiles_is_told_from_other_folders(store, names, below, kind):
    for name in names:
        publish(join(store, "set", name), b"content is not looked at")
    assert tile_tree(join(store, "set", below) if below else join(store, "set")) == kind


def test_nothing_is_no_tree(store):
    assert tile_tree(join(store, "absent")) is None


def test_a_tree_is_told_by_its_first_files(tmp_path):
    for k in range(150):
        publish(str(tmp_path / "9" / str(k) / "0.png"), b"")
    publish(str(tmp_path / "later.png"), b"")
    assert tile_tree(str(tmp_path)) == "xyz"


@pytest.mark.parametrize("tiles", ["auto", "tms"])
@pytest.mark.parametrize("below", ["", "3"])
@pytest.mark.parametrize(
    ("profile", "refused"),
    [("mercator", False), ("global-mercator", False), ("geodetic", True), ("raster", True), ("global-geodetic", True)],
)
def test_a_tree_of_another_profile_than_web_mercator_is_refused(tmp_path, tiles, below, profile, refused):
    write_tree(str(tmp_path), {place: tile for place, tile in TILES.items() if place[0] == 3})
    resource = f'<TileMap version="1.0.0">\n <SRS></SRS>\n <TileSets profile="{profile}">\n </TileSets>\n</TileMap>'
    (tmp_path / "tilemapresource.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{resource}')
    archive = open_archive(join(str(tmp_path), below).rstrip("/"), ArchiveOptions(tiles=tiles))
    if refused:
        sentence = f"has tiles in the profile {profile}, not in Web Mercator; give the raster, or --tiles none"
        with pytest.raises(SegrayError, match=f"^{tmp_path} {sentence}$"):
            list(archive.images())
    else:
        assert [file.uri for file in archive.images()] == [f"tms://3::{tmp_path}"]


# ---- MBTiles


def test_the_tiles_of_mbtiles_may_be_a_view(tmp_path):
    (tmp_path / "a b?#%.mbtiles").write_bytes(mbtiles(TILES, view=True))
    found = MBTiles(str(tmp_path / "a b?#%.mbtiles"))
    assert {place: found.read(*place) for place in PLACES} == TILES
    assert len(list(found.tiles(5))) == 3


def test_zoom_levels_that_a_view_calculates_are_whole_numbers(tmp_path):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles(TILES, view=True))
    with sqlite3.connect(path) as file:
        file.execute("ALTER TABLE map RENAME COLUMN zoom_level TO level")
        file.execute("DROP VIEW tiles")
        file.execute(
            "CREATE VIEW tiles AS SELECT level * 1.0 AS zoom_level, tile_column, tile_row, tile_data "
            "FROM map JOIN images ON map.id = images.id"
        )
    file.close()
    found = MBTiles(str(path)).zooms()
    assert found == sorted({zoom for zoom, _, _ in PLACES}) and all(type(zoom) is int for zoom in found)


def test_mbtiles_are_opened_for_reading_only(tmp_path):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles(TILES))
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert MBTiles(str(path)).read(*PLACES[0]) == TILES[PLACES[0]]
        assert [child.name for child in tmp_path.iterdir()] == ["a.mbtiles"]
    finally:
        tmp_path.chmod(0o755)


def test_mbtiles_whose_last_changes_lie_beside_them_are_refused(tmp_path):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles(TILES))
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("DELETE FROM tiles")
    writer.commit()
    with pytest.raises(ImageError, match=r"a\.mbtiles is being written.*-wal"):
        MBTiles(str(path))
    writer.close()
    assert MBTiles(str(path)).zooms() == []


@pytest.mark.parametrize(
    ("kind", "sentence"), [("pbf", "vector tiles"), ("avif", "format avif"), ("image/jpeg", ""), ("JPG", "")]
)
def test_mbtiles_of_other_formats_are_refused(tmp_path, kind, sentence):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles(TILES, kind=kind))
    if sentence:
        with pytest.raises(ImageError, match=rf"a\.mbtiles holds.*{sentence}"):
            MBTiles(str(path))
    else:
        assert MBTiles(str(path)).zooms() == [3, 5]


@pytest.mark.parametrize(
    ("key", "crs", "known"),
    [
        ("crs", "EPSG:3857", True),
        ("srs", "EPSG:900913", True),
        ("crs", "ESRI:102100", True),
        ("srs", "epsg:4326", False),
        ("crs", "epsg:3395", False),
    ],
)
def test_mbtiles_in_another_crs_are_refused(tmp_path, key, crs, known):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles(TILES))
    with sqlite3.connect(path) as file:
        file.execute("INSERT INTO metadata VALUES (?, ?)", (key, crs))
    file.close()
    if known:
        assert MBTiles(str(path)).zooms() == [3, 5]
    else:
        with pytest.raises(ImageError, match=rf"a\.mbtiles holds tiles in the CRS {crs}, not in Web Mercator"):
            MBTiles(str(path))


def test_a_tile_of_null_is_none(tmp_path):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles({(3, 1, 1): None}))
    assert MBTiles(str(path)).read(3, 1, 1) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"not SQLite at all" * 100, mbtiles(TILES)[:6000], mbtiles({}).replace(b"TABLE tiles", b"TABLE tules")],
    ids=["empty", "other", "cut off", "no table"],
)
def test_broken_mbtiles_are_a_sentence(tmp_path, content):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.mbtiles cannot be read as MBTiles: .+"):
        found = MBTiles(str(path))
        list(found.tiles(3)), found.zooms(), [found.read(*place) for place in PLACES]


def test_missing_mbtiles_are_a_sentence(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        MBTiles(str(tmp_path / "a.mbtiles"))


def test_values_of_other_types_are_a_sentence(tmp_path):
    path = tmp_path / "a.mbtiles"
    path.write_bytes(mbtiles({(3, 1, 1): "text"}))
    with pytest.raises(ImageError, match="tile 3/1/1 is not a blob"):
        MBTiles(str(path)).read(3, 1, 1)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE tiles SET tile_column = 'one'")
    file.close()
    with pytest.raises(ImageError, match="'one'.* not the place"):
        list(MBTiles(str(path)).tiles(3))


# ---- PMTiles


def test_many_tiles_lie_in_leaf_directories_and_only_those_asked_for_are_read(tmp_path, monkeypatch):
    sizes = np.random.default_rng(0).integers(1, 999, (256, 100))  # random, or the root would hold them all
    tiles = {(8, x, y): f"{x},{y}".encode().ljust(sizes[x, y]) for x in range(256) for y in range(100)}
    tiles |= {(9, x, 7): b"the same" for x in range(512)}
    data = pmtiles(tiles)
    (tmp_path / "a.pmtiles").write_bytes(data)
    asked = []
    original = PMTiles._bytes
    monkeypatch.setattr(
        PMTiles, "_bytes", lambda self, *span, what: asked.append(span) or original(self, *span, what=what)
    )
    found = PMTiles(str(tmp_path / "a.pmtiles"))
    assert found._directories.get(found._root).runs.max() == 0  # there are leaves
    assert found.zooms() == [8, 9]
    assert sorted(found.tiles(8)) == sorted(place[1:] for place in tiles if place[0] == 8)
    assert set(found.tiles(9)) == {place[1:] for place in tiles if place[0] == 9}
    peer = Reader(MemorySource(data))
    asked.clear()
    for place in [(8, 0, 0), (8, 255, 99), (8, 255, 100), (9, 511, 7), (9, 511, 8), (0, 0, 0), (12, 0, 0)]:
        assert found.read(*place) == peer.get(*place) == tiles.get(place)
    assert len(asked) == 3  # only the tiles: directories are cached


@pytest.mark.parametrize("index", ["", "CREATE INDEX i ON tiles (zoom_level)", "CREATE INDEX i ON tiles (tile_row)"])
def test_mbtiles_need_no_index_to_be_read_without_looking_through_all_tiles(tmp_path, index):
    tiles = {(6, x, y): repr((x, y)).encode() for x in range(60) for y in range(60)}
    (tmp_path / "a.mbtiles").write_bytes(mbtiles(tiles))
    with sqlite3.connect(tmp_path / "a.mbtiles") as file:
        file.execute(index)
        file.execute("INSERT INTO tiles SELECT 6, 5, tile_row, 'twice' FROM tiles WHERE tile_column = 5")
    found, steps = MBTiles(str(tmp_path / "a.mbtiles")), []
    assert found.read(6, 0, 0) == tiles[6, 0, 0]
    found._connection.set_progress_handler(lambda: steps.append(1), 100)
    assert [found.read(*place) for place in list(tiles)[::300]] == list(tiles.values())[::300]
    assert found.read(6, 61, 0) is None
    assert len(steps) < 60  # of 100 instructions each


def test_places_of_tiles_that_differ_are_found_together(tmp_path, monkeypatch):
    names = [(6, x, y) for x in range(40) for y in range(50)]
    (tmp_path / "a.pmtiles").write_bytes(pmtiles({name: repr(name).encode() for name in names}))
    calls, places = [], pmtiles_directory.places
    monkeypatch.setattr("segray.archives.pmtiles.places", lambda *ids: calls.append(ids) or places(*ids))
    monkeypatch.setattr("segray.archives.pmtiles.TILES_AT_ONCE", 500)
    assert sorted(PMTiles(str(tmp_path / "a.pmtiles")).tiles(6)) == [name[1:] for name in names]
    assert len(calls) == 4


@given(st.integers(0, 31), st.data())
def test_places_are_those_of_the_format_s_authors(zoom, data):
    numbers = st.integers(pmtiles_directory.first_id(zoom), pmtiles_directory.first_id(zoom + 1) - 1)
    ids = data.draw(st.lists(numbers, min_size=1, max_size=20))
    x, y = pmtiles_directory.places(np.array(ids), zoom)
    assert [(zoom, *place) for place in zip(x.tolist(), y.tolist())] == [tileid_to_zxy(number) for number in ids]


@given(st.lists(st.tuples(*[st.integers(1, 2**40)] * 2, st.integers(0, 5), st.booleans()), min_size=1, max_size=50))
def test_directories_are_those_of_the_format_s_authors(rows):
    entries, last, end = [], 0, 0
    for step, length, run, follows in rows:
        entries.append(Entry(last + step + 5, end if follows else step, length, run))
        last, end = last + step + 5, entries[-1].offset + length
    packed = serialize_directory(entries)
    found = pmtiles_directory.parse(pmtiles_directory.unpack(packed, gzipped=True))
    for k, entry in enumerate(deserialize_directory(packed)):
        assert (found.ids[k], found.runs[k]) == (entry.tile_id, entry.run_length)
        assert (found.offsets[k], found.lengths[k]) == (entry.offset, entry.length)


def archive(root: bytes, *, leaves: bytes = b"", data: bytes = b"", **changed: object) -> bytes:
    """The bytes of a PMTiles file of these sections, its directories packed with gzip."""
    header = {
        "root_offset": 127,
        "root_length": len(root),
        "metadata_offset": 0,
        "metadata_length": 0,
        "leaf_directory_offset": 127 + len(root),
        "leaf_directory_length": len(leaves),
        "tile_data_offset": 127 + len(root) + len(leaves),
        "tile_data_length": len(data),
        "clustered": True,
        "internal_compression": Compression.GZIP,
        "tile_compression": Compression.NONE,
        "tile_type": TileType.PNG,
        "min_zoom": 0,
        "max_zoom": 3,
    }
    return serialize_header(header | changed) + root + leaves + data


ONE = serialize_directory([Entry(0, 0, 4, 1)])
CIRCLE = serialize_directory([Entry(0, 0, 50, 0)])
CIRCLE = serialize_directory([Entry(0, 0, len(CIRCLE), 0)])
SAME_LEAF = serialize_directory([Entry(k, 0, len(ONE), 0) for k in range(60)])
BOMB = gzip.compress(bytes(10**8))
HEADER = archive(ONE, data=b"tile")


def test_a_file_made_by_hand_is_read(tmp_path):
    (tmp_path / "a.pmtiles").write_bytes(HEADER)
    found = PMTiles(str(tmp_path / "a.pmtiles"))
    assert (found.zooms(), list(found.tiles(0)), found.read(0, 0, 0)) == ([0], [(0, 0)], b"tile")
    bare = gzip.decompress(ONE)
    (tmp_path / "b.pmtiles").write_bytes(archive(bare, data=b"tile", internal_compression=Compression.NONE))
    assert PMTiles(str(tmp_path / "b.pmtiles")).read(0, 0, 0) == b"tile"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "header is cut off at byte 0"),
        (HEADER[:100], "header is cut off at byte 100"),
        (b"\xff" * 200, "is not a PMTiles file"),
        (b"GeoTIFF" + HEADER[7:], "is not a PMTiles file"),
        (HEADER[:7] + b"\x02" + HEADER[8:], "another version than 3"),
        (HEADER[:97] + b"\x63" + HEADER[98:], "99 is not a valid Compression"),
        (HEADER[:-8], "directory is cut off"),
        (HEADER[:-1], "tile 0/0/0 is cut off"),
        (archive(ONE, tile_type=TileType.MVT), r"vector tiles \(mvt\)"),
        (archive(ONE, tile_type=TileType.MLT), r"vector tiles \(mlt\)"),
        (archive(ONE, tile_type=TileType.AVIF), "type avif"),
        (archive(ONE, internal_compression=Compression.ZSTD), "packed with zstd"),
        (archive(ONE, tile_compression=Compression.GZIP), "compressed a second time"),
        (archive(b"no gzip"), "incorrect header check"),
        (archive(gzip.compress(b"\x01\x80")), "directory is cut off"),
        (archive(gzip.compress(b"\xff\xff\xff\x7f\x01")), "says that it has 268435455 entries"),
        (archive(gzip.compress(b"\x00")), "says that it has 0 entries"),
        (archive(gzip.compress(b"\xff" * 10 + b"\x01")), "number in a directory has 11 bytes"),
        (archive(gzip.compress(b"\x02\x00\x00\x01\x01\x04\x04\x01\x01")), "do not ascend"),
        (archive(serialize_directory([Entry(0, 0, 4, 3), Entry(2, 4, 4, 1)])), "do not ascend"),
        (archive(serialize_directory([Entry(0, 0, 0, 1)])), "has no place"),
        (archive(gzip.compress(b"\x01\x00\x01\x04\x00")), "has no place"),
        (archive(BOMB), f"more than {pmtiles_directory.MAX_BYTES} bytes"),
        (archive(ONE, root_length=2**50), "a directory has 1125899906842624 bytes"),
        (archive(serialize_directory([Entry(0, 0, 2**50, 1)])), "tile 0/0/0 has 1125899906842624 bytes"),
        (archive(ONE, tile_data_offset=2**63), "tile 0/0/0 is said to lie at byte 9223372036854775808"),
        (archive(ONE, root_offset=2**64 - 1), "directory is said to lie at byte 18446744073709551615"),
        (archive(CIRCLE, leaves=CIRCLE), "more than 3 deep"),
        (archive(SAME_LEAF, leaves=ONE, data=b"tile"), "tile ids of another"),
    ],
)
def test_broken_pmtiles_are_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.pmtiles"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.pmtiles.*{sentence}"):
        found = PMTiles(str(path))
        found.read(0, 0, 0), found.zooms(), list(found.tiles(1)), list(found.tiles(2))


@given(st.integers(0, len(HEADER) - 1), st.integers(0, 255))
def test_no_damage_to_pmtiles_ends_otherwise(place, value):
    uri = f"memory://damaged/{place}.pmtiles"
    publish(uri, HEADER[:place] + bytes([value]) + HEADER[place + 1 :])
    try:
        found = PMTiles(uri)
        list(found.tiles(found.zooms()[0])) if found.zooms() else None
        found.read(0, 0, 0), found.read(3, 1, 1)
    except ImageError as error:
        assert f"{place}.pmtiles" in str(error)
    finally:
        filesystem(uri)[0].rm("/damaged", recursive=True)


def test_the_header_is_where_the_tests_take_it_to_be():
    assert HEADER[97] == Compression.GZIP.value
    assert zxy_to_tileid(1, 0, 0) == pmtiles_directory.first_id(1) == 1
