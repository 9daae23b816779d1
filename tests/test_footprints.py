"""Outlines of scenes that hold a pole; other outlines are tested with the shards."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from rasterio.warp import transform

from segray.footprints import area_m2, footprint, outline, rings
from segray.grid import Window

WINDOW = Window(0, 0, 200, 300)
SOUTH, NORTH = ("EPSG:3031", -90), ("EPSG:3413", 90)  # polar stereographic


def affine(centre: tuple[float, float], pixel_m: float, turn: str) -> tuple[float, ...]:
    """That of WINDOW around a place in metres: as maps are, upside down, or turned by a quarter."""
    x, y = centre
    down, right = 100 * pixel_m, 150 * pixel_m
    return {
        "up": (pixel_m, 0, x - right, 0, -pixel_m, y + down),
        "flipped": (pixel_m, 0, x - right, 0, pixel_m, y - down),
        "quarter": (0, pixel_m, x - down, pixel_m, 0, y - right),
    }[turn]


def degrees(crs: str, affine: tuple[float, ...], cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = affine
    return shapely.points(*transform(crs, "OGC:CRS84", a * cols + b * rows + c, d * cols + e * rows + f))


@pytest.mark.parametrize("turn", ["up", "flipped", "quarter"])
@pytest.mark.parametrize(("crs", "pole"), [SOUTH, NORTH])
@pytest.mark.parametrize("centre", [(0, 0), (20_000, 40_000), (-99_000, 30_000), (1, -99_999)])
def test_a_scene_that_holds_a_pole_reaches_it_at_every_longitude(crs, pole, centre, turn):
    placed = affine(centre, 1000, turn)
    found = shapely.from_wkb(footprint(crs, placed, WINDOW))
    assert found.is_valid and found.geom_type == "Polygon" and shapely.is_ccw(found.exterior)
    assert {(-180, pole), (180, pole)} <= set(found.exterior.coords)
    inside = shapely.points(np.linspace(-180, 180, 50), np.full(50, pole * (1 - 1e-9)))
    assert found.covers(inside).all()
    rng = np.random.default_rng(0)
    cols, rows = rng.uniform(3, 297, 500), rng.uniform(3, 197, 500)
    assert found.covers(degrees(crs, placed, cols, rows)).all()
    beyond = np.array([-3.0, 303, 150, 150]), np.array([100.0, 100, -3, 203])
    assert not found.intersects(degrees(crs, placed, *beyond)).any()
    corners = degrees(crs, placed, np.array([0.0, 300, 300, 0]), np.array([0.0, 0, 200, 200]))
    assert (shapely.distance(corners, found.exterior) < 1e-9).all()


@pytest.mark.parametrize(("crs", "scale"), [("EPSG:3031", 0.9728), ("EPSG:3413", 0.9698)])  # the scale at the pole
@pytest.mark.parametrize("centre", [(0, 0), (20_000, 40_000), (-99_000, 30_000)])
def test_its_area_is_that_of_its_pixels(crs, scale, centre):
    found = area_m2(outline(crs, affine(centre, 1000, "up"), WINDOW))
    assert found == pytest.approx(200 * 300 * 1e6 / scale**2, rel=5e-3)


def test_a_scene_of_more_than_half_of_the_earth_holds_the_pole_at_its_centre():
    found = shapely.from_wkb(footprint("EPSG:3031", affine((0, 0), 140_000, "up"), WINDOW))
    assert found.is_valid and found.bounds[1] == -90 and 0 < found.bounds[3] < 40


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4258"])
@pytest.mark.parametrize("west", [-180.0, -180.5])
def test_a_grid_that_reaches_half_a_pixel_over_the_poles_ends_at_them(crs, west):
    points = (1.0, 0.0, west, 0.0, -1.0, 90.5)
    whole = Window(0, 0, 181, 360)
    assert shapely.from_wkb(footprint(crs, points, whole)).bounds == (-180, -90, 180, 90)
    assert area_m2(outline(crs, points, whole)) == pytest.approx(510_065_621.7e6, rel=1e-6)  # of WGS 84
    assert outline(crs, points, Window(0, 10, 11, 20))[:, 1].tolist() == [79.5, 79.5, 90, 90, 79.5]


def test_a_grid_a_little_longer_than_the_earth_ends_at_its_edges():
    found = shapely.from_wkb(footprint("OGC:CRS84", (1.0, 0.0, -180.5, 0.0, -1.0, 90.0), Window(0, 0, 180, 361)))
    assert found.bounds == (-180, -90, 180, 90) and found.is_valid


@pytest.mark.parametrize(
    "corners", [[(179, 0), (180, -1), (181, 0), (180, 1)], [(179, 0), (181, -1), (182, 0), (180, 1)]]
)
def test_corners_on_the_antimeridian_are_those_of_both_sides(corners):
    found = rings(np.array([*corners, corners[0]], float))
    assert len(found) == 2
    assert sum(shapely.Polygon(ring).area for ring in found) == pytest.approx(shapely.Polygon(corners).area)


@pytest.mark.parametrize("crs", ["EPSG:3031", "EPSG:3413"])
def test_a_scene_far_from_a_pole_is_its_four_corners(crs):
    placed = affine((2_000_000, 0), 500, "up")
    found = outline(crs, placed, WINDOW)
    assert found.shape == (5, 2)
    corners = degrees(crs, placed, np.array([0.0, 300, 300, 0]), np.array([200.0, 200, 0, 0]))
    assert np.allclose(found[:4] % 360, shapely.get_coordinates(corners) % 360, atol=1e-9)


@pytest.mark.parametrize(("crs", "scale"), [("EPSG:3031", 0.9728), ("EPSG:3413", 0.9698)])
@pytest.mark.parametrize("turn", ["up", "flipped"])
@pytest.mark.parametrize(
    "centre", [(160_000, 0), (150_000, 100_000), (-150_000, 100_000), (150_000, 0), (-20_000, -100_000)]
)
def test_a_scene_beside_a_pole_bends_as_its_edges_do(crs, scale, turn, centre):
    placed = affine(centre, 1000, turn)
    found = shapely.from_wkb(footprint(crs, placed, WINDOW))
    assert found.is_valid
    assert area_m2(outline(crs, placed, WINDOW)) == pytest.approx(200 * 300 * 1e6 / scale**2, rel=5e-3)
    rng = np.random.default_rng(0)
    cols, rows = rng.uniform(3, 297, 500), rng.uniform(3, 197, 500)
    assert found.covers(degrees(crs, placed, cols, rows)).all()
    assert not found.intersects(degrees(crs, placed, np.array([-3.0, 303, 150]), np.array([50.0, 100, 203]))).any()


def test_a_scene_as_wide_as_a_continent_reaches_as_far_north_as_its_edge():
    across, down = np.meshgrid(np.linspace(0, 4600, 200), np.linspace(0, 2900, 100))
    placed = (1000.0, 0.0, -2_300_000.0, 0.0, -1000.0, 3_200_000.0)
    found = shapely.from_wkb(footprint("EPSG:5070", placed, Window(0, 0, 2900, 4600)))
    points = degrees("EPSG:5070", placed, across.ravel(), down.ravel())
    assert found.bounds == pytest.approx(shapely.total_bounds(points), abs=0.01)


def test_a_world_map_whose_edges_are_meridians_is_its_four_corners():
    assert outline("EPSG:3857", (1e6, 0.0, -2e7, 0.0, -1e6, 1.9e7), Window(0, 0, 38, 40)).shape == (5, 2)
