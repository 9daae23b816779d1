"""Synthetic scenes: the same seed gives the same scene, every class occurs, image and mask match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segray.synthetic
from segray.synthetic import CLASSES, scene

SEEDS = range(6)
ALLOWED = {"__future__", "dataclasses", "math", "numpy", "segray"}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene(seed, 512, 512) for seed in SEEDS]


def shares(mask: np.ndarray) -> np.ndarray:
    return np.bincount(mask.ravel(), minlength=len(CLASSES)) / mask.size


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90))
def test_any_size_has_the_promised_shape_and_type(seed: int, height: int, width: int) -> None:
    image, mask = scene(seed, height, width)
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((height, width), np.uint8)
    assert mask.max() < len(CLASSES)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_size_below_one_pixel_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 x 1"):
        scene(0, *size)


def test_the_seed_decides_everything() -> None:
    first, again, other = scene(7, 130, 90), scene(7, 130, 90), scene(8, 130, 90)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


def test_every_class_has_a_useful_share(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    each = np.array([shares(mask) for _, mask in scenes])
    assert (each.min(axis=0) > 0.01).all(), each
    assert each.mean(axis=0).max() < 0.75, each


def test_the_mask_lies_on_the_image(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The image changes more across the mask's borders than across the same borders 12 pixels away."""
    for image, mask in scenes:
        grey = image.astype(float).mean(axis=-1)
        step = np.abs(np.diff(grey, axis=1))
        border = mask[:, 1:] != mask[:, :-1]
        there = step[border].mean()
        for shift in (-12, 12):
            assert there > 1.5 * step[np.roll(border, shift, axis=1)].mean()


def test_colour_alone_does_not_tell_the_classes(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """A lookup table of 4096 colours, fitted to some scenes, stays far below a network on others."""
    (colors, truth), (new_colors, new_truth) = colors_and_truth(scenes[:4]), colors_and_truth(scenes[4:])
    votes = np.bincount(colors * len(CLASSES) + truth, minlength=4096 * len(CLASSES)).reshape(4096, -1)
    guess = votes.argmax(axis=1)[new_colors]
    matrix = np.bincount(new_truth * len(CLASSES) + guess, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)
    iou = np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix))
    assert iou.mean() < 0.75, iou


def colors_and_truth(scenes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    codes = [(image >> 4).reshape(-1, 3) @ np.array([256, 16, 1]) for image, _ in scenes]
    return np.concatenate(codes), np.concatenate([mask.ravel().astype(int) for _, mask in scenes])


def test_it_needs_numpy_and_the_standard_library_alone() -> None:
    for file in Path(segray.synthetic.__file__).parent.glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert {line.split()[1].split(".")[0] for line in lines} <= ALLOWED
