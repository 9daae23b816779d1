"""PMTiles: read back by the reference reader and compared with the class under each pixel's centre."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mask_shards import CLASSES, Image, scenes_of, write_masks
from PIL import Image as Picture
from pmtiles.reader import MemorySource, Reader, all_tiles
from pmtiles.tile import TileType
from rasterio.warp import transform

from segray.errors import SegrayError
from segray.export_tasks import Exporter, Outcome
from segray.exports.mercator import EDGE, Tile, places_of
from segray.exports.pmtiles import write_all
from segray.grid import Window
from segray.masks import IGNORE, decode_png
from segray.reduction import majority
from segray.scenes import Masks, Scene, SceneReader, open_masks
from segray.settings import ExportSettings


@dataclass(frozen=True)
class Made:
    """A scene to make: its mask and where it lies."""

    name: str
    mask: np.ndarray
    crs: str | None
    transform: tuple[float, ...] | None


def masks_of(folder: Path, scenes: list[Made], *, window: int = 64) -> tuple[Masks, list[Scene]]:
    """The output of a segmentation, and its scenes as the export finds them."""
    images = [Image(uri=made.name, mask=made.mask, crs=made.crs, transform=made.transform) for made in scenes]
    masks = open_masks(write_masks(str(folder), images, archive="x", window=window))
    return masks, scenes_of(masks)


def blobs(height: int, width: int, seed: int, *, hole: bool = True) -> np.ndarray:
    """A mask of squares of 5 pixels, a part of it without data."""
    small = np.random.default_rng(seed).integers(0, 3, (height // 5 + 1, width // 5 + 1)).astype(np.uint8)
    mask = small.repeat(5, 0).repeat(5, 1)[:height, :width].copy()
    if hole:
        mask[height // 3 : height // 2, : width // 2] = IGNORE
    return mask


def export(
    folder: Path, scenes: list[Made], max_zoom: int | None = None
) -> tuple[dict, dict[Tile, np.ndarray], Reader]:
    masks, found = masks_of(folder, scenes)
    path = folder / "masks.pmtiles"
    settings = ExportSettings(masks="m", output="o", format="pmtiles", max_zoom=max_zoom)
    result = write_all(masks, iter(found), str(path), settings)
    source = MemorySource(path.read_bytes())
    return result, {Tile(*zxy): decode_png(data) for zxy, data in all_tiles(source)}, Reader(source)


def under_centres(tile: Tile, scenes: list[Made]) -> np.ndarray:
    """The class under each pixel's centre, one point after the other through PROJ."""
    left, _, right, top = tile.metres
    side = (right - left) / 256
    xs, ys = np.meshgrid(left + (np.arange(256) + 0.5) * side, top - (np.arange(256) + 0.5) * side)
    result = np.full((256, 256), IGNORE, np.uint8)
    for made in scenes:
        x, y = (np.array(values) for values in transform("EPSG:3857", made.crs, xs.ravel(), ys.ravel()))
        cols, rows = pixels_at(made, x, y)
        height, width = made.mask.shape
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        seen = np.where(inside, made.mask[rows.clip(0, height - 1), cols.clip(0, width - 1)], IGNORE)
        result = np.where(seen != IGNORE, seen, result).astype(np.uint8)
    return result


