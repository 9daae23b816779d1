"""A network made ready: the same answers in fp32, nearly the same in bf16, and the given network is unchanged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segray.inference import Inference, default_precision
from segray.networks import NETWORKS, build_network

CPU = torch.device("cpu")


def batch(size: int = 64) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "smp"])
def test_every_network_keeps_its_answers(name):
    torch.manual_seed(0)
    network = build_network(name, {}, num_classes=4, in_channels=3)
    with torch.inference_mode():
        expected = network.eval()(batch())
    spread = expected.std()
    assert (Inference(network, device=CPU, precision="fp32")(batch()) - expected).abs().max() < 1e-4 * spread
    half = Inference(network, device=CPU, precision="bf16")
    logits = half(batch())
    assert logits.dtype == torch.bfloat16
    assert not half.autocast
    assert (logits - expected).abs().mean() < 0.05 * spread
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


class OwnTensors(nn.Module):
    """Makes a float32 tensor of its own, which a bf16 convolution does not accept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x * torch.linspace(0, 1, x.shape[-1]))


def test_a_network_with_tensors_of_its_own_runs_under_autocast():
    inference = Inference(OwnTensors(), device=CPU, precision="bf16")
    assert inference(batch()).dtype == torch.bfloat16
    assert inference.autocast


class Joined(nn.Module):
    """Sees channels and rows as one axis, which only contiguous tensors allow. own: see OwnTensors."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.first, self.last, self.own = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + x.view(len(x), -1, x.shape[-1]).mean(1)[:, None, None]
        return self.last(x * torch.linspace(0, 1, x.shape[-1]) if self.own else x)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_joins_axes_runs_on_contiguous_tensors(precision, own):
    torch.manual_seed(0)
    network = Joined(own=own).eval()
    with torch.inference_mode():
        expected = network(batch())
    inference = Inference(network, device=CPU, precision=precision)
    for _ in range(2):
        assert (inference(batch()) - expected).abs().max() < (1e-5 if precision == "fp32" else 0.05) * expected.std()
    assert inference.layout is torch.contiguous_format
    assert inference.autocast is (own and precision == "bf16")


def test_an_error_of_the_network_is_raised_as_it_is():
    inference = Inference(nn.Conv2d(5, 4, 1), device=CPU, precision="bf16")
    with pytest.raises(RuntimeError, match="channels"):
        inference(batch())


def test_a_compiled_network_gives_the_same_answers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    compiled = Inference(network, device=CPU, precision="fp32", compiled=True)(batch())
    assert (compiled - Inference(network, device=CPU, precision="fp32")(batch())).abs().max() < 1e-5


def test_a_compiled_network_that_joins_axes_runs_on_contiguous_tensors():
    network = Joined(own=False).eval()
    compiled = Inference(network, device=CPU, precision="fp32", compiled=True)(batch())
    assert (compiled - Inference(network, device=CPU, precision="fp32")(batch())).abs().max() < 1e-5


def test_wrong_precision_is_refused_and_the_default_is_one_of_both():
    with pytest.raises(ValueError, match="bf16 or fp32"):
        Inference(nn.Conv2d(3, 4, 1), device=CPU, precision="fp16")
    assert default_precision("cpu") in ("bf16", "fp32")


@pytest.mark.parametrize(("capability", "precision"), [(7, "fp32"), (8, "bf16"), (10, "bf16")])
def test_bf16_is_the_default_of_gpus_that_do_not_emulate_it(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability))
    assert default_precision("cuda") == precision
