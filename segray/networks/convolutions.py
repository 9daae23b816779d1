"""A convolution with its normalisation, as several networks are made of, and the weights that they begin with."""

from __future__ import annotations

from torch import nn


def unit(in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, normalisation, ReLU; in this order, so that in eval mode the first two fold into one."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def initialise(module: nn.Module) -> None:
    """He et al. 2015 for every convolution; zero biases, so that no class is preferred before the first step."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
