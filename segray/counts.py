"""How many pixels there are of each class, counted on the device that holds them."""

from __future__ import annotations

from functools import lru_cache

import torch

from segray.masks import IGNORE

CLASSES_AT_ONCE = 32  # each takes a byte per pixel
BYTE = 255  # the most that a byte counts


def class_counts(label_NHW: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, K) float64: the pixels of each class, or of whatever else is numbered from 0."""
    if label_NHW.device.type == "cpu":
        found = [torch.bincount(label.flatten(), minlength=IGNORE + 1)[:num_classes] for label in label_NHW]
        return torch.stack(found).double()
    return compared_counts(label_NHW, num_classes)  # bincount would wait for the GPU


def compared_counts(label_NHW: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, K) float64: the pixels of each class, by comparisons that take a GPU few launches."""
    parts = _numbers(num_classes, label_NHW.device).split(CLASSES_AT_ONCE)
    found = [_true((label_NHW == part).view(torch.uint8)) for part in parts]
    return (found[0] if len(found) == 1 else torch.cat(found)).T


def _true(bits_KNHW: torch.Tensor) -> torch.Tensor:
    """(K, N) float64 sums of bits; first over columns short enough for a byte, since torch converts what it sums."""
    columns = [bits.sum(dim=2, dtype=torch.uint8) for bits in bits_KNHW.split(BYTE, dim=2)]
    return torch.stack(columns, dim=2).sum(dim=(2, 3), dtype=torch.float64)


@lru_cache(maxsize=16)
def _numbers(count: int, device: torch.device) -> torch.Tensor:
    """(K, 1, 1, 1) uint8 0, 1, 2, ..."""
    return torch.arange(count, dtype=torch.uint8, device=device).view(-1, 1, 1, 1)
