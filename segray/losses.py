"""Losses that honour the ignore index and are normalised by the valid pixels of all workers.

A loss is a function (logits (N, K, H, W) float, mask (N, H, W) integer) -> (sum over valid pixels, their count). Means
are taken last, over the global count: workers see unequal shares of void pixels, and a mean of their means would weigh
a pixel by the emptiness of the crop that it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from segray.masks import IGNORE

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy_sum(logits_NKHW: Tensor, mask_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the pixels that are not 255 (float32 scalar), and their count (int64 scalar).

    Computed in float32 whatever the type of the logits. Without valid pixels the sum is 0 and so is its gradient.
    ValueError on a mask of floats or of another size, and on fewer than two classes.
    """
    _check(logits_NKHW, mask_NHW)
    target = mask_NHW.long()
    loss = functional.cross_entropy(logits_NKHW.float(), target, ignore_index=IGNORE, reduction="sum")
    return loss, (target != IGNORE).sum()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy_sum}


def network_loss(
    outputs: Tensor | Mapping[str, Tensor], mask_NHW: Tensor, loss: Loss, *, aux_weight: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The loss of what a network returns: logits, or {"out", "aux"} logits, the auxiliary ones times `aux_weight`.

    0.5 is the weight of torchvision's reference training.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, mask_NHW)
    main, count = loss(outputs["out"], mask_NHW)
    return main + aux_weight * loss(outputs["aux"], mask_NHW)[0], count


def global_mean(loss_sum: Tensor, count: Tensor) -> Tensor:
    """The worker's share of the mean loss over the valid pixels of all workers; 0 when nobody has one.

    Scaled by the number of workers, because DistributedDataParallel averages gradients over them: they average to the
    gradient that one process would find on the whole batch. Every worker must call this at the same step.
    """
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        world_size, count = dist.get_world_size(), count.clone()
        dist.all_reduce(count)
    return loss_sum * world_size / count.clamp(min=1)


def _check(logits_NKHW: Tensor, mask_NHW: Tensor) -> None:
    # torch takes a float mask for class probabilities and a single class for certain: both train, in silence, nonsense
    if mask_NHW.is_floating_point() or mask_NHW.is_complex() or mask_NHW.dtype == torch.bool:
        raise ValueError(f"a mask must hold integer class ids, but is {mask_NHW.dtype}")
    sizes = (logits_NKHW.shape[0], *logits_NKHW.shape[2:])
    if logits_NKHW.ndim != 4 or sizes != tuple(mask_NHW.shape):
        raise ValueError(
            f"logits must be (N, K, H, W) and the mask (N, H, W), but are {tuple(logits_NKHW.shape)} and "
            f"{tuple(mask_NHW.shape)}"
        )
    if logits_NKHW.shape[1] < 2:
        raise ValueError("cross-entropy needs at least two classes; give the background a class of its own")
