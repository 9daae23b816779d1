"""Boundary IoU: the IoU near the contours of classes only, so that large areas cannot hide errors there."""

from __future__ import annotations

import math

import numpy as np

from segray.masks import IGNORE

STRIP_PIXELS = 2**22  # of an image examined at a time, which takes some 10 bytes a pixel
SHARE = 0.02  # width of the boundary regions as a share of the image's diagonal, as in Cheng et al.


def boundary_width(height: int, width: int, share: float = SHARE) -> int:
    """Width in pixels, at least 1, of the boundary regions of an image of that size."""
    return max(1, round(share * math.hypot(height, width)))


def boundary_counts(truth_HW: np.ndarray, prediction_HW: np.ndarray, num_classes: int, *, width: int) -> np.ndarray:
    """(K, 2) int64 pixels of intersection and union of the boundary regions of each class, of one whole image.

    Both masks are (H, W) uint8 class ids or 255. The region of a class is the part of it within `width` pixels of its
    contour, counted along rows, columns and diagonals alike; the image's edge is a contour (Cheng et al., CVPR 2021,
    section 4.1, and mask_to_boundary of their code). Pixels whose truth is 255 count nowhere and form no contour.
    Counts of images add up; those of parts of an image do not, since a part's edge is no contour of the whole.
    Memory is that of some rows, not of the image.
    """
    counts = np.zeros((num_classes, 2), np.int64)
    height, columns = truth_HW.shape
    step = max(2 * width, STRIP_PIXELS // columns)  # so, with its margins, a strip is at most twice as high
    for top in range(0, height, step):
        counts += _strip_counts(truth_HW, prediction_HW, num_classes, rows=slice(top, top + step), width=width)
    return counts


def _strip_counts(
    truth_HW: np.ndarray, prediction_HW: np.ndarray, num_classes: int, *, rows: slice, width: int
) -> np.ndarray:
    """What some rows of an image add to its `boundary_counts`."""
    truth, prediction = truth_HW[rows], prediction_HW[rows]
    labelled = truth != IGNORE
    truth_region = labelled & near_contour(truth_HW, truth_HW, rows=rows, width=width)
    predicted_region = labelled & near_contour(prediction_HW, truth_HW, rows=rows, width=width)
    both = truth_region & predicted_region & (truth == prediction)
    intersection, of_truth, predicted = (
        np.bincount(mask[region], minlength=IGNORE + 1)[:num_classes]
        for mask, region in ((truth, both), (truth, truth_region), (prediction, predicted_region))
    )
    return np.stack([intersection, of_truth + predicted - intersection], axis=1)


def near_contour(mask_HW: np.ndarray, truth_HW: np.ndarray, *, rows: slice, width: int) -> np.ndarray:
    """(h, W) bool, for some rows: whether another class, or the image's edge, is within `width` pixels.

    Pixels whose truth is 255 are of no class. All classes at once: a pixel is inside only if the least and the largest
    id in the square around it are its own.
    """
    height, columns = mask_HW.shape
    first = max(0, rows.start - width)
    around = slice(first, rows.stop + width)
    own = slice(rows.start - first, rows.stop - first)
    known, mask = truth_HW[around] != IGNORE, mask_HW[around]
    least = _square(np.where(known, mask, np.uint8(255)), width, np.minimum, 255)[own]
    most = _square(np.where(known, mask, np.uint8(0)), width, np.maximum, 0)[own]
    near = (least < mask[own]) | (most > mask[own])
    near[: max(0, width - rows.start)], near[max(0, height - width - rows.start) :] = True, True
    near[:, :width], near[:, max(0, columns - width) :] = True, True
    return near


def boundary_scores(counts: np.ndarray) -> dict[str, object]:
    """boundary_iou by class, None for a class without a boundary, and boundary_miou, the mean of the others."""
    iou = [intersection / union if union else None for intersection, union in counts.tolist()]
    present = [value for value in iou if value is not None]
    return {"boundary_miou": math.fsum(present) / len(present) if present else None, "boundary_iou": iou}


def _square(values_HW: np.ndarray, width: int, extreme: np.ufunc, neutral: int) -> np.ndarray:
    """The extreme of the (2 width + 1)-sided square around each pixel, cut at the array's edges."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (width, width)
        padded = np.moveaxis(np.pad(values_HW, pad, constant_values=neutral), axis, 0)
        length, reach = values_HW.shape[axis], 1  # padded[i] is the extreme of `reach` values
        while reach < 2 * width + 1:
            step = min(reach, 2 * width + 1 - reach)
            padded = extreme(padded[: len(padded) - step], padded[step:])
            reach += step
        values_HW = np.moveaxis(padded[:length], 0, axis)
    return values_HW
