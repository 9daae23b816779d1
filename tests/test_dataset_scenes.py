"""Labels on grids of their own arrive on the image's grid: the nearest pixel, covered centres, whatever the window."""

from __future__ import annotations

import json
import pickle
import sqlite3
import sys
import time
from contextlib import closing

import numpy as np
import pytest
import rasterio
import shapely
from conftest import png
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform
from scene_sets import CLASSES, GRID, UTM, features, moved, raster, write_scenes

from segray.archives.raster import Header
from segray.datasets import Sample, open_dataset, read
from segray.datasets.regrid import label_pixels, transformed
from segray.datasets.scenes import STRIPE_PIXELS
from segray.errors import ImageError, LabelError, SegrayError
from segray.footprints import coordinates, point
from segray.grid import Window, windows
from segray.masks import IGNORE

IMAGE = raster(np.ones((3, 40, 50), np.uint8))
X, Y = 500_000, 5_500_000  # the image's north-west corner; pixels of 10 m, rows run down
NOTHING = np.full((40, 50), IGNORE, np.uint8)


def box(row: float, col: float, height: float, width: float) -> shapely.Polygon:
    """A rectangle in pixels of the image, in the image's CRS."""
    return shapely.box(X + 10 * col, Y - 10 * (row + height), X + 10 * (col + width), Y - 10 * row)


def labelled(uri: str, labels: bytes, name: str, *, image: bytes = IMAGE, **legend: object) -> str:
    """A set of one scene, `a`, and its labels."""
    return write_scenes(uri, {"train/images/a.tif": image, f"train/{name}": labels}, **legend)


def mask_of(uri: str) -> np.ndarray:
    """The mask of the only scene, checked to be the same when read in windows."""
    dataset = open_dataset(uri)
    (sample,) = dataset.samples("train")
    whole = read(dataset, sample).mask
    for window in windows(*whole.shape, 17):
        part = read(dataset, Sample(**{**vars(sample), "size": whole.shape, "window": window}))
        assert part.pixels.shape[1:] == part.valid.shape == (window.height, window.width)
        assert np.array_equal(part.mask, whole[window.rows, window.cols])
    return whole


def header(height: int, width: int, affine: rasterio.Affine, crs: str = UTM) -> Header:
    return Header(height=height, width=width, bands=1, dtype="uint8", crs=crs, transform=tuple(affine)[:6])


