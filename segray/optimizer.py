"""The optimizer of a network, by name; weight decay on weight tensors only."""

from __future__ import annotations

import torch
from torch import nn


def make_optimizer(
    network: nn.Module, *, name: str, lr: float, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """adam, adamw or sgd; momentum is of sgd only.

    weight_decay: decoupled in adamw, part of the gradient in sgd, none in adam; on tensors of two or more dimensions
    (convolutions, matrices), not on norms and biases.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=True)
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)
