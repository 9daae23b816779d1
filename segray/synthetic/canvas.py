"""The canvas that scenes are drawn on, its legend, and the noise and blur that make them look natural."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segray.masks import Classes

CLASSES = Classes(
    names=("field", "water", "road", "building", "tree"),
    colors=((226, 214, 160), (74, 144, 217), (120, 120, 128), (214, 92, 72), (52, 128, 62)),
)
FIELD, WATER, ROAD, BUILDING, TREE = range(5)
DENSITY = 512 * 512  # numbers of things are given per this many pixels
EVERYWHERE = (slice(None), slice(None))

Patch = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What is drawn on: image (H, W, 3) float32 of 0..255, mask (H, W) uint8, shade (H, W) float32 of 0..1.

    rows (H, 1) and cols (1, W) are the pixels' coordinates; sun is the unit vector (row, col) along which shadows fall.
    """

    rng: np.random.Generator
    image: np.ndarray
    mask: np.ndarray
    shade: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    sun: tuple[float, float]

    @classmethod
    def blank(cls, seed: int, height: int, width: int) -> Canvas:
        """A black canvas, all field, with the day's sun."""
        rng = np.random.default_rng(seed)
        azimuth = rng.uniform(0.15, 0.85) * np.pi  # shadows fall towards the lower edge
        return cls(
            rng=rng,
            image=np.zeros((height, width, 3), np.float32),
            mask=np.full((height, width), FIELD, np.uint8),
            shade=np.zeros((height, width), np.float32),
            rows=np.arange(height, dtype=np.float32)[:, None],
            cols=np.arange(width, dtype=np.float32)[None, :],
            sun=(float(np.sin(azimuth)), float(np.cos(azimuth))),
        )

    @property
    def amount(self) -> float:
        """The area in units of DENSITY."""
        return self.mask.size / DENSITY

    def cover(self, place: Patch, alpha: np.ndarray, color: np.ndarray, *, label: int | None = None) -> None:
        """Lay `color` over the pixels of `place` with opacity `alpha` (h, w); label those that are half covered."""
        part = self.image[place]
        part += alpha[..., None] * (color - part)
        if label is not None:
            self.mask[place][alpha >= 0.5] = label

    def darken(self, place: Patch, amount: np.ndarray) -> None:
        """Put shadow (h, w) of 0..1 on the pixels of `place`; overlapping shadows do not add up."""
        np.maximum(self.shade[place], amount, out=self.shade[place])

    def around(self, row: float, col: float, *, reach: float) -> tuple[Patch, np.ndarray, np.ndarray]:
        """The pixels within `reach` of a point: (their slices, row distances (h, 1), column distances (1, w))."""
        spans = []
        for centre, length in zip((row, col), self.mask.shape):
            first, last = (min(max(int(v), 0), length) for v in (centre - reach, centre + reach + 2))
            spans.append(slice(first, last))
        place = (spans[0], spans[1])
        return place, self.rows[place[0]] - np.float32(row), self.cols[:, place[1]] - np.float32(col)


def noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> np.ndarray:
    """(H, W) float32 smooth noise of about unit variance whose bumps are `cell` pixels wide (cubic B-spline)."""
    grid = rng.standard_normal([int(n / cell) + 5 for n in shape], dtype=np.float32) * np.float32(2.1)
    for axis, length in enumerate(shape):
        at = np.arange(length) / cell
        first, t = at.astype(int), (at % 1).astype(np.float32)
        taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        weights = [(tap[:, None] if axis == 0 else tap) / np.float32(6) for tap in taps]
        grid = sum(w * grid.take(first + k, axis=axis) for k, w in enumerate(weights))
    return grid


def turned(rows: np.ndarray, cols: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (along, across) in a frame turned by `angle` radians."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cols * cos + rows * sin, rows * cos - cols * sin


def blur(image: np.ndarray, times: int = 1) -> np.ndarray:
    """A binomial (1 2 1) / 4 blur of both axes of (H, W, ...) floats; edges are repeated."""
    for _ in range(times):
        for axis in (0, 1):
            length = image.shape[axis]
            before, after = (np.clip(np.arange(length) + k, 0, length - 1) for k in (-1, 1))
            image = (image.take(before, axis) + 2 * image + image.take(after, axis)) / np.float32(4)
    return image
