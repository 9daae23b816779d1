"""Polygons that cross or touch themselves cover the same pixels in whatever CRS they come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from rasterio.warp import transform
from scene_sets import GRID, UTM, features, raster, write_scenes
from shapely.geometry.base import BaseGeometry

from segray.archives.raster import Header
from segray.datasets import open_dataset, read
from segray.datasets.features import VectorFile
from segray.datasets.vectors import burn
from segray.errors import LabelError
from segray.footprints import EDGE, coordinates, point
from segray.grid import Window
from segray.storage import publish
from segray.uris import join

SIDE = 100
IMAGE = Header(height=SIDE, width=SIDE, bands=1, dtype="uint8", crs=UTM, transform=tuple(GRID)[:6])
WHOLE = Window(0, 0, SIDE, SIDE)


def polygon(*pixels: tuple[float, float]) -> shapely.Polygon:
    """A polygon of columns and rows of the image, in the image's CRS."""
    return shapely.Polygon(coordinates(IMAGE.transform, np.array(pixels)))


def in_degrees(shape: BaseGeometry) -> BaseGeometry:
    points = shapely.get_coordinates(shape)
    return shapely.set_coordinates(shape, np.stack(transform(UTM, "EPSG:4326", *points.T), axis=1))


STAR = [(50 + 70 * np.sin(turn), 40 - 70 * np.cos(turn)) for turn in np.arange(5) * 4 * np.pi / 5]
RINGS = {
    "bow-tie": polygon((-40, 20), (60, 60), (60, 20), (-40, 60)),
    "bow-tie within": polygon((10, 20), (60, 60), (60, 20), (10, 60)),
    "star within": polygon(
        *[(50 + 40 * np.sin(turn), 40 - 40 * np.cos(turn)) for turn in np.arange(5) * 4 * np.pi / 5]
    ),
    "overlapping within": shapely.MultiPolygon(
        [polygon((10, 20), (40, 20), (40, 60), (10, 60)), polygon((20, 40), (80, 40), (80, 80), (20, 80))]
    ),
    "swapped vertices": polygon((20, 20), (20, 50), (150, 50), (130, 60), (130, 30), (150, 20)),
    "touching": polygon((-40, 20), (60, 20), (60, 60), (20, 60), (20, 40), (30, 50), (20, 60), (-40, 60)),
    "back and forth": polygon((-40, 20), (60, 20), (60, 60), (80, 60), (60, 60), (-40, 60)),
    "star": polygon(*STAR),
    "hole across": shapely.Polygon(
        polygon((-40, 20), (60, 20), (60, 60), (-40, 60)).exterior,
        [polygon((30, 40), (80, 40), (80, 80), (30, 80)).exterior],
    ),
    "overlapping": shapely.MultiPolygon(
        [polygon((-40, 20), (40, 20), (40, 60), (-40, 60)), polygon((20, 40), (130, 40), (130, 80), (20, 80))]
    ),
}


def burnt(folder: str, shapes: list[BaseGeometry], crs: str) -> np.ndarray:
    """Which shape covers each pixel of the image: the first (1), the second (2), or none (0)."""
    uri = join(folder, f"{crs.removeprefix('EPSG:')}.gpkg")
    publish(uri, features(shapes, crs, "gpkg", **{"class": list(range(1, len(shapes) + 1))}))
    file = VectorFile(uri=uri, tag="", attribute=None, ids=(("1", 1), ("2", 2)))
    whole = burn(file, IMAGE, WHOLE, background=0)
    assert np.array_equal(burn(file, IMAGE, Window(30, 20, 17, 50), background=0), whole[30:47, 20:70])
    return whole


def of_degrees(folder: str, *boxes: tuple[float, ...]) -> VectorFile:
    """A file of boxes in degrees, whose classes are 1, 2, ..."""
    uri, numbers = join(folder, "a.gpkg"), list(range(1, len(boxes) + 1))
    publish(uri, features([shapely.box(*box) for box in boxes], "EPSG:4326", "gpkg", **{"class": numbers}))
    return VectorFile(uri=uri, tag="", attribute=None, ids=tuple((str(number), number) for number in numbers))


