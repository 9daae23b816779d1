"""Rings of regions: equal to GDAL's polygons, valid, closed, in a known direction."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import shapes
from traced import MASKS, trace

from segray.rings import Rings, rings_of
from segray.tracing import Tracer


def rings(mask: np.ndarray, cuts: list[int] = (), **options: object) -> list[Rings]:
    """The rings of all regions, batch by batch."""
    return [rings_of(batch) for batch in trace(mask, cuts, **options)]


def polygons(batches: list[Rings]) -> np.ndarray:
    """Shapely polygons in pixel coordinates."""
    parts = [(batch.points.astype(float), (batch.rings, batch.polygons)) for batch in batches]
    return np.concatenate([shapely.from_ragged_array(shapely.GeometryType.POLYGON, *part) for part in parts])


@settings(max_examples=500, deadline=None)
@given(mask=MASKS, cuts=st.lists(st.integers(1, 11)))
def test_polygons_are_those_of_gdal(mask: np.ndarray, cuts: list[int]) -> None:
    found = polygons(rings(mask, cuts))
    expected = [shapely.geometry.shape(geometry) for geometry, _ in shapes(mask, mask=mask != 255, connectivity=4)]
    assert sorted(shapely.to_wkt(shapely.normalize(found))) == sorted(shapely.to_wkt(shapely.normalize(expected)))
    assert shapely.is_valid(found).all()
    assert shapely.area(found).tolist() == np.concatenate([b.pixels for b in trace(mask, cuts)]).tolist()


@settings(max_examples=300, deadline=None)
@given(mask=MASKS, cuts=st.lists(st.integers(1, 11)))
def test_with_nodes_neighbours_have_the_same_vertices_and_the_same_shapes(mask: np.ndarray, cuts: list[int]) -> None:
    batches = rings(mask, cuts, nodes=True)
    found, plain = polygons(batches), polygons(rings(mask, cuts))
    assert shapely.is_valid(found).all()
    assert shapely.equals(found, plain).all()
    assert not len(found) or shapely.coverage_is_valid(found)
    for points in (batch.points[slice(*ends)] for batch in batches for ends in pairwise(batch.rings)):
        assert (points[1:] != points[:-1]).any(axis=1).all()  # none is there twice


@settings(max_examples=200, deadline=None)
@given(mask=MASKS)
def test_exteriors_come_first_and_run_counterclockwise(mask: np.ndarray) -> None:
    for polygon in polygons(rings(mask)):
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)


@pytest.mark.parametrize(
    ("rows", "holes"),
    [
        (["000", "010", "000"], 1),
        (["0000", "0110", "0100", "0000"], 1),
        (["0000", "0010", "0100", "0000"], 2),  # two holes that touch at a point
        (["0000", "0010", "0001", "0000"], 1),  # a hole that touches the exterior at a point
        (["00001", "01110", "01010", "01110", "00000"], 1),
    ],
)
def test_holes_are_interior_rings(rows: list[str], holes: int) -> None:
    mask = np.array([list(row) for row in rows], np.uint8)
    largest = max(polygons(rings(mask)), key=lambda polygon: shapely.area(shapely.Polygon(polygon.exterior)))
    assert len(largest.interiors) == holes
    assert largest.is_valid


def test_only_corners_are_vertices() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    inner, outer = (batch for batch in rings(mask))
    assert inner.points.tolist() == [[20, 10], [50, 10], [50, 30], [20, 30], [20, 10]]
    assert outer.points.tolist() == [
        [0, 0], [60, 0], [60, 40], [0, 40], [0, 0], [50, 10], [20, 10], [20, 30], [50, 30], [50, 10],
    ]  # fmt: skip
    assert (outer.rings.tolist(), outer.polygons.tolist()) == ([0, 5, 10], [0, 2])


def test_corners_far_to_the_right_and_below_keep_their_place() -> None:
    tracer = Tracer(100_000)
    tracer.skip(200_000)
    rows = np.full((2, 100_000), 255, np.uint8)
    rows[:, 70_000:90_000] = 1
    tracer.add(rows)
    assert rings_of(tracer.close()).points.tolist() == [
        [70_000, 200_000], [90_000, 200_000], [90_000, 200_002], [70_000, 200_002], [70_000, 200_000],
    ]  # fmt: skip


def test_a_part_is_the_polygons_asked_for() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (20, 20), dtype=np.uint8)
    batch = rings(mask)[0]
    count = len(batch.polygons) - 1
    both = [*polygons([batch.part(0, 3)]), *polygons([batch.part(3, count)])]
    assert shapely.equals_exact(both, polygons([batch])).all()
