"""Areas and coordinates of pixels: planes of any unit, ellipsoids, rotated transforms, and images without either."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
import rasterio

from segray.archives.metadata import metres
from segray.errors import SegrayError
from segray.exports.ground import Ellipsoid, ground_of
from segray.footprints import area_m2, outline
from segray.grid import Window

DEGREE = (1.0, 0.0, -180.0, 0.0, -1.0, 90.0)
WGS84_M2 = 5.100656217240885e14  # surface of the ellipsoid, 2 pi a^2 (1 + (1 - e^2) / e * artanh(e))


def run(row: int, column: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One run of pixels as arrays."""
    return np.array([row]), np.array([column]), np.array([length])


@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84", pyproj.CRS("EPSG:4326").to_wkt()])
def test_the_whole_world_has_the_area_of_the_ellipsoid(crs: str) -> None:
    ground = ground_of("a.tif", crs, DEGREE)
    rows = np.arange(180)
    total = ground.run_m2(rows, np.zeros(180), np.full(180, 360)).sum()
    assert total == pytest.approx(WGS84_M2, rel=1e-10)
    ellipsoid = ground.surface.ellipsoid
    e = math.sqrt(ellipsoid.e2)
    expected = 2 * math.pi * ellipsoid.radius**2 * (1 + (1 - e * e) / e * math.atanh(e))
    assert expected == pytest.approx(WGS84_M2, rel=1e-12)


@pytest.mark.parametrize("latitude", [-89.9, -52.5, 0.0, 33.3, 70.0])
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_pixels_have_the_area_of_geodesic_polygons(latitude: float, turn: float) -> None:
    size = 1e-4
    c, s = size * math.cos(turn), size * math.sin(turn)
    ground = ground_of("a.tif", "EPSG:4326", (c, s, 13.0, s, -c, latitude))
    corners = ground.coordinates(np.array([[5, 7], [6, 7], [6, 8], [5, 8]]))
    expected = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*corners.T)[0])
    assert ground.run_m2(*run(7, 5, 1))[0] == pytest.approx(expected, rel=1e-5)


MERCATORS = ["EPSG:3857", "EPSG:3395", "EPSG:3994", "+proj=merc +k=0.9 +y_0=1e6 +datum=WGS84 +units=us-ft +type=crs"]


@pytest.mark.parametrize("crs", MERCATORS)
@pytest.mark.parametrize("latitude", [-80.0, -52.5, 0.0, 33.3, 70.0])
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_pixels_of_a_mercator_map_have_their_area_on_the_ground(crs: str, latitude: float, turn: float) -> None:
    to_map = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_map.transform(13.0, latitude)
    c, s = 20 * math.cos(turn), 20 * math.sin(turn)
    ground = ground_of("a.tif", crs, (c, s, x, s, -c, y))
    corners = ground.coordinates(np.array([[5, 7], [6, 7], [6, 8], [5, 8]]))
    points = to_map.transform(*corners.T, direction="INVERSE")
    expected = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*points)[0])
    assert ground.areas(np.ones(1), ground.run_m2(*run(7, 5, 1)))[0] == pytest.approx(expected, rel=1e-4)
    assert ground.pixel_size_m(14, 10) == pytest.approx(math.sqrt(expected), rel=1e-4)
    whole = outline(crs, ground.transform, Window(0, 0, 14, 10))
    measured = ground.run_m2(np.arange(14), np.zeros(14), np.full(14, 10)).sum()
    assert measured == pytest.approx(area_m2(whole), rel=1e-4)  # the area that summary.json counts


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_runs_have_the_area_of_their_pixels(turn: float) -> None:
    size = 0.01
    c, s = size * math.cos(turn), size * math.sin(turn)
    ground = ground_of("a.tif", "EPSG:4326", (c, s, 13.0, s, -c, 52.0))
    single = ground.run_m2(np.full(300, 7), np.arange(300), np.ones(300)).sum()
    assert ground.run_m2(*run(7, 0, 300))[0] == pytest.approx(single, rel=1e-12)


def test_the_size_of_a_pixel_is_that_in_the_middle() -> None:
    ground = ground_of("a.tif", "EPSG:4326", (0.01, 0.0, 0.0, 0.0, -0.01, 80.0))
    assert ground.pixel_size_m(8000, 10) == pytest.approx(1113.2 * 0.766**0.5, rel=0.01)  # the middle is at 40 degrees


@pytest.mark.parametrize("top", [91.0, 361.0, -719.0])  # as of metres that are called degrees
def test_beyond_the_poles_there_is_nothing(top: float) -> None:
    ground = ground_of("a.tif", "EPSG:4326", (1.0, 0.0, -180.0, 0.0, -1.0, top))
    assert ground.run_m2(*run(0, 0, 10))[0] == 0
    assert ground.pixel_size_m(1, 10) == 1  # what is simplified is divided by it


@pytest.mark.parametrize(
    ("crs", "transform", "pixel_m2"),
    [
        ("EPSG:32633", (0.5, 0, 4e5, 0, -0.25, 5e6), 0.125),
        ("EPSG:32633", (3.0, 4.0, 4e5, 4.0, -3.0, 5e6), 25.0),
        ("EPSG:2263", (1.0, 0, 1e6, 0, -1.0, 2e5), (1200 / 3937) ** 2),  # US survey feet
        ("EPSG:7415", (2.0, 0, 1e5, 0, -2.0, 4e5), 4.0),  # with a height
    ],
)
def test_areas_of_a_plane_are_in_square_metres(crs: str, transform: tuple, pixel_m2: float) -> None:
    ground = ground_of("a.tif", crs, transform)
    areas = ground.areas(np.array([1, 10]), ground.run_m2(*run(0, 0, 2)))
    assert areas.tolist() == pytest.approx([pixel_m2, 10 * pixel_m2], rel=1e-12)
    assert ground.pixel_size_m(100, 100) == pytest.approx(math.sqrt(pixel_m2))


