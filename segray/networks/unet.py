"""unet: a U-Net (Ronneberger et al. 2015) with batch normalisation; 1.9 M parameters at width 16, depth 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segray.networks.any_size import pad_to_multiple
from segray.networks.convolutions import initialise, unit


class UNet(nn.Module):
    """Encoder and decoder with skip connections; float (N, C, H, W) -> logits (N, K, H, W)."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.encoder = nn.ModuleList(map(_block, [in_channels, *widths], widths))
        # Transposed convolutions with kernel 2 and stride 2 are one matrix product on every device, and their
        # backward is deterministic on CUDA, which that of bilinear up-sampling is not.
        falling = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, stride=2) for deep, shallow in falling)
        self.decoder = nn.ModuleList(_block(2 * shallow, shallow) for _, shallow in falling)
        self.head = nn.Conv2d(width, num_classes, 1)
        self.apply(initialise)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K, H, W) of the input's H and W, any size >= 1 px."""
        height, width = x_NCHW.shape[-2:]
        # at least 2 x 2 at the bottom, so that one small image is a batch that BatchNorm can train on
        x = pad_to_multiple(x_NCHW, 2**self.depth, least=2 ** (self.depth + 1))
        skips = [x := self.encoder[0](x)]
        for block in self.encoder[1:]:
            skips.append(x := block(F.max_pool2d(x, 2)))
        skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)[..., :height, :width]


def build(*, num_classes: int, in_channels: int, width: int = 16, depth: int = 4) -> nn.Module:
    """A UNet of `width` channels at full resolution, doubled at each of `depth` halvings."""
    if width < 1 or not 1 <= depth <= 8:
        raise ValueError(f"network unet needs width >= 1 and depth of 1 to 8, but they are {width} and {depth}")
    return UNet(num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(*unit(in_channels, out_channels), *unit(out_channels, out_channels))
