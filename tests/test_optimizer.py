"""Optimizers by name; weight decay spares norms and biases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from segray.optimizer import make_optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_shrinks_weights_only(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    optimizer = make_optimizer(network, name=name, lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in network.named_parameters():
        expected = before[key] * (0.95 if key == "0.weight" else 1.0)
        assert torch.allclose(parameter, expected), key


def test_adam_decays_nothing() -> None:
    network = nn.Conv2d(3, 4, 3)
    before = network.weight.detach().clone()
    optimizer = make_optimizer(network, name="adam", lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(network.weight, before)
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.1)


def test_momentum_is_that_of_sgd() -> None:
    network = nn.Conv2d(1, 1, 1, bias=False)
    optimizer = make_optimizer(network, name="sgd", lr=1.0, weight_decay=0.0, momentum=0.5)
    before = network.weight.detach().clone()
    for _ in range(2):
        network.weight.grad = torch.ones_like(network.weight)
        optimizer.step()
    assert torch.allclose(network.weight, before - 1.0 - 1.5)
