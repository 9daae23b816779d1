"""Regions of masks, strip by strip: like GDAL's, however the mask is cut, in an order that no cut changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import shapes
from traced import MASKS, trace

from segray.tracing import Regions, Tracer, components


def areas(batches: list[Regions]) -> list[tuple[int, int]]:
    """(class, pixels) of all regions, in order."""
    return [pair for batch in batches for pair in zip(batch.class_ids.tolist(), batch.pixels.tolist())]


def corners(batches: list[Regions]) -> list[list[int]]:
    """The sorted corners of all regions, in order."""
    return [sorted(batch.corners[batch.owners == k].tolist()) for batch in batches for k in range(len(batch))]


def measure(rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A measure that differs for every pixel: the sum of 100 * row + column."""
    return 100.0 * rows * lengths + (2 * columns + lengths - 1) * lengths / 2


@settings(max_examples=100, deadline=None)
@given(masks=st.tuples(MASKS, MASKS), height=st.integers(1, 9), nodes=st.booleans())
def test_rows_without_a_class_may_be_skipped(masks: tuple[np.ndarray, np.ndarray], height: int, nodes: bool) -> None:
    width = min(mask.shape[1] for mask in masks)
    upper, lower = (np.ascontiguousarray(mask[:, :width]) for mask in masks)
    added, skipped = (Tracer(width, measure=measure, nodes=nodes) for _ in range(2))
    blank = np.full((height, width), 255, np.uint8)
    expected = [added.add(upper), added.add(blank), added.add(lower), added.close()]
    found = [skipped.add(upper), skipped.skip(height), skipped.add(lower), skipped.close()]
    assert areas(found) == areas(expected)
    assert corners(found) == corners(expected)
    for one, other in zip(found, expected):
        assert one.measures.tolist() == other.measures.tolist()


@settings(max_examples=300, deadline=None)
@given(mask=MASKS, cuts=st.lists(st.integers(1, 11)))
def test_regions_are_those_of_gdal(mask: np.ndarray, cuts: list[int]) -> None:
    expected = [int(value) for _, value in shapes(mask, mask=mask != 255, connectivity=4)]
    found = areas(trace(mask, cuts))
    assert sorted(class_id for class_id, _ in found) == sorted(expected)
    for class_id in range(3):
        assert sum(pixels for value, pixels in found if value == class_id) == (mask == class_id).sum()


@settings(max_examples=300, deadline=None)
@given(mask=MASKS, cuts=st.lists(st.integers(1, 11)), nodes=st.booleans())
def test_cuts_change_nothing(mask: np.ndarray, cuts: list[int], nodes: bool) -> None:
    whole, parts = trace(mask, nodes=nodes, measure=measure), trace(mask, cuts, nodes=nodes, measure=measure)
    assert areas(whole) == areas(parts)
    assert corners(whole) == corners(parts)
    sums = [np.concatenate([batch.measures for batch in batches]) for batches in (whole, parts)]
    np.testing.assert_array_equal(*sums)
    rows, columns = np.nonzero(mask != 255)
    assert sums[0].sum() == (100 * rows + columns).sum()


def test_regions_come_by_their_last_row_then_their_first_pixel() -> None:
    mask = np.array([[0, 1, 2, 2], [0, 255, 1, 2], [0, 1, 1, 2], [0, 0, 255, 2]], np.uint8)
    assert areas(trace(mask)) == [(1, 1), (1, 3), (0, 5), (2, 5)]


def test_a_region_is_given_as_soon_as_no_row_can_belong_to_it() -> None:
    mask = np.array([[0, 1], [0, 0], [2, 0], [1, 1]], np.uint8)
    assert [areas([batch]) for batch in trace(mask, [1, 2, 3])] == [[], [(1, 1)], [], [(0, 4), (2, 1)], [(1, 2)]]


def test_arms_that_meet_below_are_one_region() -> None:
    comb = np.full((9, 31), 255, np.uint8)
    comb[:, ::2], comb[-1] = 1, 1
    found = areas(trace(comb, list(range(1, 9))))
    assert found == [(1, int((comb == 1).sum()))]


def test_only_corners_are_held() -> None:
    tracer = Tracer(500)
    for _ in range(50):
        assert not len(tracer.add(np.zeros((100, 500), np.uint8)))
    closed = tracer.close()
    assert closed.pixels.tolist() == [50 * 100 * 500]
    assert len(closed.corners) == 4


def test_selected_regions_keep_their_corners() -> None:
    mask = np.array([[0, 1, 2], [0, 0, 2]], np.uint8)
    everything = trace(mask)[-1]
    keep = everything.class_ids != 0
    assert corners([everything.select(keep)]) == [c for c, k in zip(corners([everything]), keep) if k]
    assert areas([everything.select(keep)]) == [pair for pair, k in zip(areas([everything]), keep) if k]


@pytest.mark.parametrize(("nodes", "expected"), [(False, [4, 4, 4]), (True, [6, 4, 4])])
def test_nodes_are_given_to_the_region_that_does_not_turn_there(nodes: bool, expected: list[int]) -> None:
    mask = np.array([[0, 0], [1, 2]], np.uint8)
    assert [len(found) for found in corners(trace(mask, nodes=nodes))] == expected


@settings(max_examples=200, deadline=None)
@given(edges=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_components_are_the_smallest_connected_nodes(edges: list[tuple[int, int]]) -> None:
    expected = list(range(20))
    for _ in range(20):  # by repetition, until nothing can change any more
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    a, b = np.array(edges, np.int64).reshape(-1, 2).T
    assert components(20, a, b).tolist() == expected
