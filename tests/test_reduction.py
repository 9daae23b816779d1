"""Masks at a lower resolution: the most frequent class, against a count pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.grid import Window, windows
from segray.masks import IGNORE
from segray.reduction import cells, majority, window_majority


def counted(mask: np.ndarray, factor: int) -> np.ndarray:
    """The majority of each square, by a loop over squares."""
    height, width = (-(-size // factor) for size in mask.shape)
    result = np.full((height, width), IGNORE, np.uint8)
    for row in range(height):
        for col in range(width):
            square = mask[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            ids, counts = np.unique(square[square != IGNORE], return_counts=True)
            if len(ids):
                result[row, col] = ids[counts == counts.max()].min()
    return result


@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 9), st.integers(0, 10**6))
def test_the_most_frequent_class_wins(height, width, factor, seed):
    mask = np.random.default_rng(seed).choice(np.array([0, 1, 7, 254, 255], np.uint8), (height, width))
    np.testing.assert_array_equal(majority(mask, factor), counted(mask, factor))


@pytest.mark.parametrize(
    ("square", "expected"),
    [
        ([[1, 0], [0, 1]], 0),  # a tie goes to the lower id
        ([[3, 2], [255, 255]], 2),
        ([[255, 255], [255, 9]], 9),  # no data never outvotes a class
        ([[255, 255], [255, 255]], 255),
        ([[4, 4], [0, 1]], 4),
    ],
)
def test_ties_and_no_data(square, expected):
    assert majority(np.array(square, np.uint8), 2).tolist() == [[expected]]


@pytest.mark.parametrize(("size", "factor"), [(8, 3), (5, 7), (64, 16), (9, 1), (3, 20)])
def test_the_squares_of_windows_partition_those_of_the_image(size, factor):
    height, width = 61, 47
    seen = np.zeros((-(-height // factor), -(-width // factor)), int)
    for window in windows(height, width, size):
        part = cells(window, factor)
        seen[part.rows, part.cols] += 1
        mask = np.zeros((window.height, window.width), np.uint8)
        assert window_majority(mask, window, factor).shape == (part.height, part.width)
    assert (seen == 1).all()


def test_windows_on_the_grid_give_what_the_whole_gives():
    mask = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (61, 47))
    for window in windows(61, 47, 12):
        part = cells(window, 4)
        found = window_majority(mask[window.rows, window.cols], window, 4)
        np.testing.assert_array_equal(found, majority(mask, 4)[part.rows, part.cols])


def test_a_square_that_a_window_only_begins_is_voted_on_by_what_it_has_of_it():
    mask = np.array([[5, 6, 6, 6]], np.uint8)
    assert window_majority(mask[:, :1], Window(0, 0, 1, 1), 4).tolist() == [[5]]
    assert window_majority(mask[:, 1:], Window(0, 1, 1, 3), 4).shape == (1, 0)


def test_factor_1_is_a_copy():
    mask = np.array([[1, 255]], np.uint8)
    copied = majority(mask, 1)
    copied[0, 0] = 9
    assert mask.tolist() == [[1, 255]]
