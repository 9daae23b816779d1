"""Photometric augmentation: what it draws and does, and that it leaves no-data and the order of values alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segray.photometric import RANGE, distort, draw

SETTLED = {"seed": 3, "epoch": 2}


def prepared(bands: int, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pixels as `prepare` gives them, a fifth of them without data."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand((count, 9, 7), generator=generator) < 0.8
    x = torch.randn((count, bands, 9, 7), generator=generator) * 2
    return x.masked_fill_(~valid[:, None], 0.0), valid


def test_what_is_drawn_depends_on_seed_epoch_and_position_alone() -> None:
    whole = draw(range(8), bands=3, strength=0.5, **SETTLED)
    assert (whole.shape, whole.dtype) == ((8, 8), torch.float32)
    assert torch.equal(draw(range(1, 8, 2), bands=3, strength=0.5, **SETTLED), whole[1::2])
    others = [
        draw([0], bands=3, strength=0.5, seed=3, epoch=3),
        draw([0], bands=3, strength=0.5, seed=4, epoch=2),
        draw([1], bands=3, strength=0.5, **SETTLED),
    ]
    assert not any(torch.equal(other, whole[:1]) for other in others)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_strength_bounds_what_is_drawn(strength: float) -> None:
    saturation, gamma, gain, shift = draw(range(400), bands=2, strength=strength, **SETTLED).split([1, 1, 2, 2], dim=1)
    for values, most in ((saturation.log(), 1), (gamma.log(), 1), (gain.log(), 1.5), (shift, 1.5)):
        assert values.abs().max() <= most * strength + 1e-6
        assert values.abs().max() > 0.8 * most * strength
        assert values.mean().abs() < 0.15 * strength


@settings(deadline=None, max_examples=50)
@given(bands=st.integers(1, 7), seed=st.integers(0, 99), strength=st.floats(0, 1))
def test_no_data_stays_0_and_nothing_else_is_lost(bands: int, seed: int, strength: float) -> None:
    x, valid = prepared(bands, seed=seed)
    before = x.clone()
    changed = distort(x, valid, draw(range(3), bands=bands, strength=strength, seed=seed, epoch=1))
    assert torch.equal(x, before)
    assert (changed.shape, changed.dtype) == (x.shape, torch.float32)
    assert changed.isfinite().all()
    assert not changed[(~valid)[:, None].expand_as(changed)].any()
    if strength == 0:
        assert torch.allclose(changed, x, atol=1e-5)


def test_a_sample_changes_by_its_own_row_alone() -> None:
    x, valid = prepared(3)
    drawn = draw(range(3), bands=3, strength=0.4, **SETTLED)
    together = distort(x, valid, drawn)
    for k in range(3):
        assert torch.equal(distort(x[k : k + 1], valid[k : k + 1], drawn[k : k + 1])[0], together[k])
    assert ((together - x).abs().amax(dim=(1, 2, 3)) > 0.05).all()


def test_values_of_a_band_keep_their_order() -> None:
    """With one band, where saturation does nothing: contrast, brightness and gamma are increasing."""
    x = torch.linspace(-2 * RANGE, 2 * RANGE, 999).view(1, 1, 1, -1)
    for position in range(30):
        drawn = draw([position], bands=1, strength=1.0, **SETTLED)
        changed = distort(x, torch.ones(1, 1, 999, dtype=torch.bool), drawn).flatten()
        assert (changed.diff() >= -1e-5).all()
        assert changed.diff().max() < 1  # without jumps


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ([1, 1, 2, 2, 0, 0], [[2.0, -4.0], [4.0, 2.0]]),  # contrast
        ([1, 1, 1, 1, 0.5, -0.5], [[1.5, -1.5], [1.5, 0.5]]),  # brightness, by band
        ([0, 1, 1, 1, 0, 0], [[1.5, -0.5], [1.5, -0.5]]),  # no colour: the mean of the bands
        (
            [1, 2, 1, 1, 0, 0],
            [[(4 / 6) ** 2 * 6 - 3, (1 / 6) ** 2 * 6 - 3], [(5 / 6) ** 2 * 6 - 3, (4 / 6) ** 2 * 6 - 3]],
        ),
    ],
)
def test_each_change_by_its_definition(drawn: list[float], expected: list[list[float]]) -> None:
    x = torch.tensor([[[[1.0, -2.0]], [[2.0, 1.0]]]])
    changed = distort(x, torch.ones(1, 1, 2, dtype=torch.bool), torch.tensor([drawn], dtype=torch.float32))
    assert np.allclose(changed[0, :, 0], expected, atol=1e-5)
