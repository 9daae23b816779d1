"""Batch norms over the crops of all workers, on any device: N workers take the same steps as one.

torch.nn.SyncBatchNorm runs only on GPUs.
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

    gpu: use SyncBatchNorm where possible, which has faster kernels.
    """
    for name, child in list(network.named_children()):
        network.add_module(name, synchronise(child, gpu=gpu))
    if not isinstance(network, _BatchNorm) or isinstance(network, GlobalBatchNorm | nn.SyncBatchNorm):
        return network
    if gpu and not list(network.children()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return GlobalBatchNorm(network)


class GlobalBatchNorm(_BatchNorm):
    """Replaces a batch norm, with its parameters and buffers: in train mode its statistics are those of all workers' x.

    Workers may have unequal numbers of values. Modules inside the norm, such as timm's activations, run after it.
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
        mean, variance, count = _moments(x.detach(), self.eps)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        return _Normalise.apply(x, weight, bias, mean, variance, count, self.eps)


class _Normalise(torch.autograd.Function):
    """y * weight + bias, y = (x - mean) / sqrt(variance + eps), where mean and variance are those of all workers' x."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, *moments: Tensor | float) -> Tensor:
        mean, variance, ctx.count, ctx.eps = moments
        ctx.save_for_backward(x, weight, mean, variance)
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=ctx.eps)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As Ioffe & Szegedy 2015, section 3: the effect of x on mean and variance is subtracted from its gradient.

        That part is an affine function of y whose factors are sums over all workers; the gradients of weight and bias
        are this worker's own, like those of any other parameter.
        """
        x, weight, mean, variance = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias])
        dist.all_reduce(sums)
        factor, offset = sums * (weight * torch.rsqrt(variance + ctx.eps) / ctx.count)
        dx -= functional.batch_norm(x, mean, variance, factor, offset, training=False, eps=ctx.eps)
        return dx, dweight, dbias, None, None, None, None


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) mean and biased variance of all workers' x, at least float32, and () the number of values per channel.

    Summed in float64, so that mean square minus squared mean is exact to float32.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    ones, zeros = (fill(x.shape[1], dtype=kind, device=x.device) for fill in (torch.ones, torch.zeros))
    # the kernel of a plain batch norm: several times faster than var_mean, unless x is float32 and contiguous
    _, mean, inverse = torch.native_batch_norm(x, ones, zeros, None, None, True, 0.0, eps)
    mean, variance = mean.double(), inverse.double() ** -2 - eps
    sums = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)]) * (x.numel() // x.shape[1])
    dist.all_reduce(sums)
    mean, square, _ = sums / sums[2]
    variance = (square - mean.square()).clamp(min=0)
    return mean.to(kind), variance.to(kind), sums[2, 0].to(kind)
