"""The network that is validated and published: a running average of the weights of the one that trains, or a copy."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from segray.schedules import average_decay


class WeightAverage:
    """An exponential moving average of a network's parameters and floating-point buffers (Polyak & Juditsky 1992).

    network: a plain copy in eval mode, of the modules as they were built. decay: 0 follows the network at once. The
    network that trains may get other modules, but must keep its tensors.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        # Training changes tensors in place, and naming all of them anew takes longer than a step of a small network.
        own, new = self.network.state_dict(), network.state_dict()
        floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
        self._pairs = [own[name] for name in floating], [new[name] for name in floating]
        counts = own.keys() - set(floating)  # of batches
        self._counts = [own[name] for name in counts], [new[name] for name in counts]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step (0-based): average = d * average + (1 - d) * weights; d has a warm-up."""
        get_ema_multi_avg_fn(average_decay(step, self.decay))(*self._pairs, step)
        if self._counts[0]:
            torch._foreach_copy_(*self._counts)
