"""Boundary IoU against brute force and against repeated erosion, and what ignored pixels and edges do to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray import boundary
from segray.boundary import boundary_counts, boundary_scores, boundary_width

K = 4


def blobs(seed: int, height: int, width: int, void: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of a few blocks of classes each, with single pixels changed; void: share of 255 in truth."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        coarse = rng.integers(K, size=(-(-height // 6), -(-width // 6)), dtype=np.uint8)
        mask = np.kron(coarse, np.ones((6, 6), np.uint8))[:height, :width]
        masks.append(np.where(rng.random(mask.shape) < 0.05, rng.integers(K, size=mask.shape, dtype=np.uint8), mask))
    truth, prediction = masks
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, prediction)
    truth[rng.random(truth.shape) < void] = 255
    return truth, prediction


def region(mask: np.ndarray, known: np.ndarray, index: int, width: int) -> np.ndarray:
    """By definition: pixels of a class with another class, or the outside, in the square around them."""
    found = np.zeros(mask.shape, bool)
    for row, col in zip(*np.nonzero((mask == index) & known)):
        rows, cols = np.meshgrid(*(np.arange(at - width, at + width + 1) for at in (row, col)), indexing="ij")
        inside = (rows >= 0) & (rows < mask.shape[0]) & (cols >= 0) & (cols < mask.shape[1])
        places = rows[inside], cols[inside]
        found[row, col] = not inside.all() or (known[places] & (mask[places] != index)).any()
    return found


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """A binary mask less its boundary as Cheng et al. compute it: eroded by 3 x 3 squares, 0 around the image."""
    padded = np.pad(mask, 1)
    for _ in range(times):
        grown = np.pad(padded, 1, constant_values=True)
        shifts = [grown[r : r + padded.shape[0], c : c + padded.shape[1]] for r in range(3) for c in range(3)]
        padded = np.logical_and.reduce(shifts)
    return padded[1:-1, 1:-1]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 24), st.integers(1, 24)), width=st.integers(1, 9))
def test_counts_are_brute_force(seed: int, size: tuple[int, int], width: int) -> None:
    truth, prediction = blobs(seed, *size, void=0.2)
    prediction[seed % size[0]] = 255
    counts = boundary_counts(truth, prediction, K, width=width)
    assert (counts.shape, counts.dtype) == ((K, 2), np.int64)
    for index in range(K):
        ours, theirs = (region(mask, truth != 255, index, width) for mask in (truth, prediction))
        assert counts[index].tolist() == [(ours & theirs).sum(), (ours | theirs).sum()]


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_it_is_the_boundary_of_the_paper(width: int) -> None:
    truth, prediction = blobs(width, 50, 70)
    for index, (intersection, union) in enumerate(boundary_counts(truth, prediction, K, width=width)):
        ours, theirs = ((mask == index) & ~eroded(mask == index, width) for mask in (truth, prediction))
        assert (intersection, union) == ((ours & theirs).sum(), (ours | theirs).sum())


@pytest.mark.parametrize(
    ("height", "width", "share", "pixels"),
    [(300, 400, 0.02, 10), (1, 1, 0.02, 1), (1024, 2048, 0.02, 46), (300, 400, 0.005, 2), (30, 40, 0.5, 25)],
)
def test_the_width_is_a_share_of_the_diagonal(height: int, width: int, share: float, pixels: int) -> None:
    assert boundary_width(height, width, share) == pixels


def test_what_is_ignored_changes_nothing_and_is_no_contour() -> None:
    truth, prediction = blobs(5, 40, 40)
    truth[10:20, 10:20] = 255
    other = prediction.copy()
    other[10:20, 10:20] = (other[10:20, 10:20] + 1) % K
    counts = boundary_counts(truth, prediction, K, width=3)
    assert np.array_equal(counts, boundary_counts(truth, other, K, width=3))
    alone = np.zeros((40, 40), np.uint8)
    alone[15:25, 15:25] = 255
    frame = 40 * 40 - 34 * 34  # only the image's edge counts as contour
    assert boundary_counts(alone, np.zeros_like(alone), 1, width=3).tolist() == [[frame, frame]]


def test_classes_without_a_boundary_are_none_and_left_out_of_the_mean() -> None:
    counts = np.array([[1, 2], [0, 0], [0, 4]], np.int64)
    assert boundary_scores(counts) == {"boundary_miou": 0.25, "boundary_iou": [0.5, None, 0.0]}
    assert boundary_scores(np.zeros((2, 2), np.int64)) == {"boundary_miou": None, "boundary_iou": [None, None]}


@pytest.mark.parametrize("width", [1, 3, 8, 40])
def test_counts_do_not_depend_on_the_strips_and_memory_is_that_of_one(width: int, monkeypatch) -> None:
    truth, prediction = blobs(width, 61, 33, void=0.1)
    whole = boundary_counts(truth, prediction, K, width=width)
    seen = []
    square = boundary._square
    monkeypatch.setattr(boundary, "_square", lambda values, *rest: seen.append(len(values)) or square(values, *rest))
    monkeypatch.setattr(boundary, "STRIP_PIXELS", 5 * 33)
    assert np.array_equal(boundary_counts(truth, prediction, K, width=width), whole)
    assert max(seen) <= max(4 * width, 5 + 2 * width)
