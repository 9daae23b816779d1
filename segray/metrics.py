"""The confusion matrix, and every ratio derived from it: integer counts are summed first, ratios taken last."""

from __future__ import annotations

import math

import numpy as np

from segray.masks import IGNORE

CHUNK = 1 << 20  # pixels counted at a time: bincount needs 8 bytes a pixel, so a scene is never counted in one go


def confusion_matrix(truth_HW: np.ndarray, prediction_HW: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K + 1) int64 counts of pixels: rows are the true class, columns the predicted one, the last "nothing" (255).

    Both masks are (H, W) uint8 class ids or 255. Pixels whose truth is 255 are left out. Matrices of parts of an image,
    of images and of workers add up to that of the whole. ValueError if shapes differ, or on another type or id.
    """
    if truth_HW.shape != prediction_HW.shape:
        raise ValueError(f"truth is {truth_HW.shape}, but the prediction is {prediction_HW.shape}")
    if truth_HW.dtype != np.uint8 or prediction_HW.dtype != np.uint8:
        raise ValueError(f"masks must be uint8, but are {truth_HW.dtype} and {prediction_HW.dtype}")
    if not 1 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes must be 1 to {IGNORE}, not {num_classes}")
    counts = _count_pairs(truth_HW.reshape(-1), prediction_HW.reshape(-1))
    matrix = counts[:num_classes, [*range(num_classes), IGNORE]]
    if matrix.sum() != counts[:IGNORE].sum():
        rows, columns = np.nonzero(counts[:IGNORE])
        wrong = sorted({int(i) for i in (*rows, *columns) if num_classes <= i < IGNORE})
        raise ValueError(f"masks hold the ids {wrong}, which are no classes (0 to {num_classes - 1}) and not {IGNORE}")
    return matrix


def _count_pairs(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    counts = np.zeros(256 * 256, np.int64)
    for start in range(0, truth.size, CHUNK):
        part = slice(start, start + CHUNK)
        pairs = truth[part].astype(np.uint16) << np.uint16(8) | prediction[part]
        counts += np.bincount(pairs, minlength=counts.size)
    return counts.reshape(256, 256)


def scores(matrix: np.ndarray) -> dict[str, object]:
    """Every ratio of a (K, K + 1) confusion matrix as plain Python values: numbers, None, and lists by class.

    A ratio whose denominator is 0 is None; a pixel predicted as nothing (255) is a miss of its class.
    iou = TP / (TP + FP + FN) (Everingham et al., IJCV 2015, section 3.4); miou is its mean over the classes that are
    present in truth or prediction, as many as classes_in_mean. pixel_accuracy = sum of TP / pixels and
    frequency_weighted_iou = sum of truth_c * iou_c / pixels (Long et al., CVPR 2015, section 5).
    precision = TP / (TP + FP), recall = TP / (TP + FN), dice = 2 TP / (2 TP + FP + FN) (Dice, Ecology 1945).
    """
    hits = np.diagonal(matrix).tolist()
    truth = matrix.sum(axis=1).tolist()
    predicted = matrix.sum(axis=0)[: len(hits)].tolist()
    iou = [_ratio(hit, t + p - hit) for hit, t, p in zip(hits, truth, predicted)]
    present = [value for value in iou if value is not None]
    weighted = math.fsum(t * value for t, value in zip(truth, iou) if value is not None)
    return {
        "miou": _ratio(math.fsum(present), len(present)),
        "classes_in_mean": len(present),
        "pixel_accuracy": _ratio(sum(hits), sum(truth)),
        "frequency_weighted_iou": _ratio(weighted, sum(truth)),
        "iou": iou,
        "precision": [_ratio(hit, p) for hit, p in zip(hits, predicted)],
        "recall": [_ratio(hit, t) for hit, t in zip(hits, truth)],
        "dice": [_ratio(2 * hit, t + p) for hit, t, p in zip(hits, truth, predicted)],
        "truth_pixels": truth,
    }


def _ratio(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
