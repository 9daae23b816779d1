"""Photometric augmentation: contrast, brightness, colour and gamma of prepared pixels, on the device that trains.

Everything is in standard deviations of the training data, the unit of the pixels that `prepare` returns: a strength
means the same for bytes, reflectances and decibels, and for any number of bands.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

STREAM = 101  # what the numbers are drawn for; `sampling` uses the small ones
RANGE = 3.0  # deviations from the mean within which gamma bends values; values outside stay as they are
BAND_SHARE = 0.5  # share of the strength by which a band may differ from the others


def draw(positions: Iterable[int], *, bands: int, strength: float, seed: int, epoch: int) -> Tensor:
    """(N, 2 + 2 bands) float32 for crops by their position in the epoch's order, whichever worker has them.

    Saturation, gamma, then the gains of all bands, then their shifts. With u uniform(-strength, strength), drawn anew
    each time: log(saturation) and log(gamma) are u, so that a factor is as likely as its inverse; log(gain) and shift
    are u for all bands + BAND_SHARE * u for each band.
    """
    generators = (np.random.default_rng([seed, epoch, STREAM, position]) for position in positions)
    numbers = np.stack([rng.uniform(-strength, strength, 4 + 2 * bands) for rng in generators])
    of_all, contrast, brightness, gains, shifts = np.split(numbers, np.cumsum([2, 1, 1, bands]), axis=1)
    factors = np.exp(np.concatenate([of_all, contrast + BAND_SHARE * gains], axis=1))
    return torch.from_numpy(np.concatenate([factors, brightness + BAND_SHARE * shifts], axis=1).astype(np.float32))


def distort(x_NCHW: Tensor, valid_NHW: Tensor, drawn: Tensor) -> Tensor:
    """Prepared float32 pixels, each sample changed by its row of `drawn`; pixels without data are 0."""
    bands = x_NCHW.shape[1]
    saturation, gamma, gain, shift = drawn[..., None, None].split([1, 1, bands, bands], dim=1)
    x_NCHW = torch.lerp(x_NCHW.mean(dim=1, keepdim=True), x_NCHW, saturation)
    x_NCHW = _bend(x_NCHW * gain + shift, gamma)
    return x_NCHW.masked_fill_(~valid_NHW[:, None], 0.0)


def _bend(x_NCHW: Tensor, gamma: Tensor) -> Tensor:
    """u^gamma, where u goes from 0 at -RANGE to 1 at RANGE: continuous and increasing; no value is cut off."""
    bent = ((x_NCHW + RANGE) / (2 * RANGE)).clamp(0, 1).pow(gamma) * (2 * RANGE) - RANGE
    return torch.where(x_NCHW.abs() < RANGE, bent, x_NCHW)
