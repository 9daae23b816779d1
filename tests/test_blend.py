"""Weights of overlapping tiles: positive, symmetrical, and 1 in sum at every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.blend import axis_weights
from segray.grid import BLENDS, Lattice

TILES = st.integers(1, 96).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(0, tile // 2)))


@settings(deadline=None, max_examples=60)
@given(lattice=TILES, count=st.integers(1, 5), blend=st.sampled_from(BLENDS))
def test_the_weights_of_all_tiles_of_an_axis_sum_to_one(lattice, count, blend):
    lattice = Lattice(*lattice, blend)
    total = np.zeros(lattice.stride * (count - 1) + lattice.tile)
    for index in range(count):
        weights = axis_weights(lattice, first=index == 0, last=index == count - 1)
        assert (weights.shape, weights.dtype) == ((lattice.tile,), np.float32)
        assert (weights >= 0).all()
        assert blend == "crop" or (weights > 0).all()
        total[index * lattice.stride : index * lattice.stride + lattice.tile] += weights
    assert lattice.count(total.size) == count
    assert np.abs(total - 1).max() <= (0 if blend == "crop" else 1e-6)


@settings(deadline=None, max_examples=60)
@given(lattice=TILES, blend=st.sampled_from(BLENDS))
def test_a_tile_has_no_weight_in_its_margins(lattice, blend):
    lattice = Lattice(*lattice, blend)
    near, far = lattice.margins
    weights = axis_weights(lattice, first=False, last=False)
    assert not weights[:near].any()
    assert not weights[lattice.tile - far :].any()
    assert (weights[near : lattice.tile - far] > 0).all()


@pytest.mark.parametrize("overlap", [0, 1, 2, 7, 16])
def test_taper_is_symmetrical_and_falls_from_the_middle_over_exactly_the_overlap(overlap):
    weights = axis_weights(Lattice(32, overlap), first=False, last=False)
    assert np.allclose(weights, weights[::-1], atol=1e-7)
    assert (np.diff(weights[:16]) >= 0).all()
    assert (weights == 1).sum() == 32 - 2 * overlap


def test_values_of_the_raised_cosine():
    weights = axis_weights(Lattice(8, 4), first=False, last=True)
    expected = np.sin(np.pi * np.array([1, 3, 5, 7]) / 16) ** 2
    assert np.allclose(weights, [*expected, 1, 1, 1, 1], atol=1e-7)


@pytest.mark.parametrize(("overlap", "zeros"), [(0, 0), (1, 0), (4, 2), (5, 2)])
def test_crop_gives_each_pixel_to_one_tile(overlap, zeros):
    left = axis_weights(Lattice(16, overlap, "crop"), first=True, last=False)
    right = axis_weights(Lattice(16, overlap, "crop"), first=False, last=True)
    assert set(left) | set(right) <= {0, 1}
    assert (right == 0).sum() == zeros
    assert (left == 0).sum() == overlap - zeros
