"""A zoom level as one image: every format gives the pixels that were cut into tiles, in their place on the map."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiles import KINDS, encoded, mbtiles, noise, pmtiles, write_set, write_tree

from segray.archives import mosaic
from segray.archives.levels import Level, is_level
from segray.archives.mosaic import header, level, occupied, occupied_blocks, read
from segray.errors import ImageError, SegrayError
from segray.grid import BLENDS, Lattice, Window, blocks
from segray.listing import list_files
from segray.storage import File, publish, remove
from segray.uris import join

ZOOM, X, Y = 6, 33, 20
ROWS, COLS = 3, 4
HOLES = {(0, 0), (1, 2), (2, 3)}  # (row, column) of missing tiles
PICTURE = np.random.default_rng(0).integers(1, 256, (ROWS * 256, COLS * 256, 3), dtype=np.uint8)
SEEN = np.ones(PICTURE.shape[:2], bool)
for hole in HOLES:
    SEEN[hole[0] * 256 : hole[0] * 256 + 256, hole[1] * 256 : hole[1] * 256 + 256] = False


def cut() -> dict[tuple[int, int, int], bytes]:
    """The tiles of PICTURE at ZOOM, and some at another zoom."""
    tiles = {(ZOOM - 1, 16, 10): encoded(noise(1))}
    for row, col in set(np.ndindex(ROWS, COLS)) - HOLES:
        part = PICTURE[row * 256 : row * 256 + 256, col * 256 : col * 256 + 256]
        tiles[ZOOM, X + col, Y + row] = encoded(part)
    return tiles


TILES = cut()


@pytest.fixture
def one_tree(tmp_path) -> str:
    """A local tree of PICTURE."""
    return write_tree(str(tmp_path / "tree"), TILES)


def check(file: File, window: Window | None) -> None:
    """Check that a window has PICTURE's pixels, black and not valid where there is no tile."""
    part = window or Window(0, 0, *SEEN.shape)
    found = read(file.uri, file.part, window)
    valid = SEEN[part.rows, part.cols]
    assert (found.valid == valid).all()
    assert (found.pixels == PICTURE[part.rows, part.cols].transpose(2, 0, 1) * valid).all()
    assert (found.window, found.height, found.width) == (part, *SEEN.shape)
    assert (found.crs, found.transform) == ("EPSG:3857", header(file.uri, file.part).transform)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_picture_that_was_cut(store, kind):
    uri = write_set(kind, join(store, "set"), TILES)
    file = level(kind, uri)
    assert is_level(file.uri)
    found = Level.of(file.uri, file.part)
    source = uri if "://" in uri else file.uri.partition("::")[2]
    assert (found.kind, found.zoom, found.source) == (kind, ZOOM, source)
    assert file.size == ROWS * COLS - len(HOLES)
    assert file.part.startswith(f"{X},{Y},{X + COLS - 1},{Y + ROWS - 1},256,")
    check(file, None)
    check(file, Window(100, 200, 500, 700))
    check(file, Window(256, 512, 256, 256))  # a hole
    check(file, Window(255, 255, 2, 2))
    check(file, Window(767, 1023, 1, 1))
    found = header(file.uri, file.part)
    assert (found.height, found.width, found.bands, found.dtype) == (*SEEN.shape, 3, "uint8")
    assert {tuple(place) for place in occupied(file).tolist()} == set(np.ndindex(ROWS, COLS)) - HOLES


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_listed_to_read_a_window(store, kind, monkeypatch):
    file = level(kind, write_set(kind, join(store, "set"), TILES))
    mosaic._sets.forget()  # as on another machine
    for name in ("files", "tiles", "zooms"):
        if hasattr(mosaic.TILESETS[kind], name):
            monkeypatch.setattr(mosaic.TILESETS[kind], name, None)
    check(file, Window(0, 0, 300, 300))


