"""Gradients of depthwise convolutions on CPUs in bf16: in float32 where that is faster.

For these gradients oneDNN has bf16 kernels of its own for strides and dilations of 1 and kernels of up to 3 px; the
others take 1.4 to 7 times as long as their float32 ones. EfficientNet and MobileNet, with strides or 5 x 5 px, spend
half of a training step on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FasterDepthwise(TorchFunctionMode):
    """A block whose depthwise convolutions, of any network, have faster gradients; their outputs are the same."""

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is functional.conv2d:
            return _conv2d(*args, **kwargs or {})
        return function(*args, **kwargs or {})


def _conv2d(  # noqa: PLR0917 - as torch has them
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv2d."""
    depthwise = 1 < groups == input.shape[1] == weight.shape[0]
    stride, dilation = _pair(stride), _pair(dilation)
    slow = max(weight.shape[2:]) > 3 or max(*stride, *dilation) > 1
    if not (depthwise and slow) or isinstance(padding, str):
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _Depthwise.apply(input, weight, bias, stride, _pair(padding), dilation)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose gradients are computed in float32."""

    @staticmethod
    def forward(ctx: FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: list[int]) -> Tensor:
        """geometry: stride, padding, dilation, each of two numbers."""
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        return functional.conv2d(input, weight, bias, *geometry, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        gradients = torch.ops.aten.convolution_backward(
            *(tensor.float() for tensor in (gradient, input, weight)),
            [len(weight)],  # the bias
            *ctx.geometry,
            False,  # not transposed
            [0, 0],
            len(weight),
            ctx.needs_input_grad[:3],
        )
        return *gradients, None, None, None  # autograd casts them to the dtypes of what they belong to