@pytest.mark.parametrize("shape", RINGS.values(), ids=RINGS)
def test_what_crosses_itself_covers_the_same_pixels_in_another_crs(shape, tmp_path):
    assert shape.is_valid is False
    shapes = [shape, polygon((-10, 90), (50, 90), (50, 110), (-10, 110))]
    there = burnt(str(tmp_path), shapes, UTM)
    found = burnt(str(tmp_path), [in_degrees(shape) for shape in shapes], "EPSG:4326")
    assert (there == 1).sum() > 500 and (there == 2).sum() >= 500
    assert (found != there).sum() <= 20  # centres next to an edge


def test_what_has_no_area_in_the_image_covers_nothing(tmp_path):
    line, spike = polygon((-40, 20), (60, 60), (-40, 20)), polygon((150, 20), (30, 30), (150, 20), (150, 80))
    assert not burnt(str(tmp_path), [in_degrees(line), in_degrees(spike)], "EPSG:4326").any()


def test_what_has_no_area_or_place_moves_no_class(tmp_path):
    spike, square = polygon((150, 20), (30, 30), (150, 20), (150, 80)), polygon((20, 20), (60, 20), (60, 60), (20, 60))
    for shapes, crs in ([in_degrees(spike), in_degrees(square)], "EPSG:4326"), ([shapely.Polygon(), square], UTM):
        found = burnt(str(tmp_path), shapes, crs)
        assert set(np.unique(found)) == {0, 2} and found[40, 40] == 2


def test_later_features_lie_over_earlier_ones_on_both_sides_of_the_antimeridian(tmp_path):
    image = replace(IMAGE, height=20, width=40, crs="EPSG:4326", transform=(0.05, 0, 179.0, 0, -0.05, 1))
    file = of_degrees(str(tmp_path), (-180, 0, -179, 1), (179.5, 0, 180.5, 1))  # the first lies there after a turn
    expected = np.zeros((20, 40), np.uint8)
    expected[:, 20:], expected[:, 10:30] = 1, 2
    assert np.array_equal(burn(file, image, Window(0, 0, 20, 40), background=0), expected)


def test_a_window_whose_corners_lie_nowhere_has_its_features(tmp_path):
    radius = 6_378_137.0
    side = 2.2 * radius / 50  # of a pixel in a picture of the whole Earth, whose corners are space
    image = replace(
        IMAGE, height=50, width=50, crs=f"+proj=ortho +lat_0=0 +lon_0=0 +R={radius} +no_defs +type=crs",
        transform=(side, 0, -1.1 * radius, 0, -side, 1.1 * radius),
    )  # fmt: skip
    found = burn(of_degrees(str(tmp_path), (-10, -10, 10, 10)), image, Window(0, 0, 50, 50), background=0)
    assert 40 < (found == 1).sum() < 90 and (found[25, 25], found[0, 0]) == (1, 0)


def test_long_edges_bend_as_they_do_in_their_own_crs(tmp_path):
    image = replace(IMAGE, height=100, width=400, transform=(1000, 0, 3e5, 0, -1000, 5.8e6))
    found = burn(of_degrees(str(tmp_path), (0, 52, 30, 60)), image, Window(0, 0, 100, 400), background=0)
    rows, cols = np.mgrid[:100, :400] + 0.5
    _, latitudes = transform(UTM, "EPSG:4326", *point(image.transform, cols.ravel(), rows.ravel()))
    assert (found.ravel() != (np.array(latitudes) > 52)).mean() < 0.001


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_coordinate_that_is_no_number_is_refused(value, tmp_path):
    broken = shapely.Polygon([(500_000, 5_800_000), (500_100, 5_800_000), (500_100, value)])
    with pytest.raises(LabelError, match=r"gpkg holds a feature \(number 1, from 0\) with a coordinate that is no"):
        burnt(str(tmp_path), [RINGS["star"], broken], UTM)


