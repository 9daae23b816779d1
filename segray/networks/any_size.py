"""Padding, so that a network takes any image size."""

from __future__ import annotations

from torch import Tensor
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