def test_every_zoom_can_be_had_and_the_highest_is(one_tree):
    assert level("xyz", one_tree) == level("xyz", one_tree, zoom=ZOOM)
    low = level("xyz", one_tree, zoom=ZOOM - 1)
    assert low.part == "16,10,16,10,256,png,"
    assert (read(low.uri, low.part, None).pixels == noise(1).transpose(2, 0, 1)).all()
    with pytest.raises(SegrayError, match=rf"tree has no zoom 4; give --zoom one of {ZOOM - 1}, {ZOOM}"):
        level("xyz", one_tree, zoom=4)


def test_a_zoom_folder_is_the_same_image(one_tree):
    assert level("xyz", join(one_tree, str(ZOOM))) == level("xyz", one_tree)
    with pytest.raises(SegrayError, match=f"has no zoom 5; give --zoom one of {ZOOM}"):
        level("xyz", join(one_tree, str(ZOOM)), zoom=5)


@pytest.mark.parametrize("kind", ["xyz", "tms"])
def test_endings_may_be_in_upper_case(tmp_path, kind):
    uri = write_set(kind, str(tmp_path), TILES)
    for path in tmp_path.rglob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    check(level(kind, uri), None)


def test_relative_paths_hold_on_other_machines(one_tree, monkeypatch):
    monkeypatch.chdir(one_tree)
    assert level("xyz", ".") == level("xyz", str(ZOOM)) == level("xyz", one_tree)


def corner(zoom: int, x: int, y: int) -> tuple[float, float]:
    """Web Mercator metres of a tile's north-west corner, via degrees as in mercantile (`ul`, then `xy`)."""
    longitude = x / 2**zoom * 360 - 180
    latitude = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / 2**zoom))))
    east = 6378137 * math.radians(longitude)
    return east, 6378137 * math.log(math.tan(math.pi / 4 + math.radians(latitude) / 2))


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize(("zoom", "x", "y"), [(0, 0, 0), (1, 1, 1), (6, 33, 20), (17, 78245, 53522), (22, 4194303, 0)])
def test_the_transform_is_that_of_web_maps(tmp_path, zoom, x, y, size):
    file = level("xyz", write_tree(str(tmp_path / "t"), {(zoom, x, y): encoded(noise(0, size=size))}))
    found = header(file.uri, file.part)
    assert (found.height, found.width, found.crs) == (size, size, "EPSG:3857")
    a, b, c, d, e, f = found.transform
    (west, north), (east, south) = corner(zoom, x, y), corner(zoom, x + 1, y + 1)
    assert (c, f) == pytest.approx((west, north), abs=1e-6)
    assert (c + a * size, f + e * size) == pytest.approx((east, south), abs=1e-6)
    assert (b, d, a) == (0, 0, -e)


def test_the_transform_has_its_known_values():
    found = header("xyz://0::/t", "0,0,0,0,256,png,")
    assert found.transform == (156543.03392804097, 0, -20037508.342789244, 0, -156543.03392804097, 20037508.342789244)