def exact(image: Header, label: Header) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) in the label, not rounded, of every pixel centre of an image, each transformed by itself."""
    cols, rows = np.meshgrid(np.arange(image.width) + 0.5, np.arange(image.height) + 0.5)
    points = coordinates(image.transform, np.stack([cols.ravel(), rows.ravel()], axis=1))
    if image.crs != label.crs:
        points = np.stack(transform(image.crs, label.crs, *points.T), axis=1)
    at = coordinates(tuple(~rasterio.Affine(*label.transform))[:6], points)
    return at[:, 1].reshape(rows.shape), at[:, 0].reshape(rows.shape)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.floats(0.3, 3.0),
    turn=st.sampled_from([0.0, 0.0, 30.0, 90.0]),
    down=st.sampled_from([-1, 1]),
    move=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
)
def test_each_pixel_takes_the_label_in_which_its_centre_lies(size, scale, turn, down, move):
    image = header(*size, GRID)
    shape = (
        rasterio.Affine.translation(*move),
        rasterio.Affine.rotation(turn),
        rasterio.Affine.scale(scale, scale * down),
    )
    label = header(25, 31, moved(GRID, *shape))
    places = exact(image, label)
    found = np.broadcast_arrays(*label_pixels(image, label, Window(0, 0, *size)))
    for place, index, length in zip(places, found, (25, 31)):
        clear = np.abs(place - np.rint(place)) > 1e-5  # a centre on a border may go to either pixel
        inside = (place > 0) & (place < length)
        assert np.array_equal(index[clear], np.where(inside, np.floor(place), -1)[clear])


@pytest.mark.parametrize(
    ("affine", "crs"),
    [
        (rasterio.Affine(0.0001, 0, 8.99, 0, -0.0001, 49.66), "EPSG:4326"),
        (rasterio.Affine(6, 2, 1_000_000, 2, -6, 6_385_000), "EPSG:3857"),
        (rasterio.Affine(10, 0, 4_240_000, 0, -10, 2_949_000), "EPSG:3035"),
    ],
)
def test_labels_in_another_crs_lie_where_they_should(affine, crs):
    image = header(200, 300, GRID)
    label = header(2000, 2000, affine, crs)
    rows, cols = label_pixels(image, label, Window(0, 0, 200, 300))
    down, across = exact(image, label)
    assert (rows >= 0).mean() > 0.2  # the grids overlap
    for index, place in ((rows, down), (cols, across)):
        clear = np.abs(place - np.rint(place)) > 0.002  # the accuracy of straight lines between control points
        inside = (place > 0) & (place < 2000)
        assert clear.mean() > 0.9
        assert np.array_equal(index[clear], np.where(inside, np.floor(place), -1)[clear])
    for window in (Window(3, 7, 50, 61), Window(199, 0, 1, 300), Window(16, 16, 16, 16)):
        parts = label_pixels(image, label, window)
        assert np.array_equal(parts[0], rows[window.rows, window.cols])
        assert np.array_equal(parts[1], cols[window.rows, window.cols])


@pytest.mark.parametrize(
    ("crs", "affine", "of_label", "pixel"),
    [
        ("EPSG:3413", rasterio.Affine(1000, 0, -100_000, 0, -1000, 60_000), "EPSG:4326", (0.01, -180, 90)),
        ("EPSG:3413", rasterio.Affine(1000, 0, 500_000, 0, -1000, 60_000), "EPSG:4326", (0.01, -180, 90)),
        ("EPSG:4326", rasterio.Affine(0.25, 0, -20, 0, -0.25, 80), "EPSG:3857", (10_000, -2e7, 2e7)),
        ("EPSG:4326", rasterio.Affine(0.25, 0, -20, 0, -0.25, 70), "EPSG:3035", (10_000, 900_000, 7_400_000)),
    ],
    ids=["at a pole", "beside a pole", "to Mercator", "to Europe"],
)
def test_labels_of_coarse_grids_that_bend_are_those_under_the_centres(crs, affine, of_label, pixel):
    side, west, north = pixel
    image = header(140, 200, affine, crs)
    label = header(40_000, 40_000, rasterio.Affine(side, 0, west, 0, -side, north), of_label)
    rows, cols = label_pixels(image, label, Window(0, 0, 140, 200))
    down, right = np.mgrid[:140, :200] + 0.5
    xs, ys = (
        np.array(axis) for axis in transform(crs, of_label, *point(tuple(affine)[:6], right.ravel(), down.ravel()))
    )
    for index, place in ((cols, (xs - west) / side), (rows, (north - ys) / side)):
        clear = (np.abs(place - np.rint(place)) > 0.015) & (xs > west) & (ys < north)
        assert clear.mean() > 0.8
        assert np.array_equal(index.ravel()[clear], np.floor(place[clear]))
    parts = label_pixels(image, label, Window(37, 53, 60, 70))
    assert np.array_equal(parts, np.array([rows, cols])[:, 37:97, 53:123])


WORLD = rasterio.Affine(0.5, 0, -180, 0, -0.5, 90)
EASTWARDS = rasterio.Affine(0.5, 0, 0, 0, -0.5, 90)  # from 0 to 360 degrees
FIJI = {
    "UTM": ("EPSG:32760", rasterio.Affine(2000, 0, 640_000, 0, -2000, 8_100_000)),
    "polar": ("EPSG:3031", rasterio.Affine(200, 0, -30_000, 0, -200, -2_000_000)),
    "degrees": ("EPSG:4326", rasterio.Affine(0.05, 0, 175, 0, -0.05, -15)),
    "the Mercator map": ("EPSG:3857", rasterio.Affine(5000, 0, 19_500_000, 0, -5000, -1_700_000)),
}


@pytest.mark.parametrize("label", [WORLD, EASTWARDS])
@pytest.mark.parametrize(("crs", "affine"), FIJI.values(), ids=FIJI)
def test_labels_go_on_beyond_the_antimeridian(crs, affine, label):
    image = header(150, 300, affine, crs)
    rows, cols = np.broadcast_arrays(*label_pixels(image, header(360, 720, label, "EPSG:4326"), Window(0, 0, 150, 300)))
    down, right = np.mgrid[:150, :300] + 0.5
    xs, ys = affine * (right.ravel(), down.ravel())
    longitude, latitude = (np.array(axis).reshape(150, 300) for axis in transform(crs, "EPSG:4326", xs, ys))
    expected = (longitude - label.c) % 360 / 0.5
    assert np.ptp(longitude % 360 // 180) == 1  # the image lies on both sides of the label's edge
    for index, place in ((cols, expected), (rows, (90 - latitude) / 0.5)):
        clear = np.abs(place - np.rint(place)) > 0.01
        assert clear.mean() > 0.9
        assert np.array_equal(index[clear], np.floor(place[clear]))
    for window in (Window(3, 7, 50, 61), Window(149, 0, 1, 300)):
        parts = np.broadcast_arrays(*label_pixels(image, header(360, 720, label, "EPSG:4326"), window))
        assert np.array_equal(parts[0], rows[window.rows, window.cols])
        assert np.array_equal(parts[1], cols[window.rows, window.cols])


@pytest.mark.parametrize("affine", [rasterio.Affine(0.1, 0, -181, 0, -0.1, 90), rasterio.Affine(1, 0, 0, 0, -1, 1000)])
def test_a_label_on_the_grid_of_its_image_is_taken_as_it_is_however_wide(affine):
    image = header(30, 3620, affine, "EPSG:4326")
    rows, cols = label_pixels(image, image, Window(0, 0, 30, 3620))
    assert rows.ravel().tolist() == list(range(30))
    assert cols.ravel().tolist() == list(range(3620))


def test_points_without_a_place_are_no_numbers_and_others_keep_theirs():
    points = np.array([[9.0, 50.0], [0.0, 95.0], [9.1, 50.1], [400.0, -95.0]])
    moved = transformed("EPSG:4326", UTM, points)
    assert np.isnan(moved).all(axis=1).tolist() == [False, True, False, True]
    assert moved[2] == pytest.approx(np.array(transform("EPSG:4326", UTM, [9.1], [50.1])).ravel())


def test_there_may_be_no_way_between_two_crs():
    with pytest.raises(LabelError, match="the CRS EPSG:4326 cannot be transformed to LOCAL_CS"):
        transformed("EPSG:4326", 'LOCAL_CS["mine",UNIT["metre",1]]', np.zeros((5, 2)))


def test_a_coarser_raster_beside_the_image_is_regridded(store):
    label = np.array([[0, 1, 2], [2, 9, 0]], np.uint8)
    content = raster(label, transform=rasterio.Affine(200, 0, X + 50, 0, -200, Y - 100), nodata=9)
    expected = NOTHING.copy()
    expected[10:30, 5:25], expected[10:30, 25:45], expected[10:30, 45:50] = 0, 1, 2
    expected[30:40, 5:25], expected[30:40, 45:50] = 2, 0
    assert np.array_equal(mask_of(labelled(store, content, "labels/a.tif")), expected)


def test_stripes_of_a_large_scene_join(tmp_path):
    size = 1100  # more than a stripe
    assert size**2 > STRIPE_PIXELS
    label = np.random.default_rng(0).integers(0, 3, (50, 50)).astype(np.uint8)
    content = raster(label, transform=moved(GRID, rasterio.Affine.scale(size / 50)))
    uri = labelled(str(tmp_path), content, "labels/a.tif", image=raster(np.ones((size, size), np.uint8)))
    dataset = open_dataset(uri)
    mask = dataset.read_mask(dataset.samples("train")[0])
    assert np.array_equal(mask, label.repeat(22, 0).repeat(22, 1))


COLORS = np.array([entry["color"] for entry in CLASSES], np.uint8)
PLAIN = np.random.default_rng(1).integers(0, 2, (40, 50)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels/a.tif", raster(PLAIN)),
        ("labels/a.tif", raster(PLAIN, crs=None, transform=None)),
        ("labels/a.png", png(PLAIN)),
        ("labels/a.png", png(COLORS[PLAIN])),
    ],
)
def test_masks_on_the_image_grid_arrive_exactly(store, name, content):
    assert np.array_equal(mask_of(labelled(store, content, name)), PLAIN)


def test_a_mask_without_georeference_must_have_the_size_of_its_image(tmp_path):
    uri = labelled(str(tmp_path), png(PLAIN[:39]), "labels/a.png")
    with pytest.raises(LabelError, match=r"labels/a.png has 39 x 50 pixels .* has 40 x 50; masks are never resized"):
        mask_of(uri)


def test_labels_on_another_grid_need_an_image_that_lies_somewhere(tmp_path):
    bare = raster(np.ones((3, 40, 50), np.uint8), transform=None)
    with pytest.raises(
        LabelError, match=r"images/a.tif has no georeference, so .*a.tif, which differs in size, cannot"
    ):
        mask_of(labelled(str(tmp_path / "a"), raster(PLAIN[:39]), "labels/a.tif", image=bare))
    assert np.array_equal(mask_of(labelled(str(tmp_path / "b"), raster(PLAIN), "labels/a.tif", image=bare)), PLAIN)


SHAPES = [box(0, 0, 40, 50), box(2, 3, 10, 20), box(5.5, 10.5, 10, 10), box(30.6, 0, 0.3, 50)]
EXPECTED = np.zeros((40, 50), np.uint8)
EXPECTED[2:12, 3:23] = 1
EXPECTED[5:15, 10:20] = 2  # the centres of the first row and column lie on the border, which rasterio counts
ENDINGS = ("geojson", "gpkg", "parquet")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("together", [False, True])
def test_polygons_cover_pixel_centres_and_later_ones_win(store, ending, together):
    """The last polygon covers no centre: pixels that it only touches are not its own."""
    names = ["land", "water", "road", "water"]
    name = f"labels.{ending}" if together else f"labels/a.{ending}"
    mask = mask_of(labelled(store, features(SHAPES, UTM, ending, **{"class": names}), name))
    inner = np.ones((40, 50), bool)
    inner[[5, 15], 10:21], inner[5:16, [10, 20]] = False, False  # centres on borders may go either way
    assert np.array_equal(mask[inner], EXPECTED[inner])
    assert 90 <= (mask == 2).sum() <= 121


@pytest.mark.parametrize(
    ("attributes", "legend"),
    [
        ({"class": [1, 2]}, {}),
        ({"class_id": [1, 2]}, {}),
        ({"class_name": ["water", "road"]}, {}),
        ({"class_id": [1.0, 2.0], "class_name": ["no", "matter"]}, {}),
        ({"class": [0, 0], "kind": ["water", "2"]}, {"attribute": "kind"}),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_class_is_told_by_name_or_id(tmp_path, attributes, legend, ending):
    content = features([box(0, 0, 10, 10), box(20, 20, 10, 10)], UTM, ending, **attributes)
    mask = mask_of(labelled(str(tmp_path), content, f"labels/a.{ending}", **legend))
    expected = NOTHING.copy()
    expected[:10, :10], expected[20:30, 20:30] = 1, 2
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("legend", "background"),
    [
        ({}, IGNORE),
        ({"background": "land"}, 0),
        ({"background": 2}, 2),
        ({"background": "unknown"}, IGNORE),
        (
            {
                "classes": [
                    {"id": 0, "name": "water", "color": [0, 0, 0]},
                    {"id": 1, "name": "background", "color": [1, 1, 1]},
                ]
            },
            1,
        ),
    ],
)
def test_pixels_without_a_feature_are_background_if_there_is_one(tmp_path, legend, background):
    content = features([box(0, 0, 10, 10)], UTM, "geojson", **{"class": ["water"]})
    mask = mask_of(labelled(str(tmp_path), content, "labels/a.geojson", **legend))
    assert mask[20, 20] == background
    assert mask[5, 5] == [entry["name"] for entry in open_dataset(str(tmp_path)).classes.to_json()].index("water")


def test_a_geojson_needs_no_name(tmp_path):
    named = json.loads(features([box(0, 0, 10, 10)], UTM, "geojson", **{"class": ["water"]}))
    content = json.dumps({name: value for name, value in named.items() if name != "name"}).encode()
    assert len(content) < len(json.dumps(named))
    expected = NOTHING.copy()
    expected[:10, :10] = 1
    assert np.array_equal(mask_of(labelled(str(tmp_path), content, "labels/a.geojson")), expected)


def test_a_scene_without_any_feature_is_background(tmp_path):
    content = b'{"type": "FeatureCollection", "features": []}'
    mask = mask_of(labelled(str(tmp_path), content, "labels/a.geojson", background="land"))
    assert (mask == 0).all()


def test_what_is_ignored_needs_no_name(tmp_path):
    classes = [*CLASSES[:3], {"id": 255, "color": [0, 0, 0]}]
    content = features([box(0, 0, 10, 10)], UTM, "geojson", **{"class": [255]})
    mask = mask_of(labelled(str(tmp_path), content, "labels/a.geojson", classes=classes, background="land"))
    assert (mask == IGNORE).sum() == 100


def test_features_that_mean_no_label_are_ignored(tmp_path):
    content = features([box(0, 0, 9, 9), box(20, 0, 9, 9)], UTM, "gpkg", **{"class": ["unknown", "255"]})
    mask = mask_of(labelled(str(tmp_path), content, "labels/a.gpkg", background="land"))
    assert (mask == IGNORE).sum() == 2 * 81
    assert (mask == 0).sum() == mask.size - 2 * 81


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:3035"])
def test_polygons_in_another_crs_lie_where_they_should(tmp_path, crs):
    xs, ys = transform(UTM, crs, *zip(*shapely.get_coordinates(box(4.2, 6.2, 20, 30)).tolist()))
    content = features([shapely.Polygon(list(zip(xs, ys)))], crs, "geojson", **{"class": ["water"]})
    expected = NOTHING.copy()
    expected[4:24, 6:36] = 1
    assert np.array_equal(mask_of(labelled(str(tmp_path), content, "labels/a.geojson")), expected)


WORLD = shapely.box(-180, -90, 180, 90)


def test_a_polygon_far_larger_than_the_image_covers_it(tmp_path):
    """Transformed to UTM, its corners alone would make a line of it."""
    north = shapely.box(-180, 49.64, 180, 90)
    content = features([WORLD, north], "EPSG:4326", "geojson", **{"class": ["land", "water"]})
    coarse = moved(GRID, rasterio.Affine.scale(10))
    image = raster(np.ones((3, 40, 50), np.uint8), transform=coarse)
    mask = mask_of(labelled(str(tmp_path), content, "labels/a.geojson", image=image))
    cols, rows = np.meshgrid(np.arange(50) + 0.5, np.arange(40) + 0.5)
    points = coordinates(tuple(coarse)[:6], np.stack([cols.ravel(), rows.ravel()], axis=1))
    latitudes = np.reshape(transform(UTM, "EPSG:4326", *points.T)[1], mask.shape)
    assert 0.1 < (mask == 1).mean() < 0.9
    assert np.array_equal(mask, (latitudes > 49.64).astype(np.uint8))


def test_a_polygon_beyond_the_area_of_the_crs_is_named(tmp_path):
    content = features([shapely.box(-180, -95, 180, 95)], "EPSG:4326", "geojson", **{"class": ["land"]})
    world = rasterio.Affine(1_000_000, 0, -20_000_000, 0, -1_000_000, 20_000_000)
    image = raster(np.ones((40, 40), np.uint8), crs="EPSG:3857", transform=world)
    with pytest.raises(
        LabelError, match=r"a.geojson holds a feature \(number 0, from 0\) that reaches beyond .*EPSG:3857"
    ):
        mask_of(labelled(str(tmp_path), content, "labels/a.geojson", image=image))


def test_polygons_on_a_turned_image_lie_where_they_should(tmp_path):
    turned = moved(GRID, rasterio.Affine.rotation(30))
    corners = coordinates(tuple(turned)[:6], np.array([(5, 5), (25, 5), (25, 20), (5, 20)]))
    content = features([shapely.Polygon(corners)], UTM, "gpkg", **{"class": [2]})
    image = raster(np.ones((40, 50), np.uint8), transform=turned)
    mask = mask_of(labelled(str(tmp_path), content, "labels/a.gpkg", image=image))
    assert np.array_equal(mask == 2, np.pad(np.ones((15, 20), bool), ((5, 20), (5, 25))))


BOX, LINE = box(0, 0, 10, 10), shapely.LineString([(X, Y), (X + 100, Y - 100)])
NO_CRS = features([BOX], None, "geojson", **{"class": [1]})  # then GDAL takes them for degrees
PARQUET = features([BOX], UTM, "parquet", **{"class": ["water"]})
FOOTER = PARQUET[-8 - int.from_bytes(PARQUET[-8:-4], "little") :]
REFUSED = {
    "name": (features([BOX], UTM, "geojson", **{"class": ["lake"]}), "a.geojson", "a.geojson holds the class 'lake'"),
    "id": (features([BOX], UTM, "gpkg", **{"class_id": [7]}), "a.gpkg", "a.gpkg holds the class 7"),
    "no class": (features([BOX], UTM, "parquet", **{"class": [None]}), "a.parquet", "a feature without a class"),
    "attribute": (features([BOX], UTM, "gpkg", kind=[1]), "a.gpkg", 'no attribute class or class_id .*"attribute"'),
    "line": (features([LINE], UTM, "geojson", **{"class": [1]}), "a.geojson", "a LineString; labels are polygons"),
    "no id": (features([BOX, BOX], UTM, "gpkg", **{"class": [np.nan, 1]}), "a.gpkg", "a feature without a class"),
    "no CRS": (features([BOX], None, "parquet", **{"class": [1]}), "a.parquet", "does not say in which CRS"),
    "no degrees": (NO_CRS, "a.geojson", r"a.geojson holds the coordinates \(500100, 5499900\), which are no longitude"),
    "broken": (b"{", "a.geojson", "a.geojson cannot be read"),
    "no GeoPackage": (b"<OGRVRTDataSource>", "a.gpkg", "its content is not what its ending says"),
    "of other files": (b'{"y": "<OGRVRTDataSource/>"}', "a.geojson", "its content is not what its ending says"),
    "a pipeline": (b'{"type": "gdal_streamed_alg"}', "a.geojson", "its content is not what its ending says"),
    "no Parquet": (b"PAR1", "a.parquet", "a.parquet cannot be read"),
    "footer of a Parquet": (b"PAR1" + b"\xff" * 99 + b"\x50\0\0\0PAR1", "a.parquet", "a.parquet cannot be read"),
    "no pages": (PARQUET[:4] + bytes(len(PARQUET) - len(FOOTER) - 4) + FOOTER, "a.parquet", "a.parquet cannot be read"),
    "no text": (PARQUET.replace(b"water", b"\xff\xffter"), "a.parquet", "a.parquet cannot be read: .*can't decode"),
    "id in a raster": (raster(PLAIN + np.uint8(7)), "a.tif", "a.tif holds the id"),
    "nodata is a class": (raster(PLAIN, nodata=0, transform=moved(GRID, GRID.scale(2))), "a.tif", "'land'; unset"),
    "raster without CRS": (raster(PLAIN, crs=None), "a.tif", "a.tif has no CRS, so .* cannot be placed"),
}  # fmt: skip


@pytest.mark.parametrize("content, name, sentence", REFUSED.values(), ids=REFUSED)
def test_labels_that_cannot_be_used_are_named(tmp_path, content, name, sentence):
    uri = labelled(str(tmp_path), content, f"labels/{name}")
    with pytest.raises((LabelError, ImageError), match=sentence) as caught:
        mask_of(uri)
    assert f"train/labels/{name}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("attribute", [5, ["kind"], {}])
def test_an_attribute_that_is_no_name_is_refused(tmp_path, attribute):
    content = features([BOX], UTM, "geojson", **{"class": [1]})
    uri = labelled(str(tmp_path), content, "labels/a.geojson", attribute=attribute)
    with pytest.raises(SegrayError, match="classes.json gives .* as attribute; give the name of one"):
        open_dataset(uri)


def test_features_need_an_image_that_lies_somewhere(tmp_path):
    content = features([BOX], UTM, "geojson", **{"class": [1]})
    uri = labelled(str(tmp_path), content, "labels/a.geojson", image=raster(PLAIN, crs=None, transform=None))
    with pytest.raises(LabelError, match="images/a.tif has no georeference, so .*a.geojson cannot be placed"):
        mask_of(uri)


def test_a_geopackage_of_two_layers_is_refused(tmp_path):
    (tmp_path / "train/labels").mkdir(parents=True)
    import geopandas

    for layer in ("fields", "roads"):
        frame = geopandas.GeoDataFrame({"class": [1]}, geometry=[BOX], crs=UTM)
        frame.to_file(tmp_path / "train/labels/a.gpkg", layer=layer)
    write_scenes(str(tmp_path), {"train/images/a.tif": IMAGE})
    with pytest.raises(LabelError, match="a.gpkg holds the layers fields, roads; give one layer"):
        mask_of(str(tmp_path))


def test_a_geopackage_that_lacks_what_is_being_edited_is_refused(tmp_path):
    uri = labelled(str(tmp_path), features([BOX], UTM, "gpkg", **{"class": [1]}), "labels/a.gpkg")
    with closing(sqlite3.connect(tmp_path / "train/labels/a.gpkg")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE more (a)")
        with pytest.raises(LabelError, match="a.gpkg-wal holds changes that .*a.gpkg lacks; close the program"):
            mask_of(uri)
    assert (mask_of(uri) == 1).sum() == 100


def test_without_geopandas_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    uri = labelled(str(tmp_path), features([BOX], UTM, "geojson", **{"class": [1]}), "labels/a.geojson")
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(SegrayError, match=r"a.geojson holds vector labels.*pip install 'segray\[vector\]'"):
        mask_of(uri)


def test_labels_that_change_are_read_anew(tmp_path):
    for value in (1, 2):
        content = features([box(0, 0, 40, 50)], UTM, "geojson", **{"class": [value]})
        assert (mask_of(labelled(str(tmp_path), content, "labels/a.geojson")) == value).all()
        time.sleep(0.01)  # a file system tells versions apart by their times


def test_one_file_labels_all_scenes_of_a_split(tmp_path):
    east = raster(np.ones((3, 40, 50), np.uint8), transform=moved(GRID, rasterio.Affine.translation(50, 0)))
    content = features([box(10, 30, 20, 40)], UTM, "gpkg", **{"class": ["road"]})
    files = {"train/images/a.tif": IMAGE, "train/images/b.tif": east, "train/labels.gpkg": content}
    dataset = open_dataset(write_scenes(str(tmp_path), files))
    west, east = (dataset.read_mask(sample) for sample in dataset.samples("train"))
    assert [sample.key for sample in dataset.samples("train")] == ["a", "b"]
    assert np.argwhere(west == 2).min(axis=0).tolist() == [10, 30]
    assert np.argwhere(east == 2).max(axis=0).tolist() == [29, 19]
    assert pickle.loads(pickle.dumps(dataset)) == dataset


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"train/images/b.tif": IMAGE}, r"images/b.tif has no label: .*train/labels holds no b\.\*"),
        ({"train/images/b.tif": IMAGE, "train/labels/b.shp": b""}, "labels holds b.shp, in no format that is read"),
        ({"train/labels.gpkg": b""}, "labels more than once, as labels and as labels.gpkg"),
        ({"train/labels/a.tif": b""}, "the same stem; remove one"),
        ({"train/masks/a.png": png(PLAIN)}, "holds the layouts folder and scenes at once"),
        ({"train/labels/a.jpg": b""}, "a mask in a lossy format"),
    ],
)
def test_sets_that_are_ambiguous_or_incomplete_are_refused(store, files, sentence):
    uri = labelled(store, png(PLAIN), "labels/a.png")
    write_scenes(uri, files)
    with pytest.raises(SegrayError, match=sentence):
        open_dataset(uri).samples("train")


def test_labels_of_a_split_in_several_files_are_refused(store):
    parts = {f"train/labels.parquet/part-{k}.parquet": b"" for k in (0, 1)}
    uri = write_scenes(store, {"train/images/a.tif": IMAGE, **parts})
    with pytest.raises(SegrayError, match=r"train/labels.parquet is a folder of 2 files; write them as one file"):
        open_dataset(uri).samples("train")


def test_a_background_that_is_no_class_is_refused(tmp_path):
    uri = labelled(str(tmp_path), png(PLAIN), "labels/a.png", background="sea")
    with pytest.raises(SegrayError, match="classes.json names 'sea' as background"):
        open_dataset(uri)
