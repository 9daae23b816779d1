"""The weights from ImageNet that a library publishes for the backbone of one of its networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each band of 0 to 1


@dataclass(frozen=True)
class Published:
    """Weights that are fetched when they are asked for, and then come from the library's cache.

    place: where they can be found by hand. load: the tensors by name. moments: what the images they saw were
    normalised with. Both raise OSError if there is no network.
    """

    place: str
    load: Callable[[], Mapping[str, Tensor]]
    moments: Callable[[], Moments]
