"""The schedule is a pure function of the step; decay spares norms and biases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segray.optimizer import learning_rate, make_optimizer


@given(steps=st.integers(1, 2000), peak=st.floats(1e-6, 1.0))
def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing(steps: int, peak: float) -> None:
    rates = [learning_rate(step, steps=steps, peak=peak) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert all(rate > 0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= max(1, 0.05 * steps + 1)
    if steps > 100:
        assert rates[-1] < 1e-3 * peak


def test_decay_shrinks_weights_only() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = make_optimizer(network, name="adamw", lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        expected = before[name] * (0.95 if name == "0.weight" else 1.0)
        assert torch.allclose(parameter, expected), name


def test_adam_decays_nothing() -> None:
    network = nn.Conv2d(3, 4, 3)
    before = network.weight.detach().clone()
    optimizer = make_optimizer(network, name="adam", lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(network.weight, before)
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.1)
