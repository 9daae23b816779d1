"""Padding, so that a network takes any image size, and advice when a batch is too small for BatchNorm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def pad_to_multiple(x_NCHW: Tensor, multiple: int, *, least: int = 1) -> Tensor:
    """x with its last row and column repeated until H and W are multiples of `multiple` and at least `least` pixels.

    Repeated, not reflected: reflection fails if the padding is wider than the image, such as a 1 x 1 image.
    The caller crops its logits back with [..., :H, :W].
    """
    height, width = x_NCHW.shape[-2:]
    bottom = max(least - height, 0) + -max(height, least) % multiple
    right = max(least - width, 0) + -max(width, least) % multiple
    return F.pad(x_NCHW, (0, right, 0, bottom), mode="replicate") if bottom or right else x_NCHW


def forward_or_advise(module: nn.Module, x_NCHW: Tensor) -> object:
    """module(x); if the batch is too small to train BatchNorm, a ValueError that says what to do."""
    try:
        return module(x_NCHW)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"a batch of {len(x_NCHW)} leaves BatchNorm a single value per channel in training; give it at least "
            "2 images a step (--batch_size of at least twice --accumulate)"
        ) from error