@pytest.mark.parametrize(("crs", "latitude"), [("EPSG:3034", 50.0), ("EPSG:3031", -89.5), ("EPSG:3347", 60.0)])
def test_pixels_of_a_map_of_a_continent_have_their_area_on_the_ground(crs: str, latitude: float) -> None:
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(10.0, latitude)
    ground = ground_of("a.tif", crs, (10.0, 0, x - 500, 0, -10.0, y + 500), height=100, width=100)
    expected = 100 / pyproj.Proj(crs).get_factors(10.0, latitude).areal_scale
    assert abs(expected / 100 - 1) > 0.05
    assert ground.areas(np.ones(1), np.zeros(1))[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("crs", ["EPSG:4087", "ESRI:54003", "ESRI:54016", "ESRI:54030", "EPSG:4087+5773"])
@pytest.mark.parametrize("latitude", [1.0, -41.0, 61.7])  # Robinson's table has gaps at every fifth degree
def test_pixels_of_a_world_map_have_their_area_on_the_ground_in_the_middle(crs: str, latitude: float) -> None:
    to_map = pyproj.Transformer.from_crs("EPSG:4326", crs.split("+", maxsplit=1)[0], always_xy=True)
    x, y = to_map.transform(13.0, latitude)
    transform = (10.0, 0, x - 1000, 0, -10.0, y + 500)
    ground = ground_of("a.tif", crs, transform, height=100, width=200)
    corners = ground.coordinates(np.array([[99, 49], [101, 49], [101, 51], [99, 51]]))
    points = to_map.transform(*corners.T, direction="INVERSE")
    expected = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*points)[0]) / 4
    assert ground.areas(np.array([3.0]), np.zeros(1))[0] == pytest.approx(3 * expected, rel=1e-3)
    with rasterio.MemoryFile() as file:
        place = {"crs": crs, "transform": rasterio.Affine(*transform)}
        with file.open(driver="GTiff", height=100, width=200, count=1, dtype="uint8", **place) as target:
            assert metres(target) == pytest.approx(math.sqrt(expected), rel=1e-3)


@pytest.mark.parametrize("distance", [0.0, 500.0, 1500.0, 30_000.0])
@pytest.mark.parametrize("side", [10.0, 25_000.0])
def test_pixels_around_a_pole_have_their_area(distance: float, side: float) -> None:
    transform = (side, 0, distance - 50 * side, 0, -side, 50 * side)
    ground = ground_of("a.tif", "+proj=aeqd +lat_0=90 +datum=WGS84 +type=crs", transform, height=100, width=100)
    assert ground.areas(np.ones(1), np.zeros(1))[0] == pytest.approx(side**2, rel=1e-3)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(None, None), (None, DEGREE), ("EPSG:32633", None), ('LOCAL_CS["site",UNIT["metre",1]]', DEGREE)],
)
def test_without_a_known_plane_no_area_is_known(crs: str | None, transform: tuple | None) -> None:
    ground = ground_of("a.tif", crs, transform)
    assert not ground.has_area
    assert np.isnan(ground.areas(np.array([3]), np.zeros(1))).all()
    assert ground.pixel_size_m(10, 10) == 1
    assert (ground.projjson is None) == (crs is None or transform is None)


def test_coordinates_follow_the_affine() -> None:
    ground = ground_of("a.tif", "EPSG:32633", (3.0, 4.0, 100.0, 5.0, -6.0, 200.0))
    assert ground.coordinates(np.array([[0, 0], [1, 0], [0, 1], [2, 3]])).tolist() == [
        [100, 200], [103, 205], [104, 194], [118, 192],
    ]  # fmt: skip
    assert ground.determinant == -38


@pytest.mark.parametrize(
    ("crs", "radius", "flattening"),
    [
        ("EPSG:4326", 6378137.0, 1 / 298.257223563),
        ("EPSG:4277", 6377563.396, 1 / 299.3249646),  # Airy 1830
        ("+proj=longlat +R=6371000 +no_defs +type=crs", 6371000.0, 0.0),
        ("EPSG:4267", 6378206.4, 1 - 6356583.8 / 6378206.4),  # Clarke 1866, given by both axes
        ("EPSG:4302", 20926348 * 0.3047972654, 1 - 20855233 / 20926348),  # Clarke 1858, in Clarke's feet
    ],
)
def test_the_ellipsoid_is_that_of_the_crs(crs: str, radius: float, flattening: float) -> None:
    found = ground_of("a.tif", crs, DEGREE).surface.ellipsoid
    assert found.radius == pytest.approx(radius, rel=1e-12)
    assert found.e2 == pytest.approx(flattening * (2 - flattening), rel=1e-9, abs=1e-15)


def test_density_is_that_of_a_sphere_without_flattening() -> None:
    latitudes = np.array([0.0, 0.5, 1.0])
    assert Ellipsoid(radius=2.0, e2=0.0).density(latitudes).tolist() == (4 * np.cos(latitudes)).tolist()


def test_an_unknown_crs_is_named() -> None:
    with pytest.raises(SegrayError, match=r"b\.tif has the CRS EPSG:999999"):
        ground_of("b.tif", "EPSG:999999", DEGREE)
