"""Fields and water: what covers the ground before anything is built or grows on it."""

from __future__ import annotations

import numpy as np

from segray.synthetic.canvas import DENSITY, EVERYWHERE, WATER, Canvas, blur, noise, turned
from segray.synthetic.roads import Road

CROPS = np.float32([
    [190, 172, 120], [168, 150, 108], [122, 140, 84], [134, 152, 90],  # straw, stubble, meadow, young corn
    [74, 98, 54], [184, 174, 92], [136, 108, 84], [80, 78, 70], [150, 146, 108],  # maize, rape, ploughed, wet, fallow
])  # fmt: skip
SHALLOW, DEEP, BANK, VERGE = np.float32([[70, 84, 72], [42, 62, 70], [112, 106, 80], [104, 110, 72]])


def draw_fields(canvas: Canvas) -> np.ndarray:
    """Crop parcels with rows, tramlines and patchy growth; returns the (H, W) bool borders between them."""
    rng, shape = canvas.rng, canvas.mask.shape
    u, v = turned(canvas.rows, canvas.cols, rng.uniform(0, np.pi))
    u, v = ((axis + 9 * noise(rng, shape, 110)).ravel() for axis in (u, v))
    parcel, flat = np.zeros(u.size, np.int32), canvas.image.reshape(-1, 3)
    pending, count = [np.arange(u.size)], 0
    while pending:
        members = pending.pop()
        a, b = u[members], v[members]
        along, across = turned(b, a, rng.normal(0, 0.09) + (np.pi / 2 if np.ptp(b) > np.ptp(a) else 0.0))
        if members.size > rng.uniform(0.6, 1.7) * DENSITY / 13:
            near = along < along.min() + np.ptp(along) * rng.uniform(0.35, 0.65)
            pending += [members[near], members[~near]]
            continue
        count += 1
        parcel[members], flat[members] = count, _crop(rng, across)
    growth = 5 * noise(rng, shape, 40) + 4 * noise(rng, shape, 9) + 5 * noise(rng, shape, 3)
    canvas.image[...] *= 1 + growth[..., None] * np.float32(0.0085)
    edges = _borders(parcel.reshape(shape))
    canvas.cover(EVERYWHERE, np.minimum(blur(edges.astype(np.float32), 2) * 1.6, 0.8), VERGE)
    return edges


def _crop(rng: np.random.Generator, across: np.ndarray) -> np.ndarray:
    """(N, 3) colours of a parcel's pixels from their positions (N,) across its rows."""
    color = CROPS[rng.integers(len(CROPS))] * rng.uniform(0.88, 1.1) + rng.normal(0, 5, 3)
    rows = rng.uniform(1, 9) * np.sin(across * np.float32(2 * np.pi / rng.uniform(4, 10)))
    track = np.abs(across % np.float32(rng.uniform(34, 60)) - 8)
    tramline = rng.uniform(0, 16) * ((track > 2) & (track < 4.5))
    return (color + (rows - tramline)[:, None]).astype(np.float32)


def _borders(parcel: np.ndarray) -> np.ndarray:
    """(H, W) bool, True where the parcel's number changes."""
    edges = np.zeros(parcel.shape, bool)
    edges[1:] |= parcel[1:] != parcel[:-1]
    edges[:, 1:] |= parcel[:, 1:] != parcel[:, :-1]
    return edges


def draw_water(canvas: Canvas) -> None:
    """A winding river, lakes, or both."""
    rng, shape = canvas.rng, canvas.mask.shape
    with_river = rng.random() < 0.6
    level = _river(canvas) if with_river else np.full(shape, -1e3, np.float32)
    for _ in range(rng.poisson(canvas.amount * (0.4 if with_river else 0.8)) + (not with_river)):
        row, col = rng.uniform(0.1, 0.9, 2) * shape
        along, across = turned(canvas.rows - row, canvas.cols - col, rng.uniform(0, np.pi))
        level = np.maximum(level, rng.uniform(45, 85) - np.hypot(along * rng.uniform(0.6, 0.95), across * 1.15))
    level = (level + 5 * noise(rng, shape, 45) + 1.2 * noise(rng, shape, 12)).astype(np.float32)
    canvas.cover(EVERYWHERE, np.clip(1 - np.abs(level + 3) / 5, 0, 1) * 0.8, BANK)
    depth = np.clip(level / 30, 0, 1)[..., None]
    ripples = noise(rng, shape, 3) * 1.6 + noise(rng, shape, 60) * 3
    glint = np.clip(noise(rng, shape, 90) - 1.2, 0, 1) * 22
    color = (SHALLOW + depth * (DEEP - SHALLOW)) * np.float32(rng.uniform(0.8, 1.25)) + (ripples + glint)[..., None]
    canvas.cover(EVERYWHERE, np.clip(level + 0.5, 0, 1), color, label=WATER)


def _river(canvas: Canvas) -> np.ndarray:
    """(H, W) distance, in pixels, to the nearer bank of a river from edge to edge; positive in the water."""
    rng, (height, width) = canvas.rng, canvas.mask.shape
    course = Road(
        row=height * rng.uniform(0.2, 0.8), col=width * rng.uniform(0.2, 0.8), angle=rng.uniform(0, np.pi),
        waves=tuple((rng.uniform(0.05, 0.1) * k, k, rng.uniform(0, 6.28)) for k in rng.uniform(220, 800, 3)),
        half_width=rng.uniform(15, 26),
    )  # fmt: skip
    distance, along = course.distance(canvas.rows, canvas.cols)
    return course.half_width * (1 + 0.25 * np.sin(along / rng.uniform(40, 90))) - distance
