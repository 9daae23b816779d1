"""Coarser grids: means of areas, whatever the window; masks back on the image's grid, every pixel once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.grid import Window, split, windows
from segray.resample import Scaling

RNG = np.random.default_rng(0)
SIZES = st.integers(1, 60)
FACTORS = st.floats(1.1, 7.0)


def whole(scaling: Scaling) -> Window:
    return Window(0, 0, scaling.to_height, scaling.to_width)


def test_whole_factors_give_means_of_squares() -> None:
    pixels = RNG.integers(0, 256, (2, 12, 20)).astype(np.uint8)
    scaling = Scaling.of(12, 20, 4.0)
    shrunk, valid = scaling.shrink(pixels, np.ones((12, 20), bool), whole(scaling))
    expected = pixels.reshape(2, 3, 4, 5, 4).mean((2, 4))
    assert valid.all()
    assert np.abs(shrunk - expected).max() <= 0.5 + 1e-3


def test_what_is_not_valid_does_not_count() -> None:
    pixels = np.full((1, 4, 4), 10, np.float32)
    valid = np.ones((4, 4), bool)
    pixels[0, 0, :3], valid[0, :3] = np.nan, False
    pixels[0, 1, :1], valid[1, :1] = 1e30, False
    scaling = Scaling.of(4, 4, 2.0)
    shrunk, found = scaling.shrink(pixels, valid, whole(scaling))
    assert found.tolist() == [[False, True], [True, True]]
    assert shrunk[0][found] == pytest.approx(10)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, FACTORS, st.integers(1, 30))
def test_a_pixel_does_not_depend_on_its_window(height: int, width: int, factor: float, side: int) -> None:
    pixels = RNG.integers(0, 60000, (1, height, width)).astype(np.uint16)
    valid = RNG.random((height, width)) > 0.2
    scaling = Scaling.of(height, width, factor)
    expected = scaling.shrink(pixels, valid, whole(scaling))
    for window in split(whole(scaling), side):
        rows, cols = scaling.source(window).rows, scaling.source(window).cols
        found = scaling.shrink(pixels[:, rows, cols], valid[rows, cols], window)
        np.testing.assert_array_equal(found[0], expected[0][:, window.rows, window.cols])
        np.testing.assert_array_equal(found[1], expected[1][window.rows, window.cols])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, FACTORS, st.integers(1, 30))
def test_enlarged_windows_partition_the_image(height: int, width: int, factor: float, side: int) -> None:
    scaling = Scaling.of(height, width, factor)
    mask = RNG.integers(0, 200, (scaling.to_height, scaling.to_width)).astype(np.uint8)
    times, found = np.zeros((height, width), int), np.zeros((height, width), np.uint8)
    for window in windows(scaling.to_height, scaling.to_width, side):
        part, place = scaling.enlarge(mask[window.rows, window.cols], window)
        assert part.shape == (place.height, place.width)
        times[place.rows, place.cols] += 1
        found[place.rows, place.cols] = part
    assert (times == 1).all()
    down, across = scaling.factors
    rows = np.floor((np.arange(height) + 0.5) / down).astype(int)
    cols = np.floor((np.arange(width) + 0.5) / across).astype(int)
    np.testing.assert_array_equal(found, mask[rows[:, None], cols])


@pytest.mark.parametrize("factor", [0.2, 1.0, 1.09])
def test_a_grid_as_fine_stays(factor: float) -> None:
    assert Scaling.of(100, 100, factor) is None