def pixels_at(made: Made, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(2, 256, 256): column and row of the pixel that holds each point, by solving for them."""
    a, b, c, d, e, f = made.transform
    solved = np.linalg.solve(np.array([[a, b], [d, e]]), np.array([x - c, y - f]))
    return np.floor(solved).astype(int).reshape(2, 256, 256)


def on_grid(z: int, x: int, y: int) -> tuple[float, ...]:
    """The transform of a scene whose first pixel is the first of a tile."""
    left, _, _, top = Tile(z, x, y).metres
    side = 2 * EDGE / 2**z / 256
    return (side, 0.0, left, 0.0, -side, top)


UTM = Made("utm.tif", blobs(400, 330, 1), "EPSG:32630", (0.5, 0.0, 531000.25, 0.0, -0.5, 4829000.75))
TURNED = Made("turned.tif", blobs(300, 200, 2), "EPSG:2154", (0.4, 0.3, 652000.0, 0.3, -0.4, 6862000.0))
DEGREES = Made("degrees.tif", blobs(150, 250, 3), "EPSG:4326", (0.002, 0.0, 12.5, 0.0, -0.002, 60.25))


@pytest.mark.parametrize("made", [UTM, TURNED, DEGREES], ids=lambda made: made.name)
def test_the_deepest_tiles_show_the_class_under_each_pixel(tmp_path, made):
    result, tiles, _ = export(tmp_path, [made])
    deepest = {tile: mask for tile, mask in tiles.items() if tile.z == result["max_zoom"]}
    assert len(deepest) > 1
    differing = [float((mask != under_centres(tile, [made])).mean()) for tile, mask in deepest.items()]
    assert max(differing) < 2e-4  # points that rounding puts on either side of a pixel edge
    covered = sum(int((mask != IGNORE).sum()) for mask in deepest.values())
    pixel = 2 * EDGE / 2 ** result["max_zoom"] / 256
    expected = sum(int((under_centres(tile, [made]) != IGNORE).sum()) for tile in around(deepest))
    assert abs(covered - expected) <= 4
    assert pixel <= smallest_side(made) * 1.001 < 2 * pixel * 1.002


def around(tiles: dict[Tile, np.ndarray]) -> set[Tile]:
    """The tiles and their neighbours, so that a missing one is noticed."""
    return {Tile(t.z, t.x + col, t.y + row) for t in tiles for col in (-1, 0, 1) for row in (-1, 0, 1)}


def smallest_side(made: Made) -> float:
    """The length on the map, in metres, of the shortest pixel side at the scene's corners."""
    (a, b, c, d, e, f), (height, width) = made.transform, made.mask.shape
    sides = []
    for col, row in ((0, 0), (width, 0), (0, height), (width, height)):
        x, y = a * col + b * row + c, d * col + e * row + f
        x, y = transform(made.crs, "EPSG:3857", [x, x + a, x + b], [y, y + d, y + e])
        sides += [math.hypot(x[k] - x[0], y[k] - y[0]) for k in (1, 2)]
    return min(sides)


def test_a_scene_on_the_tile_grid_is_exact_at_its_own_zoom(tmp_path):
    mask = blobs(512, 768, 4)
    result, tiles, _ = export(tmp_path, [Made("tiles", mask, "EPSG:3857", on_grid(17, 78245, 53522))])
    deepest = {tile: found for tile, found in tiles.items() if tile.z == 17}
    assert result["max_zoom"] == 17 and len(deepest) == 6
    for tile, found in deepest.items():
        row, col = 256 * (tile.y - 53522), 256 * (tile.x - 78245)
        np.testing.assert_array_equal(found, mask[row : row + 256, col : col + 256])


@pytest.mark.parametrize("scenes", [[UTM], [DEGREES]], ids=["utm", "degrees"])
def test_every_other_tile_is_the_most_frequent_class_of_its_children(tmp_path, scenes):
    result, tiles, _ = export(tmp_path, scenes)
    nothing = np.full((256, 256), IGNORE, np.uint8)
    assert {tile.z for tile in tiles} == set(range(result["max_zoom"] + 1))
    for tile, mask in tiles.items():
        assert (mask != IGNORE).any()
        if tile.z < result["max_zoom"]:
            a, b, c, d = (tiles.get(child, nothing) for child in tile.children)
            np.testing.assert_array_equal(mask, majority(np.block([[a, b], [c, d]]), 2))


def test_a_later_scene_covers_an_earlier_one_only_where_it_has_data(tmp_path):
    under = Made("under.tif", blobs(256, 256, 5, hole=False), "EPSG:3857", on_grid(16, 40000, 20000))
    holed = np.full((256, 256), 2, np.uint8)
    holed[64:128, 32:200] = IGNORE
    over = Made("over.tif", holed, "EPSG:3857", on_grid(16, 40000, 20000))
    _, tiles, _ = export(tmp_path, [under, over])
    found = tiles[Tile(16, 40000, 20000)]
    np.testing.assert_array_equal(found, np.where(holed == IGNORE, under.mask, holed))
    assert set(np.unique(under.mask)) == {0, 1, 2}


def test_a_fine_scene_in_a_coarse_one_makes_no_flood_of_tiles(tmp_path):
    coarse = Made("coarse.tif", blobs(300, 300, 6), "EPSG:3857", on_grid(8, 130, 80))
    fine = Made("fine.tif", blobs(200, 200, 7), "EPSG:3857", on_grid(17, 130 * 512 + 77, 80 * 512 + 9))
    result, tiles, _ = export(tmp_path, [coarse, fine])
    assert result["max_zoom"] == 17 and len(tiles) < 60  # at that zoom the coarse one alone would have 300,000
    for tile, mask in tiles.items():
        children = [child in tiles for child in tile.children]
        if tile.z == 17 or (tile.z >= 8 and not any(children)):
            np.testing.assert_array_equal(mask, under_centres(tile, [coarse, fine]))


@pytest.mark.parametrize("max_zoom", [13, 18])
def test_another_deepest_zoom(tmp_path, max_zoom):
    made = Made("x.tif", blobs(700, 600, 8), "EPSG:3857", on_grid(16, 40000, 20000))
    result, tiles, reader = export(tmp_path, [made], max_zoom)
    assert result["max_zoom"] == reader.header()["max_zoom"] == max(tile.z for tile in tiles) == max_zoom
    if max_zoom > 16:
        assert all((m == under_centres(t, [made])).all() for t, m in tiles.items() if t.z == max_zoom)
    else:
        (tmp_path / "own").mkdir()
        own = export(tmp_path / "own", [made])[1]
        assert tiles.keys() == {tile for tile in own if tile.z <= max_zoom}
        assert all((mask == own[tile]).all() for tile, mask in tiles.items())


def test_the_header_and_the_legend(tmp_path):
    result, tiles, reader = export(tmp_path, [UTM])
    header = reader.header()
    assert header["tile_type"] == TileType.PNG and header["clustered"]
    assert (header["min_zoom"], header["addressed_tiles_count"]) == (0, len(tiles)) == (0, result["tiles"])
    corners = [(531000.25 + 165 * right, 4829000.75 - 200 * down) for right in (0, 1) for down in (0, 1)]
    x, y = transform(UTM.crs, "OGC:CRS84", *zip(*corners))
    names = ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7")
    found = [header[name] / 1e7 for name in names]
    assert found == pytest.approx([min(x), min(y), max(x), max(y)], abs=2e-7)
    assert min(x) < header["center_lon_e7"] / 1e7 < max(x) and 0 < header["center_zoom"] <= header["max_zoom"]
    assert reader.metadata()["classes"] == CLASSES.to_json()
    picture = Picture.open(io.BytesIO(reader.get(0, 0, 0)))
    assert (picture.mode, picture.size) == ("P", (256, 256))
    shown = np.asarray(picture.convert("RGBA"))
    assert set(map(tuple, shown[shown[..., 3] > 0][:, :3].tolist())) <= set(CLASSES.colors)


def test_what_has_no_way_to_the_map_is_left_out_and_counted(tmp_path, capfd):
    mask = blobs(40, 40, 9)
    scenes = [
        Made("plain.png", mask, None, None),
        Made("no_crs.tif", mask, None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
        Made("local.tif", mask, 'LOCAL_CS["site",UNIT["metre",1]]', (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
        Made("flat.tif", mask, "EPSG:32630", (0.0, 0.0, 531000.0, 0.0, 0.0, 4829000.0)),
        Made("line.tif", mask, "EPSG:4326", (1.0, 1.0, 0.0, 1.0, 1.0, 0.0)),
        Made("column.tif", mask, "EPSG:4326", (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
        UTM,
    ]
    (tmp_path / "some").mkdir()
    result, _, _ = export(tmp_path / "some", scenes)
    assert (result["scenes"], result["scenes_left_out"]) == (1, 6)
    (tmp_path / "none").mkdir()
    with pytest.raises(SegrayError, match="none of the 6 scenes .* has a georeference .*--format png"):
        export(tmp_path / "none", scenes[:-1])
    assert not (tmp_path / "none" / "masks.pmtiles").exists()
    assert not capfd.readouterr().err  # GDAL prints what nobody has asked it to report


def test_an_export_says_how_many_scenes_are_not_on_the_map(tmp_path):
    masks, scenes = masks_of(tmp_path / "masks", [UTM, Made("plain.png", blobs(40, 40, 9), None, None)])

    def outcome(folder: str, some: list[Scene]) -> Outcome:
        settings = ExportSettings(masks=masks.output, output=str(tmp_path / folder), format="pmtiles")
        return Exporter(masks=masks, settings=settings, usual=".tif").all_in_one("pmtiles", some)

    facts = outcome("both", scenes).facts
    assert (facts["scenes"], facts["scenes_left_out"], facts["files"]) == (1, 1, 1)
    assert "none of the 1 scenes" in outcome("none", scenes[1:]).error


def test_errors_say_what_to_do(tmp_path):
    empty = Made("empty.tif", np.full((50, 50), IGNORE, np.uint8), "EPSG:3857", on_grid(16, 40000, 20000))
    with pytest.raises(SegrayError, match="holds no class"):
        export(tmp_path, [empty])


def test_a_scene_across_the_antimeridian_lies_on_both_sides(tmp_path):
    made = Made("fiji.tif", blobs(200, 300, 10), "EPSG:3832", (10.0, 0.0, 3338000.0, 0.0, -10.0, -1900000.0))
    _, (scene,) = masks_of(tmp_path, [made])
    (place,) = places_of(scene)
    assert len(place.boxes) == 2
    (tmp_path / "again").mkdir()
    _, tiles, reader = export(tmp_path / "again", [made])
    header = reader.header()
    assert header["center_lon_e7"] / 1e7 == pytest.approx(150 + 3339500 / 111319.49, abs=1e-4)
    assert (header["min_lon_e7"], header["max_lon_e7"], header["center_zoom"]) == (-1_800_000_000, 1_800_000_000, 14)
    deepest = max(tile.z for tile in tiles)
    shown = [tile for tile in tiles if tile.z == deepest]
    assert {tile.x // 2 ** (deepest - 1) for tile in shown} == {0, 1}  # both halves of the map
    for tile in shown:
        assert (tiles[tile] != under_centres(tile, [made])).mean() < 2e-4


def shown(tiles: dict[Tile, np.ndarray]) -> tuple[np.ndarray, set[int]]:
    """(pixels of each class at the deepest zoom; the halves of the map in which its tiles lie, 0 for the west)."""
    deepest = max(tile.z for tile in tiles)
    found = {tile: mask for tile, mask in tiles.items() if tile.z == deepest}
    pixels = np.concatenate([mask[mask != IGNORE] for mask in found.values()])
    return np.bincount(pixels, minlength=3), {tile.x >> (deepest - 1) for tile in found}


@pytest.mark.parametrize(
    ("crs", "pixel", "west", "control"),
    [
        ("EPSG:4326", 360 / 2**12, 179.296875, 166.640625),
        ("EPSG:4326", 360 / 2**12, -180.703125, 166.640625),
        ("EPSG:3857", 2 * EDGE / 2**12, EDGE * 179.296875 / 180, EDGE * 166.640625 / 180),
        ("EPSG:3857", 2 * EDGE / 2**12, -EDGE * 180.703125 / 180, EDGE * 166.640625 / 180),
    ],
)
def test_a_scene_that_goes_on_beyond_the_edge_of_the_map_is_shown_whole(tmp_path, crs, pixel, west, control):
    mask, counts = blobs(16, 16, 12), []
    for name, left, halves in (("edge", west, {0, 1}), ("control", control, {1})):
        (tmp_path / name).mkdir()
        made = Made(f"{name}.tif", mask, crs, (pixel, 0.0, left, 0.0, -pixel, 10 * pixel))
        found, met = shown(export(tmp_path / name, [made])[1])
        assert met == halves
        counts.append(found)
    np.testing.assert_array_equal(counts[0], counts[1])
    assert counts[0].sum() == (mask != IGNORE).sum() or crs == "EPSG:4326"


@pytest.mark.parametrize("top", [90.0, 90.125])
@pytest.mark.parametrize("west", [-180.0, -180.125, 0.0, -0.125])
def test_a_grid_of_the_whole_earth_is_on_the_map(tmp_path, top, west):
    size = 0.25
    mask = np.repeat(np.arange(3, dtype=np.uint8), 480)[None].repeat(round(2 * top / size), 0)
    made = Made("world.tif", mask, "EPSG:4326", (size, 0.0, west, 0.0, -size, top))
    result, tiles, reader = export(tmp_path, [made])
    assert result["scenes"] == 1 and (tiles[Tile(0, 0, 0)] != IGNORE).mean() > 0.98
    assert tiles.keys() >= {Tile(1, x, y) for x in (0, 1) for y in (0, 1)}
    east = -180 if west < -1 else 0  # where the first class begins
    columns = ((np.arange(256) + 0.5) * 360 / 256 - 180 - east) % 360 // 120
    assert (tiles[Tile(0, 0, 0)][128] == columns).mean() > 0.97
    assert (reader.header()["min_lon_e7"], reader.header()["max_lon_e7"]) == (-1_800_000_000, 1_800_000_000)


def test_the_box_of_a_scene_as_wide_as_a_country_holds_its_bent_edges(tmp_path):
    made = Made("wide.tif", np.ones((20, 20), np.uint8), "EPSG:3978", (1e5, 0.0, -1.5e6, 0.0, -1e5, 2.5e6))
    _, (scene,) = masks_of(tmp_path, [made])
    ((_, _, _, top),) = places_of(scene)[0].boxes
    _, latitudes = transform(made.crs, "OGC:CRS84", np.linspace(-1.5e6, 0.5e6, 20_001), np.full(20_001, 2.5e6))
    assert 0 <= max(latitudes) - top < 1e-5  # a metre


def test_the_corners_of_a_picture_of_the_earth_may_lie_nowhere(tmp_path):
    side = 100_000.0
    moll = Made("moll.tif", np.ones((182, 362), np.uint8), "ESRI:54009", (side, 0, -181 * side, 0, -side, 91 * side))
    space = "+proj=tpers +h=5000000 +lat_0=10"
    seen = Made("space.tif", np.ones((200, 200), np.uint8), space, (side / 2, 0, -100 * side / 2, 0, -side / 2, 5e6))
    for made, share in ((moll, 0.98), (seen, 0.09)):
        (tmp_path / made.name).mkdir()
        _, tiles, _ = export(tmp_path / made.name, [made])
        assert (tiles[Tile(0, 0, 0)] == 1).mean() > share, made.name


def test_memory_holds_few_pixels_of_a_scene(tmp_path, monkeypatch):
    made = Made("x.tif", blobs(1200, 900, 11), "EPSG:3857", on_grid(16, 40000, 20000))
    masks, scenes = masks_of(tmp_path, [made], window=128)
    asked: list[Window] = []
    read = SceneReader.read
    monkeypatch.setattr(SceneReader, "read", lambda self, window: asked.append(window) or read(self, window))
    write_all(masks, scenes, str(tmp_path / "x.pmtiles"), ExportSettings(masks="m", output="o"))
    assert len(asked) >= 20 and max(window.pixels for window in asked) < 310**2
