"""The confusion matrix against brute force, its additivity, and the ratios against torchmetrics."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from segray import metrics
from segray.grid import windows
from segray.metrics import confusion_matrix, scores


def random_masks(seed: int, num_classes: int, void: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(num_classes, size=(23, 31), dtype=np.uint8)
    noise = rng.integers(num_classes, size=truth.shape, dtype=np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, noise)
    truth[rng.random(truth.shape) < void] = 255
    return truth, prediction


def brute_force(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes + 1), np.int64)
    for t, p in zip(truth.flat, prediction.flat):
        if t != 255:
            matrix[t, min(int(p), num_classes)] += 1
    return matrix


@pytest.mark.parametrize("num_classes", [1, 2, 7, 19, 254, 255])
def test_matrix_is_brute_force(num_classes: int) -> None:
    truth, prediction = random_masks(num_classes, num_classes)
    prediction[::5, ::3] = 255
    matrix = confusion_matrix(truth, prediction, num_classes)
    assert matrix.dtype == np.int64
    assert np.array_equal(matrix, brute_force(truth, prediction, num_classes))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40))
def test_any_cutting_gives_the_same_matrix(seed: int, size: int) -> None:
    truth, prediction = random_masks(seed, 5)
    parts = [confusion_matrix(truth[w.rows, w.cols], prediction[w.rows, w.cols], 5) for w in windows(23, 31, size)]
    assert np.array_equal(sum(parts), confusion_matrix(truth, prediction, 5))


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, prediction = random_masks(0, 5)
    whole = confusion_matrix(truth, prediction, 5)
    monkeypatch.setattr(metrics, "CHUNK", 100)
    assert np.array_equal(confusion_matrix(truth, prediction, 5), whole)


@pytest.mark.parametrize("seed", range(8))
def test_miou_is_that_of_torchmetrics(seed: int) -> None:
    num_classes = 4 + seed
    truth, prediction = random_masks(seed, num_classes - seed % 3)  # the last classes may not occur
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of classes that do not occur
        oracle = MulticlassJaccardIndex(num_classes, ignore_index=255, average="macro")
        expected = oracle(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()).item()
    found = scores(confusion_matrix(truth, prediction, num_classes))
    assert found["miou"] == pytest.approx(expected, abs=1e-6)
    assert found["classes_in_mean"] == num_classes - seed % 3


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_brute_force(seed: int) -> None:
    truth, prediction = random_masks(seed, 6)
    prediction[:4] = 255
    found = scores(confusion_matrix(truth, prediction, 6))
    labelled = truth != 255
    weighted = 0.0
    for c in range(6):
        t, p = truth == c, (prediction == c) & labelled
        hit = (t & p).sum()
        assert found["iou"][c] == pytest.approx(hit / (t | p).sum())
        assert found["precision"][c] == pytest.approx(hit / p.sum())
        assert found["recall"][c] == pytest.approx(hit / t.sum())
        assert found["dice"][c] == pytest.approx(2 * hit / (t.sum() + p.sum()))
        assert found["truth_pixels"][c] == t.sum()
        weighted += t.sum() / labelled.sum() * found["iou"][c]
    assert found["miou"] == pytest.approx(np.mean(found["iou"]))
    assert found["pixel_accuracy"] == pytest.approx((truth == prediction)[labelled].mean())
    assert found["frequency_weighted_iou"] == pytest.approx(weighted)


def test_absent_classes_are_none_and_left_out_of_the_mean() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    prediction = np.array([[0, 2, 1, 1]], np.uint8)
    assert scores(confusion_matrix(truth, prediction, 5)) == {
        "miou": 0.5,  # class 2 is predicted only: its IoU is 0 and counts
        "classes_in_mean": 3,
        "pixel_accuracy": 0.75,
        "frequency_weighted_iou": 0.75,
        "iou": [0.5, 1.0, 0.0, None, None],
        "precision": [1.0, 1.0, 0.0, None, None],
        "recall": [0.5, 1.0, None, None, None],
        "dice": [2 / 3, 1.0, 0.0, None, None],
        "truth_pixels": [2, 2, 0, 0, 0],
    }


def test_a_pixel_predicted_nothing_is_a_miss() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    found = scores(confusion_matrix(truth, np.array([[0, 255, 1, 1]], np.uint8), 2))
    assert (found["iou"], found["pixel_accuracy"], found["recall"]) == ([0.5, 1.0], 0.75, [0.5, 1.0])


def test_all_ignored_gives_none() -> None:
    truth = np.full((3, 4), 255, np.uint8)
    matrix = confusion_matrix(truth, np.zeros((3, 4), np.uint8), 3)
    found = scores(matrix)
    assert not matrix.any()
    assert [found[name] for name in ("miou", "pixel_accuracy", "frequency_weighted_iou")] == [None] * 3
    assert (found["classes_in_mean"], found["iou"]) == (0, [None] * 3)


def test_scores_survive_json() -> None:
    found = scores(confusion_matrix(*random_masks(1, 4), 6))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("truth", "prediction", "num_classes", "word"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 2, "(2, 3)"),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8), 2, "int64"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32), 2, "float32"),
        (np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), 2, "[7]"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 9, np.uint8), 2, "[9]"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 0, "not 0"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 256, "not 256"),
    ],
)
def test_refusals_name_the_value(truth: np.ndarray, prediction: np.ndarray, num_classes: int, word: str) -> None:
    with pytest.raises(ValueError) as error:
        confusion_matrix(truth, prediction, num_classes)
    assert word in str(error.value)
