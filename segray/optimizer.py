"""The optimizer of a network, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

WARM_UP = 0.05  # share of all steps


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """The rate of a step (0-based) of `steps`: warm-up, then half a cosine to almost 0 (Loshchilov 2017, eq. 5)."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (steps - warm + 1)))


def make_optimizer(network: nn.Module, *, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """adam, or adamw with its decay on convolutions and matrices only: norms and biases have no scale to lose."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=True)
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)
