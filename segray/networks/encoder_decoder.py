"""encoder_decoder: the smallest network here, a baseline to compare with; 0.1 M parameters at width 64.

It has no normalisation layers, so a batch can be computed in parts with the same result. A feature of the encoder sees
10 x 10 pixels: enough for colour and texture, not for context.
"""

from __future__ import annotations

from torch import Tensor, nn

from segray.networks.any_size import pad_to_multiple


class EncoderDecoder(nn.Module):
    """Two convolutions with pooling, two transposed convolutions; float (N, C, H, W) -> logits (N, K, H, W)."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        # kernel 2 with stride 2 doubles exactly; kernel 3 without output_padding gives 253 for 256
        self.decoder = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 2, stride=2), nn.ReLU(inplace=True))
        self.head = nn.ConvTranspose2d(width, num_classes, 2, stride=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K, H, W) of the input's H and W, any size >= 1 px."""
        height, width = x_NCHW.shape[-2:]
        logits_NKHW = self.head(self.decoder(self.encoder(pad_to_multiple(x_NCHW, 4))))
        return logits_NKHW[..., :height, :width]


def build(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """An EncoderDecoder whose first convolution has `width` channels."""
    if width < 1:
        raise ValueError(f"option width of network encoder_decoder must be at least 1, but is {width}")
    return EncoderDecoder(num_classes=num_classes, in_channels=in_channels, width=width)
