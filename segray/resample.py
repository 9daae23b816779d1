"""Images on a coarser grid: a network that was trained at 2 m a pixel sees an image of 0.5 m as one of 2 m.

A pixel of the coarse grid is the mean of the area that it covers, summed in one fixed order, so that it does not depend
on the window that it was read with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segray.grid import Affine6, Window

TOLERANCE = 1.1  # training images differ by as much, so that a smaller factor would gain nothing
LEAST_COVER = 0.5  # share of a coarse pixel's area that must be valid


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """An image of height x width pixels, and the coarser grid of to_height x to_width that covers the same area."""

    height: int
    width: int
    to_height: int
    to_width: int

    @classmethod
    def of(cls, height: int, width: int, factor: float) -> Scaling | None:
        """The grid whose pixels are `factor` times as long; None where that is hardly or not at all coarser."""
        if factor < TOLERANCE:
            return None
        to_height, to_width = (max(1, round(size / factor)) for size in (height, width))
        return cls(height=height, width=width, to_height=to_height, to_width=to_width)

    def transform(self, affine: Affine6) -> Affine6:
        """The affine of the coarse grid from that of the image: the same origin and directions, longer pixels."""
        a, b, c, d, e, f = affine
        down, across = self.factors
        return (a * across, b * down, c, d * across, e * down, f)

    @property
    def factors(self) -> tuple[float, float]:
        """(down, across): pixels of the image that a coarse pixel spans."""
        return self.height / self.to_height, self.width / self.to_width

    def source(self, window: Window) -> Window:
        """The pixels of the image that a window of the coarse grid is made of."""
        (top, bottom), (left, right) = (
            (math.floor(start * factor), min(size, math.ceil((start + length) * factor)))
            for start, length, factor, size in (
                (window.row_off, window.height, self.factors[0], self.height),
                (window.col_off, window.width, self.factors[1], self.width),
            )
        )
        return Window(top, left, bottom - top, right - left)

    def shrink(self, pixels_CHW: np.ndarray, valid_HW: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """(C, h, w) of the source's type and (h, w) bool of a window of the coarse grid from those of `source(window)`.

        Means are over valid pixels; a coarse pixel is valid where at least half of its area is.
        """
        rows = _Taps(window.row_off, window.height, self.factors[0], self.height)
        cols = _Taps(window.col_off, window.width, self.factors[1], self.width)
        weight = cols.mean(rows.mean(valid_HW.astype(np.float32), axis=0), axis=1)
        # float32 holds 8 and 16 bits exactly; larger integers and float64 need float64, twice the memory
        exact = np.result_type(pixels_CHW.dtype, np.float32)
        shrunk = np.empty((len(pixels_CHW), window.height, window.width), pixels_CHW.dtype)
        for band, out in zip(pixels_CHW, shrunk):
            known = np.where(valid_HW, band, 0).astype(exact)  # no-data may be NaN
            mean = cols.mean(rows.mean(known, axis=0), axis=1) / np.maximum(weight, 1e-6)
            out[:] = mean if band.dtype.kind == "f" else _whole(mean, band.dtype)
        return shrunk, weight >= LEAST_COVER

    def enlarge(self, mask: np.ndarray, window: Window) -> tuple[np.ndarray, Window]:
        """The mask of a window of the coarse grid on the image's own grid, and the window of the image that it covers.

        A pixel has the class of the coarse pixel in which its centre lies; windows that partition the coarse grid
        partition the image.
        """
        (top, rows), (left, cols) = self._centres(window)
        return mask[rows[:, None], cols], Window(top, left, len(rows), len(cols))

    def enlarged(self, window: Window) -> Window:
        """The window of the image that a window of the coarse grid covers (see `enlarge`)."""
        (top, rows), (left, cols) = self._centres(window)
        return Window(top, left, len(rows), len(cols))

    def _centres(self, window: Window) -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]:
        down, across = self.factors
        rows = _centres(window.row_off, window.height, down, self.height)
        return rows, _centres(window.col_off, window.width, across, self.width)


class _Taps:
    """Which pixels of an axis the coarse pixels [start, start + count) cover, and with what share of their length."""

    def __init__(self, start: int, count: int, factor: float, size: int) -> None:
        edges = np.arange(start, start + count + 1) * factor
        self.begin, self.end = edges[:-1], np.minimum(edges[1:], size)
        self.first = np.floor(self.begin).astype(np.int64)
        self.taps = math.ceil(factor) + 1
        self.offset, self.size = int(self.first[0]), size

    def mean(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Means over what each coarse pixel covers, along an axis of the array that begins at its first pixel."""
        shape = [1, 1]
        shape[axis] = -1
        total = 0.0
        for tap in range(self.taps):
            place = self.first + tap
            share = np.minimum(self.end, place + 1) - np.maximum(self.begin, place)
            share = (np.maximum(share, 0) / (self.end - self.begin)).astype(np.float32).reshape(shape)
            index = np.minimum(place - self.offset, values.shape[axis] - 1)
            total = total + share * values.take(index, axis=axis)
        return total


def _centres(start: int, count: int, factor: float, size: int) -> tuple[int, np.ndarray]:
    """Of the pixels centred in a span: (the first one, each one's coarse pixel counted from `start`)."""
    near = np.arange(max(0, math.floor(start * factor) - 1), min(size, math.ceil((start + count) * factor) + 1))
    coarse = np.floor((near + 0.5) / factor).astype(np.int64) - start
    inside = (coarse >= 0) & (coarse < count)
    return int(near[inside][0]), coarse[inside]


def _whole(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(dtype)
