"""Fused networks: which ReLUs are applied by the convolution before them, and that the function stays the same."""

from __future__ import annotations

import pytest
import torch
from test_folding import awake
from torch import Tensor, nn
from torch.nn import functional as F

from segray.folding import fold_batch_norms
from segray.fusing import ConvReLU, fuse_relus
from segray.inference import default_precision
from segray.networks import NETWORKS, build_network


def fused_in(network: nn.Module) -> int:
    return sum(type(module) is ConvReLU for module in network.modules())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "smp"])
def test_every_network_stays_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    folded = fold_batch_norms(awake(build_network(name, {}, num_classes=4, in_channels=3)))
    fused = fuse_relus(folded)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found, expected = fused(x), folded(x)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()  # in fp32 the kernels may differ
    assert fused_in(folded) == 0
    if name == "unet":
        assert fused_in(fused) == 18


class Odd(nn.Module):
    """ReLUs behind convolutions of which only the last can be fused: `shared` is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.shared = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.seen_twice, self.lone = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, stride=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.same, self.circular, self.grouped, self.shared, self.shared):
            x = torch.relu(layer(x))
        before = self.norm(self.seen_twice(x))
        return F.relu(self.lone(before + before.relu()))


def test_only_lone_plain_convolutions_are_fused() -> None:
    folded = fold_batch_norms(awake(Odd()))
    fused = fuse_relus(folded)
    assert fused_in(fused) == 1
    x = torch.randn(2, 4, 16, 16)
    assert torch.allclose(fused(x), folded(x), atol=1e-6)


def test_a_network_that_was_not_traced_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert fuse_relus(network) is network


def refuse(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def conv_relu(*_: object) -> None:
        raise error

    monkeypatch.setattr("segray.fusing.conv_relu", conv_relu)


@pytest.mark.parametrize("error", [RuntimeError("no engine"), AttributeError("no oneDNN")])
def test_what_is_refused_at_first_is_done_in_two_steps(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 8, 8)
    fused = ConvReLU(convolution)
    refuse(torch.OutOfMemoryError("full"), monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        fused(x)
    refuse(error, monkeypatch)
    assert torch.equal(fused(x), convolution(x).relu())
    assert fused.at_once is False


def test_the_kernel_stays_the_same_for_all_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, x = ConvReLU(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(1, 3, 8, 8)
    fused(x)
    assert fused.at_once
    refuse(RuntimeError("no engine"), monkeypatch)
    with pytest.raises(RuntimeError, match="no engine"):
        fused(x)


@pytest.mark.skipif(default_precision("cpu") != "bf16", reason="needs a CPU with bf16")
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": (0, 2), "stride": (2, 1), "bias": False}])
def test_bf16_on_a_cpu_is_the_same_and_passes_on_what_is_no_number(options: dict) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 7, 3, **options).to(torch.bfloat16)
    x = torch.randn(2, 5, 33, 20).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    x[0, :, 4, 4] = torch.nan
    fused = ConvReLU(convolution)
    found, expected = fused(x), convolution(x).relu()
    assert fused.at_once
    assert expected.isnan().any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-25, equal_nan=True)
