"""Weights with which overlapping tiles are blended; along each axis they sum to 1 at every pixel."""

from __future__ import annotations

import numpy as np

from segray.grid import Lattice


def axis_weights(lattice: Lattice, *, first: bool, last: bool) -> np.ndarray:
    """(tile,) float32 weights of one tile along one axis.

    taper: a raised cosine over exactly the overlap, half-pixel centred, hence positive (Hann window; J. W. Tukey's
    tapered cosine). crop: 1 up to the middle of the overlap, 0 beyond. The image's first and last tile keep weight 1 at
    its edges, where they have no partner. The weights of neighbours sum to 1 (taper: up to rounding, crop: exactly).
    """
    overlap = lattice.overlap
    if lattice.blend == "taper":
        ramp = (1 - np.cos(np.pi * (np.arange(overlap) + 0.5) / max(overlap, 1))) / 2
    else:
        ramp = (np.arange(overlap) >= lattice.margins[0]).astype(float)
    weights = np.ones(lattice.tile)
    if not first:
        weights[:overlap] = ramp
    if not last:
        weights[lattice.tile - overlap :] = 1 - ramp
    return weights.astype(np.float32)
