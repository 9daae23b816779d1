"""Evidence: what the deepest features add to one class's logit rather than another's, at their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segray.evidence import evidence
from segray.networks import NETWORKS, build_network


class Averages(nn.Module):
    """The logits of the classes are the means of the bands over squares of 4 pixels, which its stage makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.stage = nn.AvgPool2d(4)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3)[..., None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.stage(self.first(x)).relu_(), scale_factor=4, mode="nearest")


def square(size: int, rows: slice, cols: slice) -> torch.Tensor:
    pixels = torch.zeros(size, size, dtype=torch.bool)
    pixels[rows, cols] = True
    return pixels


def test_evidence_is_what_the_features_add_to_the_difference_of_the_logits():
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pixels = square(16, slice(3, 9), slice(8, 13))
    found = evidence(Averages(), x, pixels, chosen=2, other=0)
    means, counts = F.avg_pool2d(x, 4), F.avg_pool2d(pixels[None, None].float(), 4) * 16
    expected = (means[:, 2:] - means[:, :1]) * counts
    expected = F.interpolate(expected / expected.abs().max(), (16, 16), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-6)
    assert found.dtype == np.float32
    reversed_ = evidence(Averages(), x, pixels, chosen=0, other=2)
    np.testing.assert_allclose(reversed_, -found, atol=1e-6)


def test_without_a_stage_or_without_any_evidence_there_is_none():
    x, pixels = torch.rand(1, 3, 16, 16), square(16, slice(0, 4), slice(0, 4))
    assert evidence(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)).eval(), x, pixels, chosen=0, other=1) is None
    assert evidence(Averages(), torch.zeros(1, 3, 16, 16), pixels, chosen=0, other=1) is None
    assert evidence(Averages(), torch.full((1, 3, 16, 16), torch.nan), pixels, chosen=0, other=1) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_stage_and_is_left_as_it_was(name):
    torch.manual_seed(0)
    options = {"architecture": "fpn", "encoder": "resnet18"} if name == "smp" else {}
    network = build_network(name, options, num_classes=4, in_channels=3).eval()
    x, pixels = torch.rand(1, 3, 96, 70), torch.zeros(96, 70, dtype=torch.bool)
    pixels[20:50, 10:60] = True
    before = network(x)
    found = evidence(network, x, pixels, chosen=1, other=3)
    assert found.shape == (96, 70)
    assert 0 < np.abs(found).max() <= 1
    assert torch.equal(network(x), before)
    assert not any(parameter.grad is not None for parameter in network.parameters())
