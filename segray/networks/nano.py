"""nano: a residual U-shaped network for training from random weights, with long-range context; 3.8 M parameters.

Most of its work is at 1/4 to 1/16 of the resolution, so an image costs about as much as in `unet`, while a pixel sees
hundreds of pixels around it and, through the pooled features, the whole tile. With `reduce` it works on an image that
many times smaller on each side: a tile with that many times the side costs the same, but fine detail is lost.
`pooled=false` leaves out the pooled features: trained on few places, they learn what is where, which does not hold
elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segray.networks.any_size import pad_to_multiple
from segray.networks.convolutions import initialise, unit

STRIDE = 16  # of the deepest features
DILATIONS = (1, 2, 4)  # of the blocks at that stride: Yu & Koltun 2016


class Nano(nn.Module):
    """Float (N, C, H, W) -> logits (N, K, H, W); in train mode {"out": logits, "aux": logits from the encoder}.

    reduce: how many times smaller each side of the image is made first. In train mode the logits stay that small, since
    enlarging them would cost as much as the network: they are those of every `reduce`-th pixel, the first one
    `reduce // 2` pixels from the edge. In eval mode they are enlarged bilinearly. pooled: whether a pixel sees the mean
    of the whole tile.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int, reduce: int, pooled: bool) -> None:
        super().__init__()
        self.reduce = reduce
        half, deep = width // 2, 3 * width
        self.stem = nn.Sequential(unit(in_channels, half, stride=2), unit(half, half))
        self.stage4 = nn.Sequential(Block(half, width, stride=2), Block(width, width))
        self.stage8 = nn.Sequential(Block(width, 2 * width, stride=2), Block(2 * width, 2 * width))
        self.stage16 = nn.Sequential(
            Block(2 * width, deep, stride=2), *(Block(deep, deep, dilation=dilation) for dilation in DILATIONS)
        )
        self.pooled = nn.Conv2d(deep, deep, 1) if pooled else None  # no norm: one value per image and channel
        sizes = [(deep, 2 * width), (2 * width, width), (width, half)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, skip, 2, stride=2) for below, skip in sizes)
        self.decoder = nn.ModuleList(unit(2 * skip, skip) for _, skip in sizes)
        self.head = nn.ConvTranspose2d(half, num_classes, 2, stride=2)
        self.aux_head = nn.Conv2d(deep, num_classes, 1)
        self.apply(initialise)
        for block in self.modules():
            if isinstance(block, Block):  # it starts as its shortcut (Goyal et al. 2017)
                nn.init.zeros_(block.second[1].weight)

    def forward(self, x_NCHW: Tensor) -> Tensor | dict[str, Tensor]:
        """Logits of the input's H and W, any size >= 1 px."""
        height, width = x_NCHW.shape[-2:]
        # at least 2 x 2 at the bottom, so that one small image is a batch that BatchNorm can train on
        padded_NCHW = pad_to_multiple(x_NCHW, STRIDE * self.reduce, least=2 * STRIDE * self.reduce)
        if self.reduce > 1:
            padded_NCHW = F.avg_pool2d(padded_NCHW, self.reduce)
        skips = [x := self.stem(padded_NCHW)]
        for stage in (self.stage4, self.stage8, self.stage16):
            skips.append(x := stage(x))
        deep = skips.pop()
        x = deep + F.relu(self.pooled(deep.mean(dim=(2, 3), keepdim=True))) if self.pooled is not None else deep
        for up, merge in zip(self.up, self.decoder, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits_NKHW = self.head(x)
        if not self.training:
            if self.reduce > 1:
                logits_NKHW = self._enlarged(logits_NKHW)
            return logits_NKHW[..., :height, :width]
        aux_NKHW = F.interpolate(self.aux_head(deep), scale_factor=STRIDE, mode="bilinear", align_corners=False)
        rows, cols = ((side + self.reduce - 1 - self.reduce // 2) // self.reduce for side in (height, width))
        return {"out": logits_NKHW[..., :rows, :cols], "aux": aux_NKHW[..., :rows, :cols]}

    def _enlarged(self, logits_NKHW: Tensor) -> Tensor:
        """(N, K, H, W) -> (N, K, H * reduce, W * reduce), bilinear; trained logits keep their positions."""
        times, (height, width) = self.reduce, logits_NKHW.shape[-2:]
        around = F.pad(logits_NKHW, (1, 1, 1, 1), mode="replicate")
        size = (height + 1) * times + 1, (width + 1) * times + 1
        enlarged = F.interpolate(around, size, mode="bilinear", align_corners=True)
        first = times - times // 2
        return enlarged[..., first : first + height * times, first : first + width * times]


class Block(nn.Module):
    """The basic block of ResNet (He et al. 2016): two convolutions and a shortcut, which is a convolution if needed."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = unit(in_channels, out_channels, stride=stride, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.stride = stride
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride), no value negative."""
        # not by a strided shortcut: with few channels, oneDNN's backward pass of that writes out of bounds
        picked = x[..., :: self.stride, :: self.stride] if self.stride > 1 else x
        return F.relu(self.second(self.first(x)) + self.shortcut(picked))


def build(*, num_classes: int, in_channels: int, width: int = 64, reduce: int = 1, pooled: bool = True) -> nn.Module:
    """A Nano of `width` channels at 1/4 of the resolution, half as many at 1/2, three times as many at 1/16.

    reduce, pooled: see Nano.
    """
    if not 1 <= reduce <= 8:
        raise ValueError(f"option reduce of network nano must be 1 to 8, but is {reduce}")
    if width < 2 or width % 2:
        raise ValueError(f"option width of network nano must be even and at least 2, but is {width}")
    return Nano(num_classes=num_classes, in_channels=in_channels, width=width, reduce=reduce, pooled=pooled)
