"""Calibration: how well confidences match accuracy, counted in integers, and the temperature that corrects them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segray.masks import IGNORE
from segray.regions import CONFIDENCE_UNIT

BINS = 15  # as in Guo et al.
WHOLE = round(1 / CONFIDENCE_UNIT)  # confidence 1 in units; a multiple of BINS, so bins begin and end at whole units
CHUNK, FEW = 1 << 20, 1 << 13  # pixels counted at a time, as in `metrics`; FEW with logits
ONE_OF = 16  # the NLL is computed on one pixel in 16: a million are plenty for one number
NLL_UNIT = 2.0**-20  # nats; sums of integers do not depend on their order
WORST_NLL = 1024.0  # nats a pixel, so that the sums of 10^11 pixels fit 64 bits
TEMPERATURES = tuple(float(value) for value in 10 ** np.linspace(-1, 1, 41))  # includes 1


def chosen(rows: range, cols: range) -> np.ndarray:
    """(h, w) bool: the pixels of a rectangle of an image on which the NLL is computed, one in 16.

    They depend only on row and column in the image, and are spread so that no stride of a network is favoured.
    """
    down = np.arange(rows.start, rows.stop, dtype=np.uint32) * np.uint32(0x9E3779B1)
    across = np.arange(cols.start, cols.stop, dtype=np.uint32) * np.uint32(0x85EBCA77)
    return ((down[:, None] ^ across) >> np.uint32(16)) % np.uint32(ONE_OF) == 0


def reliability(truth_HW: np.ndarray, prediction_HW: np.ndarray, confidences_HW: np.ndarray) -> np.ndarray:
    """(15, 3) int64 by bin of confidence: pixels, correct ones, and the sum of confidences in CONFIDENCE_UNIT.

    truth, prediction: (H, W) uint8; pixels whose truth is 255 are left out. confidences: (H, W) uint16 in that unit.
    Bins are equally wide and include their lower bounds, the last one also 1. Counts of parts add up.
    """
    counts = np.zeros(2 * (WHOLE + 1), np.int64)
    truth, prediction, confidences = (array.reshape(-1) for array in (truth_HW, prediction_HW, confidences_HW))
    for start in range(0, truth.size, CHUNK):
        part = slice(start, start + CHUNK)
        labelled = truth[part] != IGNORE
        right = (truth[part] == prediction[part])[labelled]
        codes = confidences[part][labelled] + right * np.uint32(WHOLE + 1)
        counts += np.bincount(codes, minlength=counts.size)
    wrong, right = counts.reshape(2, -1)
    pixels = wrong + right
    columns = (pixels, right, pixels * np.arange(WHOLE + 1))
    return np.stack([np.add.reduceat(column, np.arange(0, WHOLE, WHOLE // BINS)) for column in columns], axis=1)


def calibration_scores(bins: np.ndarray) -> dict[str, object]:
    """mean_confidence, ece and reliability (a row per bin) from the counts of `reliability`; None without pixels.

    ece = sum over bins of pixels / all * |accuracy - mean confidence| (Naeini et al., AAAI 2015; Guo et al., ICML 2017,
    equation 3).
    """
    table = bins.tolist()
    pixels = sum(count for count, _, _ in table)
    gaps = sum(abs(WHOLE * right - confidence) for _, right, confidence in table)
    rows = [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "pixels": count,
            "accuracy": right / count if count else None,
            "confidence": confidence / (WHOLE * count) if count else None,
        }
        for number, (count, right, confidence) in enumerate(table)
    ]
    total = sum(confidence for _, _, confidence in table)
    return {
        "mean_confidence": total / (WHOLE * pixels) if pixels else None,
        "ece": gaps / (WHOLE * pixels) if pixels else None,
        "reliability": rows,
    }


def nll_counts(truth: np.ndarray, logits: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """(1 + T,) int64: labelled pixels, and for each temperature the sum of their negative log-likelihood, in NLL_UNIT.

    truth: (n,) uint8; pixels of 255 are left out. logits: (n, K) float32. NLL = -log softmax(logits / T)[truth] (Guo et
    al., ICML 2017, equation 5 and section 4.2), in nats. Counts of parts add up.
    """
    counts = np.zeros(1 + len(temperatures), np.int64)
    for start in range(0, len(truth), FEW):
        part = slice(start, start + FEW)
        labelled = truth[part] != IGNORE
        values = logits[part][labelled].T.astype(np.float64)
        below = values - values.max(axis=0, initial=-np.inf)  # (K, n), so that sums run from class to class
        of_truth = np.take_along_axis(below, truth[part][labelled][None].astype(np.int64), axis=0)[0]
        counts[0] += len(of_truth)
        for number, temperature in enumerate(temperatures, 1):
            nll = np.log(np.exp(below / temperature).sum(axis=0)) - of_truth / temperature
            counts[number] += np.rint(np.minimum(nll, WORST_NLL) / NLL_UNIT).astype(np.int64).sum()
    return counts


def mean_nll(counts: np.ndarray) -> float | None:
    """Mean NLL in nats a pixel at the first temperature of `nll_counts`; None without pixels."""
    return int(counts[1]) * NLL_UNIT / int(counts[0]) if counts[0] else None


def best_temperature(counts: np.ndarray) -> float:
    """The temperature of least NLL, from counts at TEMPERATURES; 0.1 or 10 if it lies beyond.

    The NLL is convex in 1 / T. Its minimum is that of the parabola in log T through the lowest and its two neighbours.
    """
    sums = counts[1:].tolist()
    least = sums.index(min(sums))
    if not 0 < least < len(sums) - 1:
        return TEMPERATURES[least]
    before, here, after = sums[least - 1 : least + 2]
    shift = (before - after) / (2 * (before - 2 * here + after))
    return TEMPERATURES[least] * (TEMPERATURES[1] / TEMPERATURES[0]) ** shift
