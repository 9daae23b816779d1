"""Small masks, cut into strips, and the regions that a tracer finds in them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from segray.tracing import Regions, Tracer

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, 255]))


def strips(mask: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    """The mask cut above some of its rows; cuts outside of it do nothing."""
    return np.split(mask, sorted({cut for cut in cuts if 0 < cut < len(mask)}))


def trace(mask: np.ndarray, cuts: list[int] = (), **options: object) -> list[Regions]:
    """What a tracer gives for each strip, and at the end."""
    tracer = Tracer(mask.shape[1], **options)
    return [*(tracer.add(strip) for strip in strips(mask, cuts)), tracer.close()]
