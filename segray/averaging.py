"""The network that is validated and published: a running average of the trained network's weights, or a copy."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from segray.schedules import average_decay


class WeightAverage:
    """An exponential moving average of a network's parameters and floating-point buffers (Polyak & Juditsky 1992).

    network: a plain copy in eval mode, with the modules as they were built. decay: 0 copies the latest weights. Modules
    of the trained network may be replaced afterwards, but its tensors must stay the same objects.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        # Training changes tensors in place; collecting them at each step takes longer than a step of a small network.
        own, new = self.network.state_dict(), network.state_dict()
        floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
        self._pairs = [own[name] for name in floating], [new[name] for name in floating]
        counts = own.keys() - set(floating)  # integer buffers: counts of batches
        self._counts = [own[name] for name in counts], [new[name] for name in counts]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step (0-based): average = d * average + (1 - d) * weights, d = average_decay."""
        get_ema_multi_avg_fn(average_decay(step, self.decay))(*self._pairs, step)
        if self._counts[0]:
            torch._foreach_copy_(*self._counts)
