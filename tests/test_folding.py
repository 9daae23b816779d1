"""Folded networks are the same function of an image, without batch norms."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from segray.folding import BATCH_NORM, fold_batch_norms
from segray.networks import NETWORKS, build_network
from segray.programs import load_program

SMP = [("unet", "resnet18"), ("deeplabv3plus", "resnet18"), ("fpn", "resnet18"), ("unet", "efficientnet-b0")]


def awake(network: nn.Module) -> nn.Module:
    """The network with batch norms that change values, as after training."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5), (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(type(module) is nn.BatchNorm2d for module in network.modules())


def agreement(network: nn.Module, folded: nn.Module, size: int = 64) -> float:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = network(x), folded(x)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "smp"])
def test_every_network_is_the_same_function_without_norms(name):
    torch.manual_seed(0)
    network = awake(build_network(name, {}, num_classes=4, in_channels=3))
    folded = fold_batch_norms(network)
    assert norms(folded) == 0
    assert agreement(network, folded) < 1e-5


@pytest.mark.parametrize(("architecture", "encoder"), SMP)
def test_networks_of_the_library_lose_their_norms_too(architecture, encoder):
    pytest.importorskip("segmentation_models_pytorch")
    options = {"architecture": architecture, "encoder": encoder}
    network = awake(build_network("smp", options, num_classes=4, in_channels=3))
    folded = fold_batch_norms(network)
    assert norms(folded) < norms(network)
    assert agreement(network, folded) < 1e-5


def test_the_network_itself_is_not_changed_and_a_folded_one_takes_any_size():
    network = awake(build_network("unet", {"width": 4}, num_classes=3, in_channels=3)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_batch_norms(network)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert agreement(network.eval(), folded, size=37) < 1e-5


class Odd(nn.Module):
    """A convolution whose output is used twice, one that is called twice, and a norm that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.twice, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.alone = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = y + self.norm(y)
        return self.alone(torch.relu(self.second(self.twice(self.twice(z)))))


def test_norms_that_cannot_be_folded_stay():
    network = awake(Odd())
    folded = fold_batch_norms(network)
    assert norms(folded) == 3
    assert agreement(network, folded) < 1e-6


class Branching(nn.Module):
    """Its branch depends on the values that it sees, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x if x.mean() > 0 else -x)


def test_transposed_convolutions_in_groups_keep_their_norm():
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)).eval()
    network[1].running_var.uniform_(0.5, 2)
    x = torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.allclose(fold_batch_norms(network)(x), network(x), atol=1e-6)


def test_what_cannot_be_traced_is_left_as_it_is():
    network = awake(Branching())
    folded = fold_batch_norms(network)
    assert norms(folded) == 1
    assert agreement(network, folded) == 0


def test_programs_are_folded_in_their_graph():
    network = awake(build_network("unet", {"width": 4, "depth": 2}, num_classes=3, in_channels=3))
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 64, 64),)), file)
    program = load_program(file.getvalue(), source="program.pt2")
    folded = fold_batch_norms(program)
    assert sum(node.target is BATCH_NORM for node in program.module.graph.nodes) == norms(network)
    assert not any(node.target is BATCH_NORM for node in folded.module.graph.nodes)
    assert agreement(program, folded) < 1e-5
