"""Weights with which overlapping tiles are blended; along each axis they sum to 1 at every pixel."""

from __future__ import annotations

import numpy as np

BLENDS = ("taper", "crop")


def axis_weights(tile: int, overlap: int, *, first: bool, last: bool, blend: str) -> np.ndarray:
    """(tile,) float32 weights of one tile along one axis.

    taper: a raised cosine over exactly the overlap, half-pixel centred, hence positive (Hann window; J. W. Tukey's
    tapered cosine). crop: 1 up to the middle of the overlap, 0 beyond. The image's first and last tile keep weight 1 at
    its edges, where they have no partner. Two neighbours' weights sum to 1 (taper: to rounding, crop: exactly).
    """
    position = (np.arange(overlap) + 0.5) / max(overlap, 1)
    ramps = {"taper": (1 - np.cos(np.pi * position)) / 2, "crop": (np.arange(overlap) >= overlap // 2).astype(float)}
    if blend not in ramps:
        raise ValueError(f"blend is {' or '.join(BLENDS)}, not {blend!r}")
    weights = np.ones(tile)
    if not first:
        weights[:overlap] = ramps[blend]
    if not last:
        weights[tile - overlap :] = 1 - ramps[blend]
    return weights.astype(np.float32)
