"""Calibration: ECE against torchmetrics, NLL against torch, the fitted temperature against a search, all from parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassCalibrationError

from segray import calibration
from segray.calibration import (
    BINS,
    TEMPERATURES,
    WHOLE,
    best_temperature,
    calibration_scores,
    chosen,
    mean_nll,
    nll_counts,
    reliability,
)

HEIGHT, WIDTH, K = 23, 31, 5
SIZE = (HEIGHT, WIDTH)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth with 255 in it, prediction, and confidences that lie on no bin's bound but may be 1."""
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(K, size=(2, *SIZE), dtype=np.uint8)
    prediction = np.where(rng.random(SIZE) < 0.5, truth, prediction)
    truth[rng.random(SIZE) < 0.2] = 255
    confidences = rng.integers(WHOLE // K + 1, WHOLE, size=SIZE).astype(np.uint16)
    return truth, prediction, np.where(confidences % (WHOLE // BINS) == 0, confidences + 1, confidences)


def made_logits(seed: int, count: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from softmax(logits / scale): that temperature is the right one."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, K)) * 2
    share = np.exp(logits)
    share /= share.sum(axis=1, keepdims=True)
    truth = (share.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1).astype(np.uint8)
    return truth, (logits * scale).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_ece_is_that_of_torchmetrics(seed: int) -> None:
    truth, prediction, confidences = random_case(seed)
    share = confidences.astype(np.float64) / WHOLE  # of the predicted class; the others share the rest equally
    probabilities = np.repeat(((1 - share) / (K - 1))[..., None], K, axis=-1)
    np.put_along_axis(probabilities, prediction[..., None].astype(int), share[..., None], axis=-1)
    oracle = MulticlassCalibrationError(K, n_bins=BINS, norm="l1", ignore_index=255)
    arguments = torch.from_numpy(probabilities.reshape(-1, K)), torch.from_numpy(truth.reshape(-1)).long()
    found = calibration_scores(reliability(truth, prediction, confidences))
    assert found["ece"] == pytest.approx(oracle(*arguments).item(), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_bins_are_brute_force(seed: int) -> None:
    truth, prediction, confidences = random_case(seed)
    confidences[0, :4] = (0, WHOLE, WHOLE // BINS, WHOLE // BINS - 1)
    expected = np.zeros((BINS, 3), np.int64)
    for t, p, steps in zip(truth.flat, prediction.flat, confidences.flat):
        if t != 255:
            expected[min(int(steps) * BINS // WHOLE, BINS - 1)] += (1, t == p, int(steps))
    found = reliability(truth, prediction, confidences)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)
    scores = calibration_scores(found)
    labelled = truth != 255
    assert scores["mean_confidence"] == pytest.approx(confidences[labelled].mean() / WHOLE)
    rows = scores["reliability"]
    assert [row["pixels"] for row in rows] == expected[:, 0].tolist()
    assert [row["low"] for row in rows[1:]] == [row["high"] for row in rows[:-1]]
    for row, (pixels, right, steps) in zip(rows, expected.tolist()):
        assert row["accuracy"] == (right / pixels if pixels else None)
        assert row["confidence"] == (pytest.approx(steps / WHOLE / pixels) if pixels else None)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    case, (truth, logits) = random_case(0), made_logits(0, 500, 1.0)
    whole, nll = reliability(*case), nll_counts(truth, logits, (1.0, 2.0))
    monkeypatch.setattr(calibration, "CHUNK", 100)
    monkeypatch.setattr(calibration, "FEW", 7)
    assert np.array_equal(reliability(*case), whole)
    assert np.array_equal(nll_counts(truth, logits, (1.0, 2.0)), nll)


def test_without_a_labelled_pixel_there_is_no_score() -> None:
    truth = np.full(SIZE, 255, np.uint8)
    found = calibration_scores(reliability(truth, np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint16)))
    assert (found["ece"], found["mean_confidence"]) == (None, None)
    counts = nll_counts(np.full(3, 255, np.uint8), np.zeros((3, K), np.float32), (1.0,))
    assert (counts.tolist(), mean_nll(counts)) == ([0, 0], None)


def test_nll_is_the_cross_entropy_of_torch() -> None:
    truth, logits = made_logits(1, 2000, 3.0)
    truth[::7] = 255
    for temperature in (1.0, 0.25, 4.0):
        counts = nll_counts(truth, logits, (temperature,))
        assert counts[0] == (truth != 255).sum()
        values, classes = torch.from_numpy(logits).double() / temperature, torch.from_numpy(truth).long()
        expected = cross_entropy(values, classes, ignore_index=255).item()
        assert mean_nll(counts) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_hopeless_logits_do_not_overflow(temperature: float) -> None:
    logits = np.array([[1e30, 0, 0], [3e38, -3e38, 0]], np.float32)
    counts = nll_counts(np.array([1, 1], np.uint8), logits, (temperature,))
    assert mean_nll(counts) == calibration.WORST_NLL


@pytest.mark.parametrize(("temperature", "nll"), [(1.0, np.log1p(np.exp(5)) / 2), (0.1, 50 / 2)])
def test_large_logits_do_not_overflow(temperature: float, nll: float) -> None:
    logits = np.array([[900, 0], [900, 895]], np.float32)
    counts = nll_counts(np.array([0, 1], np.uint8), logits, (temperature,))
    assert mean_nll(counts) == pytest.approx(nll, abs=1e-5)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 1.37, 2.5, 6.0])
def test_the_temperature_has_the_least_nll(scale: float) -> None:
    truth, logits = made_logits(3, 20_000, scale)
    found = best_temperature(nll_counts(truth, logits, TEMPERATURES))
    fine = found * np.linspace(0.9, 1.1, 201)
    sums = nll_counts(truth, logits, fine)[1:]
    assert found == pytest.approx(fine[sums.argmin()], rel=0.005)
    assert found == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize(("truth", "edge"), [(0, 0.1), (1, 10.0)])
def test_a_temperature_stays_in_its_range(truth: int, edge: float) -> None:
    logits = np.array([[5.0, 0.0, 0.0]], np.float32)  # always right, or always wrong: the best temperature is a limit
    counts = nll_counts(np.array([truth], np.uint8), logits, TEMPERATURES)
    assert best_temperature(counts) == pytest.approx(edge)


def test_the_temperatures_go_up_and_1_is_among_them() -> None:
    assert np.allclose(np.diff(np.log(TEMPERATURES)), np.log(TEMPERATURES[1] / TEMPERATURES[0]))
    assert 1.0 in TEMPERATURES


@settings(deadline=None, max_examples=20)
@given(row=st.integers(0, 500), col=st.integers(0, 500), size=st.integers(1, 90))
def test_pixels_are_chosen_by_their_place_in_the_image(row: int, col: int, size: int) -> None:
    whole = chosen(range(600), range(600))
    part = chosen(range(row, row + size), range(col, col + size))
    assert np.array_equal(part, whole[row : row + size, col : col + size])


def test_pixels_are_chosen_evenly() -> None:
    hit = chosen(range(1024), range(2048))
    assert hit.mean() == pytest.approx(1 / 16, rel=0.01)
    for stride in (2, 4, 8, 32):  # a pixel's logits depend on its place in the network's strides
        shares = [hit[r::stride, c::stride].mean() for r in range(stride) for c in range(stride)]
        assert max(shares) < 1.5 / 16 and min(shares) > 0.5 / 16
