"""The records on the way from pixels to masks: what reading hands to segmenting, and segmenting to writing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segray.grid import Window

CONFIDENCE_UNIT = 1 / 65535  # confidences are summed as integer multiples of this, so that the order does not matter


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of an image to segment, with the pixels that its tiles are made of.

    height, width: of the whole image. block: the rectangle. windows: its partition, see `grid.split`. extent: what
    `pixels` (C, h, w) of the source's type and `valid` (h, w) bool cover, at least `grid.read_extent` of the block.
    valid: None if every pixel is.
    """

    height: int
    width: int
    block: Window
    windows: tuple[Window, ...]
    extent: Window
    pixels: np.ndarray
    valid: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Logits (n, K) float32, as the network gave them, of a few pixels: rows and cols (n,) int64 of the image."""

    rows: np.ndarray
    cols: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True, kw_only=True)
class WindowMask:
    """The mask of a window and its statistics.

    mask: (H, W) uint8, 255 without data. pixel_counts: (K,) int64 over valid pixels. confidence: mean top-1 probability
    over valid pixels, None without any. seam_disagreement: share of the valid pixels seen by several tiles on which
    their top classes differ, None without any. Only if asked for: confidences, (H, W) uint16 multiples of
    CONFIDENCE_UNIT, 0 without data; sampled, logits of the pixels that calibration uses.
    """

    window: Window
    mask: np.ndarray
    pixel_counts: np.ndarray
    valid_pixels: int
    confidence: float | None
    seam_disagreement: float | None
    confidences: np.ndarray | None = None
    sampled: Sampled | None = None


def whole_image(pixels: np.ndarray, valid: np.ndarray) -> Region:
    """A whole image of (C, H, W) pixels and (H, W) validity as a region of one window."""
    window = Window(0, 0, *valid.shape)
    size = {"height": window.height, "width": window.width}
    whole = {"block": window, "windows": (window,), "extent": window}
    return Region(**size, **whole, pixels=pixels, valid=unless_all(valid))


def unless_all(valid: np.ndarray) -> np.ndarray | None:
    """The validity, None where every pixel is valid."""
    return None if valid.all() else valid
