"""Depthwise convolutions in training have the outputs that they have without, and gradients as those of float32."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn

from segray.depthwise import FasterDepthwise

SLOW = [
    pytest.param({"kernel_size": 3, "stride": 2, "padding": 1}, id="stride"),
    pytest.param({"kernel_size": 5, "padding": 2}, id="5x5"),
    pytest.param({"kernel_size": (1, 7), "padding": (0, 3)}, id="1x7"),
    pytest.param({"kernel_size": 3, "dilation": 2, "padding": 2}, id="dilation"),
    pytest.param({"kernel_size": 5, "stride": (2, 1), "padding": 0}, id="strides"),
    pytest.param({"kernel_size": 5, "padding": 2, "padding_mode": "reflect"}, id="reflect"),
]
OTHERS = [
    pytest.param({"kernel_size": 3, "padding": 1}, id="3x3"),
    pytest.param({"kernel_size": 5, "padding": 2, "groups": 1}, id="dense"),
    pytest.param({"kernel_size": 5, "padding": 2, "groups": 3}, id="grouped"),
    pytest.param({"kernel_size": 5, "padding": "same"}, id="same"),
]


def convolution(options: dict) -> tuple[nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 12, **{"groups": 12} | options).to(memory_format=torch.channels_last)
    # values that bf16 holds exactly, so that gradients in float32 differ by their sums' rounding alone
    layer.weight.data = layer.weight.data.bfloat16().float()
    return layer, torch.randn(2, 12, 17, 20).bfloat16().to(memory_format=torch.channels_last)


def run(layer: nn.Conv2d, x: torch.Tensor, *, bf16: bool, block: AbstractContextManager) -> list[torch.Tensor]:
    """The output, and the gradients of input, weight and bias."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), block:
        output = layer(x)
    output.backward(torch.arange(output.numel()).view(output.shape).remainder(7).to(output.dtype))
    return [output.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("options", SLOW)
def test_gradients_are_those_of_float32(options: dict) -> None:
    layer, x = convolution(options)
    exact = run(layer, x.float(), bf16=False, block=nullcontext())
    plain = run(layer, x, bf16=True, block=nullcontext())
    faster = run(layer, x, bf16=True, block=FasterDepthwise())
    assert torch.equal(faster[0], plain[0])
    assert [g.dtype for g in faster[1:]] == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(faster[1], exact[1].bfloat16())
    for ours, theirs in zip(faster[2:], exact[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert not torch.equal(plain[2], exact[2])  # what the block is to change


@pytest.mark.parametrize("options", OTHERS)
def test_other_convolutions_stay_as_they_are(options: dict) -> None:
    layer, x = convolution(options)
    plain, faster = (run(layer, x, bf16=True, block=block) for block in (nullcontext(), FasterDepthwise()))
    for ours, theirs in zip(faster, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_weights_and_inputs_without_gradient() -> None:
    layer, x = convolution({"kernel_size": 5, "padding": 2})
    layer.weight.requires_grad_(False)
    with FasterDepthwise():
        layer(x.float()).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((12,), 2.0 * 17 * 20))