def test_transparent_pixels_are_no_data_and_grey_is_expanded(tmp_path):
    clear = noise(0, bands=4)
    clear[..., 3] = np.random.default_rng(1).choice([0, 1, 255], (256, 256))
    smooth = (np.add.outer(np.arange(256), np.arange(256)) // 2).astype(np.uint8)
    tiles = {(4, 5, 5): encoded(clear), (4, 6, 5): encoded(smooth, "JPEG"), (4, 5, 6): encoded(noise(2)[..., 0])}
    file = level("xyz", write_tree(str(tmp_path), tiles))
    assert file.part.endswith(",256,png+jpg,")
    found = read(file.uri, file.part, None)
    assert (found.valid[:256, :256] == (clear[..., 3] > 0)).all()
    assert (found.pixels[:, :256, :256] == clear[..., :3].transpose(2, 0, 1)).all()
    assert np.abs(found.pixels[:, :256, 256:].astype(int) - smooth).max() < 8
    assert (found.pixels[:, 256:, :256] == noise(2)[..., 0]).all()
    assert not found.valid[256:, 256:].any()


def test_tiles_on_both_sides_of_the_world_are_one_wide_image(tmp_path):
    tiles = {(17, 0, 70000): encoded(noise(0)), (17, 131071, 1000): encoded(noise(1))}
    file = level("xyz", write_tree(str(tmp_path), tiles))
    found = header(file.uri, file.part)
    assert (found.height, found.width) == (69001 * 256, 131072 * 256)
    assert occupied(file).tolist() == [[0, 131071], [69000, 0]]
    pixels = read(file.uri, file.part, Window(69000 * 256, 0, 256, 300)).pixels
    assert (pixels[:, :, :256] == noise(0).transpose(2, 0, 1)).all()
    assert not pixels[:, :, 256:].any()


# ---- damage is reported


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"no picture", "no PNG, JPEG"),
        (encoded(noise(0))[:5000], "cannot be read: .+"),
        (encoded(noise(0, size=512)), "has 512 x 512 pixels, the others 256 x 256"),
        (encoded(noise(0)[:, :100]), "has 256 x 100 pixels"),
        (encoded(noise(0)[..., 0].astype(np.uint16) * 256), "it is uint16"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_tile_is_named(tmp_path, kind, data, sentence):
    file = level(kind, write_set(kind, str(tmp_path / "set"), TILES | {(ZOOM, X + 1, Y + 2): data}))
    with pytest.raises(ImageError, match=rf"tile {ZOOM}/{X + 1}/{Y + 2} of .*set.* {sentence}"):
        read(file.uri, file.part, None)
    check(file, Window(0, 0, 512, 1024))  # windows without that tile are read


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pmtiles"])  # PMTiles cannot hold empty tiles
def test_empty_tiles_are_missing_ones(store, kind):
    empty = {(ZOOM, X + col, Y + row): b"" for row, col in HOLES}
    check(level(kind, write_set(kind, join(store, "set"), TILES | empty)), None)


@pytest.mark.parametrize("kind", ["xyz", "mbtiles"])
def test_the_size_is_not_asked_of_empty_tiles(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(mosaic, "FIRST", 4)
    empty = {(5, x, 1): b"" for x in range(12)}
    file = level(kind, write_set(kind, str(tmp_path / "a"), empty | {(5, 12, 1): encoded(noise(0, size=512))}))
    assert file.part.startswith("0,1,12,1,512,")
    assert read(file.uri, file.part, None).valid.sum() == 512 * 512
    with pytest.raises(SegrayError, match="none of the first tiles of .*b.* can be read; they are empty"):
        level(kind, write_set(kind, str(tmp_path / "b"), empty))


def test_many_empty_tiles_before_the_first_hide_no_size(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic, "FIRST", 4)
    tiles = {(5, x, 1): b"" for x in range(12)} | {(5, 12, 1): encoded(noise(0, size=512))}
    assert ",512," in level("xyz", write_tree(str(tmp_path), tiles)).part


def test_the_first_damaged_tile_is_named_whatever_thread_is_first(tmp_path):
    damaged = {place: b"damaged" for place in TILES if place[2] > Y}
    file = level("xyz", write_tree(str(tmp_path), TILES | damaged))
    first = min((y, x) for zoom, x, y in damaged)
    for _ in range(20):
        with pytest.raises(ImageError, match=f"tile {ZOOM}/{first[1]}/{first[0]} of"):
            read(file.uri, file.part, None)


def test_the_size_is_that_of_the_first_tile_that_can_be_read(tmp_path):
    tiles = {(3, x, 1): b"damaged" if x < 3 else encoded(noise(0, size=512)) for x in range(6)}
    assert ",512," in level("xyz", write_tree(str(tmp_path / "a"), tiles)).part
    for name, data, sentence in [
        ("b", b"damaged", "none of the first tiles of .*b can be read; tile 3/1/1: its content is no PNG"),
        ("c", encoded(noise(0, size=100)), "tile 3/1/1 of .*c has 100 x 100 pixels, not 256 or 512"),
        ("d", encoded(noise(0, size=512)[:256]), "tile 3/1/1 of .*d has 256 x 512 pixels, not 256 or 512 a side"),
    ]:
        with pytest.raises(SegrayError, match=sentence):
            level("xyz", write_tree(str(tmp_path / name), {(3, 1, 1): data}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_that_is_not_there_is_a_sentence(store, kind):
    with pytest.raises(SegrayError, match="absent.* does not exist"):
        level(kind, join(store, "absent"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_that_is_gone_is_a_failed_image(store, kind):
    uri = write_set(kind, join(store, "set"), TILES)
    file = level(kind, uri)
    remove(uri)
    mosaic._sets.forget()
    if kind in ("xyz", "tms"):
        assert not read(file.uri, file.part, None).valid.any()  # this cannot be told from holes
    else:
        with pytest.raises(ImageError, match=rf"set\.{kind}.* does not exist"):
            read(file.uri, file.part, None)


def test_sets_without_tiles_are_a_sentence(tmp_path):
    publish(str(tmp_path / "tree" / "7" / "readme.txt"), b"-")
    (tmp_path / "a.mbtiles").write_bytes(mbtiles({}))
    with pytest.raises(SegrayError, match=r"zoom 7 of .*tree has no tiles; give another --zoom"):
        level("xyz", str(tmp_path / "tree"))
    with pytest.raises(SegrayError, match=r"a\.mbtiles has no zoom level with tiles"):
        level("mbtiles", str(tmp_path / "a.mbtiles"))


def test_tiles_beyond_the_map_are_a_sentence(tmp_path):
    outside = {(3, 1, 1): encoded(noise(0)), (3, 8, 1): encoded(noise(0))}
    (tmp_path / "a.mbtiles").write_bytes(mbtiles(outside))
    for kind, uri in (("xyz", write_tree(str(tmp_path / "t"), outside)), ("mbtiles", str(tmp_path / "a.mbtiles"))):
        with pytest.raises(SegrayError, match="a tile 3/8/1, which is not on the map"):
            level(kind, uri)


def test_levels_too_large_are_a_sentence(tmp_path, monkeypatch):
    far = {(24, x, 9): encoded(noise(0)) for x in (0, 2**24 - 1)}
    with pytest.raises(SegrayError, match=r"spans 256 x 4294967296 pixels.*lower --zoom"):
        level("xyz", write_tree(str(tmp_path / "far"), far))
    monkeypatch.setattr(mosaic, "MAX_TILES", 5)
    with pytest.raises(SegrayError, match="more than 5 tiles"):
        level("xyz", write_tree(str(tmp_path / "many"), TILES))


@pytest.mark.parametrize(
    "uri", ["/a/b::c", "s3://b/tiles", "xyz://s3://b", "zip://17::/a", "xyz://x::/a", "tar://a::/b"]
)
def test_other_uris_are_no_levels(uri):
    assert not is_level(uri)


def test_a_level_is_split_at_its_first_colons():
    assert Level.of("tms://3::s3://b/a::b", "0,0,0,0,256,png,").source == "s3://b/a::b"


# ---- changes are noticed


def test_the_tag_of_a_tree_is_that_of_its_tiles(store):
    first = level("xyz", write_tree(store, TILES))
    assert level("xyz", store) == first
    publish(join(store, str(ZOOM - 1), "17", "10.png"), encoded(noise(5)))
    assert level("xyz", store) == first
    publish(join(store, str(ZOOM), str(X), f"{Y + 1}.png"), encoded(noise(6)) + b"-")
    changed = level("xyz", store)
    assert (changed.uri, changed.part, changed.size) == (first.uri, first.part, first.size)
    assert changed.etag != first.etag


def test_a_tile_that_changed_and_kept_its_size_changes_the_tag(one_tree):
    before = level("xyz", one_tree)
    os.utime(join(one_tree, str(ZOOM), str(X), f"{Y + 1}.png"), (1, 1))
    assert level("xyz", one_tree).etag != before.etag


@pytest.mark.parametrize("kind", ["mbtiles", "pmtiles"])
def test_a_file_that_changed_is_read_anew(store, kind):
    make = mbtiles if kind == "mbtiles" else pmtiles
    uri = join(store, f"set.{kind}")
    for seed in range(3):
        publish(uri, make({(3, 1, 1): encoded(noise(seed)), (3, 2, 1): encoded(noise(seed + 10))}))
        if "://" not in uri:
            os.utime(uri, ns=(seed, seed))
        file = level(kind, uri)
        assert file.etag == next(list_files(uri)).etag
        expected = np.concatenate([noise(seed), noise(seed + 10)], axis=1).transpose(2, 0, 1)
        assert (read(file.uri, file.part, None).pixels == expected).all()


@pytest.mark.parametrize("kind", ["mbtiles", "pmtiles"])
def test_another_version_than_was_planned_is_refused(store, kind):
    uri = write_set(kind, join(store, "set"), TILES)
    file = level(kind, uri)
    check(file, None)
    write_set(kind, join(store, "set"), TILES | {(ZOOM, X + 1, Y + 1): encoded(noise(9))})
    if "://" not in uri:
        check(file, Window(300, 300, 100, 100))  # while the file is open, it is read as it was
    mosaic._sets.forget()
    with pytest.raises(ImageError, match=rf"set\.{kind} changed since it was listed.*--overwrite"):
        read(file.uri, file.part, None)


def test_few_sets_are_kept_open_and_threads_share_them(tmp_path):
    data = pmtiles(TILES)
    for k in range(2 * mosaic.KEPT_SETS):
        (tmp_path / f"{k}.pmtiles").write_bytes(data)
    files = [level("pmtiles", str(tmp_path / f"{k}.pmtiles")) for k in range(2 * mosaic.KEPT_SETS)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: check(file, Window(200, 200, 100, 100)), files * 2))
    assert len(mosaic._sets._values) == mosaic.KEPT_SETS


# ---- blocks that hold tiles


@st.composite
def sparse(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int]:
    """Some of a grid's tiles, their size, and the grid's height and width in pixels."""
    size, rows, cols = draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    place = st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1))
    tiles = draw(st.lists(place, max_size=12))  # in any order, some twice
    return np.array(tiles, np.int64).reshape(-1, 2), size, rows * size, cols * size


@settings(deadline=None)
@given(made=sparse(), tile=st.integers(1, 20), blend=st.sampled_from(BLENDS), most=st.integers(1, 900), data=st.data())
def test_occupied_blocks_are_those_that_touch_a_tile(made, tile, blend, most, data):
    tiles, size, height, width = made
    lattice = Lattice(tile, data.draw(st.integers(0, tile // 2)), blend)
    filled = np.zeros((height, width), bool)
    for row, col in tiles:
        filled[row * size : row * size + size, col * size : col * size + size] = True
    expected = [block for block in blocks(height, width, lattice, most) if filled[block.rows, block.cols].any()]
    found = occupied_blocks(tiles, size, height=height, width=width, lattice=lattice, max_pixels=most)
    assert list(found) == expected


def test_the_blocks_of_a_sparse_world_take_the_time_of_its_tiles():
    side = 2**17 * 256
    tiles = np.array([[5, 7], [2**17 - 1, 2**17 - 1], [5, 8]])
    found = list(
        occupied_blocks(tiles, 256, height=side, width=side, lattice=Lattice(512, 64), max_pixels=2**22)
    )  # of 3e8
    assert 2 <= len(found) <= 6
    assert found[0].row_off <= 5 * 256 < found[0].row_off + found[0].height
    assert (found[-1].row_off + found[-1].height, found[-1].col_off + found[-1].width) == (side, side)
    assert all(block.pixels < 2**23 for block in found)


def test_many_tiles_are_taken_in_parts(monkeypatch):
    tiles = np.argwhere(np.random.default_rng(0).random((60, 70)) < 0.1)
    options = {"height": 60 * 256, "width": 70 * 256, "lattice": Lattice(512, 64), "max_pixels": 2**20}
    whole = list(occupied_blocks(tiles, 256, **options))
    monkeypatch.setattr(mosaic, "PLACES_AT_ONCE", 7)
    assert list(occupied_blocks(tiles, 256, **options)) == whole
