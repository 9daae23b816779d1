"""Class ids at a lower resolution: the most frequent class in each square of pixels, never an average of ids."""

from __future__ import annotations

import numpy as np

from segray.grid import Window
from segray.masks import IGNORE


def majority(mask_HW: np.ndarray, factor: int) -> np.ndarray:
    """(ceil(H / factor), ceil(W / factor)) uint8: the most frequent class of each factor x factor square.

    mask_HW: (H, W) uint8 class ids. Of equally frequent classes, the lowest id; 255 only where the whole square is 255.
    Squares at the bottom and right edges may be incomplete.
    """
    if factor == 1 or not mask_HW.size:
        return mask_HW.copy()
    height, width = (-(-size // factor) for size in mask_HW.shape)
    padded = np.full((height * factor, width * factor), IGNORE, np.uint8)
    padded[: mask_HW.shape[0], : mask_HW.shape[1]] = mask_HW
    result, most = np.full((height, width), IGNORE, np.uint8), np.zeros((height, width), np.uint32)
    for index in np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=256)[:IGNORE]):
        votes = _votes(padded == index, factor)
        ahead = votes > most
        result[ahead], most[ahead] = index, votes[ahead]
    return result


def cells(window: Window, factor: int) -> Window:
    """The squares, in rows and columns of squares, whose first pixel lies in a window of an image.

    If windows partition an image, their squares partition the image's squares; some windows may have none.
    """
    row, col = -(-window.row_off // factor), -(-window.col_off // factor)
    bottom = -(-(window.row_off + window.height) // factor)
    right = -(-(window.col_off + window.width) // factor)
    return Window(row, col, bottom - row, right - col)


def window_majority(mask_HW: np.ndarray, window: Window, factor: int) -> np.ndarray:
    """(h, w) uint8: `majority` of the squares that `cells` gives to a window, from the window's own pixels alone."""
    owned = cells(window, factor)
    row, col = owned.row_off * factor - window.row_off, owned.col_off * factor - window.col_off
    if not owned.pixels:
        return np.zeros((owned.height, owned.width), np.uint8)
    return majority(mask_HW[row:, col:], factor)


def _votes(hit_HW: np.ndarray, factor: int) -> np.ndarray:
    """(h, w) uint32: how many pixels of each factor x factor square are True."""
    rows = np.add.reduceat(hit_HW.view(np.uint8), np.arange(0, hit_HW.shape[0], factor), axis=0, dtype=np.uint32)
    return np.add.reduceat(rows, np.arange(0, hit_HW.shape[1], factor), axis=1)