def test_a_scene_is_read_with_such_labels(tmp_path):
    content = features([in_degrees(RINGS["touching"])], "EPSG:4326", "geojson", **{"class": ["water"]})
    image = raster(np.ones((3, SIDE, SIDE), np.uint8))
    files = {"train/images/a.tif": image, "train/labels/a.geojson": content}
    dataset = open_dataset(write_scenes(str(tmp_path), files, background="land"))
    (sample,) = dataset.samples("train")
    mask = read(dataset, sample).mask
    assert abs((mask == 1).sum() - (60 * 40 - 10 * 20 / 2)) <= 60 and (mask <= 1).all()


@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84", "EPSG:3857"])
@pytest.mark.parametrize("west", [179.0, -181.0])
@pytest.mark.parametrize(("of_image", "degree"), [("EPSG:4326", 1.0), ("EPSG:3857", EDGE / 180)])
def test_features_that_are_cut_at_the_antimeridian_lie_on_both_sides_of_it(tmp_path, of_image, degree, west, crs):
    affine = tuple(degree * value for value in (0.05, 0, west, 0, -0.05, 1))
    image = Header(height=20, width=40, bands=1, dtype="uint8", crs=of_image, transform=affine)
    boxes = [(-180, 0.25, -179.5, 0.75), (179.5, 0.25, 180, 0.75), (-180, 0, -179, 0.5)]
    shapes = [shapely.box(*box) for box in boxes]
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    moved = np.stack(transform("EPSG:4326", crs, *points.T), axis=1)
    shapes = [shapely.Polygon(moved[owner == number]) for number in range(3)]
    uri = join(str(tmp_path), "a.gpkg")
    publish(uri, features(shapes, crs, "gpkg", **{"class": [1, 2, 3]}))
    file = VectorFile(uri=uri, tag="", attribute=None, ids=(("1", 1), ("2", 2), ("3", 3)))
    expected = np.zeros((20, 40), np.uint8)
    expected[5:15, 20:30], expected[5:15, 10:20], expected[10:, 20:] = 1, 2, 3
    assert np.array_equal(burn(file, image, Window(0, 0, 20, 40), background=0), expected)
    assert np.array_equal(burn(file, image, Window(3, 17, 9, 11), background=0), expected[3:12, 17:28])


@pytest.mark.parametrize("turn", [0, 360])
@pytest.mark.parametrize("of_image", ["EPSG:4326", "EPSG:4258", "EPSG:3857", "EPSG:32601"])
@pytest.mark.parametrize("west", [-180.0, -179.5])
def test_features_that_go_on_beyond_the_antimeridian_lie_where_they_do_after_a_turn(tmp_path, of_image, west, turn):
    degrees = np.array([(west, 1.0), (west + 0.05, 1.0), (west, 0.95)])
    (c, f), (a, d), (b, e) = np.stack(transform("EPSG:4326", of_image, *degrees.T), axis=1)
    image = Header(
        height=20, width=40, bands=1, dtype="uint8", crs=of_image, transform=(a - c, b - c, c, d - f, e - f, f)
    )
    boxes = [(-179.25, 0.5, -178.75, 0.75), (-180.5, 0.1, -179.25, 0.4)]
    file = of_degrees(str(tmp_path), *((x + turn, y, east + turn, top) for x, y, east, top in boxes))
    rows, cols = np.mgrid[:20, :40] + 0.5
    xs, ys = point(image.transform, cols.ravel(), rows.ravel())
    points = shapely.points(*transform(of_image, "EPSG:4326", xs, ys))
    expected = np.zeros(800, np.uint8)
    for number, box in enumerate(boxes, 1):
        expected[shapely.intersects(shapely.box(*box), points)] = number
    found = burn(file, image, Window(0, 0, 20, 40), background=0)
    assert set(expected) == {0, 1, 2} and (found.ravel() != expected).sum() <= 10  # beside edges, which bend
