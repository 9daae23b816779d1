"""The average of the weights by its definition, and the plain network that it lives in."""

from __future__ import annotations

import torch
from torch import nn

from segray.averaging import WeightAverage
from segray.batch_norm import synchronise
from segray.schedules import average_decay


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def change(network: nn.Module, seed: int) -> None:
    """Give new values to all that the average holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def test_it_is_an_exponential_average_of_parameters_and_statistics() -> None:
    network = small()
    average = WeightAverage(network, decay=0.5)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(12):
        change(network, step)
        average.update(step)
        decay = average_decay(step, 0.5)
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
    assert average.network.state_dict().keys() == network.state_dict().keys()
    for name, tensor in average.network.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_without_decay_it_is_the_network_to_the_bit() -> None:
    network = small()
    average = WeightAverage(network, decay=0.0)
    change(network, 1)
    average.update(0)
    assert all(torch.equal(a, b) for a, b in zip(average.network.state_dict().values(), network.state_dict().values()))


def test_it_is_a_plain_network_of_its_own_that_evaluates() -> None:
    network = small()
    average = WeightAverage(network, decay=0.9)
    synchronise(network, gpu=False)
    assert [type(module) for module in average.network] == [nn.Conv2d, nn.BatchNorm2d]
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    before = average.network[0].weight.clone()
    change(network, 2)
    assert torch.equal(average.network[0].weight, before)
