"""Batch norms over the crops of all workers, on any device: N workers take the same steps as one.

torch.nn.SyncBatchNorm runs on GPUs alone.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(network: nn.Module, *, gpu: bool) -> nn.Module:
    """The network with batch norms over all workers, in place; its parameters, buffers and their names stay the same.

    gpu: use torch's own, which has faster kernels there.
    """
    for name, child in list(network.named_children()):
        network.add_module(name, synchronise(child, gpu=gpu))
    if not isinstance(network, _BatchNorm) or isinstance(network, GlobalBatchNorm | nn.SyncBatchNorm):
        return network
    if gpu and not list(network.children()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return GlobalBatchNorm(network)


class GlobalBatchNorm(_BatchNorm):
    """Stands for a batch norm, with its parameters and buffers: in train mode its statistics are of all workers' x.

    Workers may have unequal numbers of values. Modules inside the norm, as the activation in timm's, come after it.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        for name, child in norm.named_children():
            self.add_module(name, child)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any (N, C, ...) will do."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) of any float type -> the same shape and type, normalised."""
        x = self._over_all(x) if self.training else super().forward(x)
        for after in self.children():
            x = after(x)
        return x

    def _over_all(self, x: Tensor) -> Tensor:
        mean, variance, count = _moments(x.detach())
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are those of all workers' x."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, *moments: Tensor | float
    ) -> Tensor:
        mean, variance, ctx.count, eps = moments
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Ioffe & Szegedy 2015, section 3, its sums over all workers but those of weight and bias, which DDP sums."""
        x, weight, mean, inverse = ctx.saved_tensors
        axes, shape = _axes(x)
        mean, inverse = mean.view(shape), inverse.view(shape)
        y, dy = (_wide(x) - mean) * inverse, _wide(gradient)
        bias_sum, weight_sum = dy.sum(axes), (dy * y).sum(axes)
        sums = torch.stack([bias_sum, weight_sum])
        dist.all_reduce(sums)
        dy_mean, dyy_mean = (sums / ctx.count).view(2, *shape)
        scale = inverse if weight is None else inverse * weight.view(shape)
        dx = (scale * (dy - dy_mean - y * dyy_mean)).to(gradient.dtype)
        return dx, None if weight is None else weight_sum, None if weight is None else bias_sum, None, None, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) mean and biased variance of all workers' x, and () how many values a channel has there.

    Summed in float64, in which a mean square less a squared mean loses nothing that float32 would show.
    """
    axes, _ = _axes(x)
    count, kind = x.numel() // x.shape[1], _wide(x).dtype
    variance, mean = (moment.double() for moment in torch.var_mean(_wide(x), axes, correction=0))
    sums = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)]) * count
    dist.all_reduce(sums)
    mean, square, _ = sums / sums[2]
    variance = (square - mean.square()).clamp(min=0)
    return mean.to(kind), variance.to(kind), sums[2, 0].to(kind)


def _wide(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes of (N, C, ...) that are summed over, and the shape in which (C,) values broadcast."""
    return [axis for axis in range(x.ndim) if axis != 1], [1, -1, *[1] * (x.ndim - 2)]
