"""Losses that honour the ignore index and are normalised by the valid pixels of all workers.

A loss is a function (logits (N, K, H, W) float, mask (N, H, W) integer) -> its float32 sum over valid pixels. Means
are taken last, over the global count: workers see unequal shares of ignored pixels, and in a mean of their means a
pixel would count more the emptier its crop is. A loss per image is weighted by the image's valid pixels, so that it
adds up in the same way. All is computed in float32 whatever the type of the logits; an image without valid
pixels has loss 0 and gradient 0. ValueError on a mask of floats or of another size, and on fewer than two classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from segray.loss_terms import PIXEL_LOSSES
from segray.masks import IGNORE

Loss = Callable[[Tensor, Tensor], Tensor]
FOCAL_GAMMA = 2.0  # the best of Lin et al. 2017, table 1b
OHEM_SHARE = 4  # one pixel in four is hard


def cross_entropy_sum(logits_NKHW: Tensor, mask_NHW: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy summed over the pixels that are not 255.

    class_weights: (K,) float32, by which a pixel's loss is multiplied.
    """
    target = _target(logits_NKHW, mask_NHW)
    return functional.cross_entropy(
        logits_NKHW.float(), target, weight=class_weights, ignore_index=IGNORE, reduction="sum"
    )


def focal_sum(logits_NKHW: Tensor, mask_NHW: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Focal loss, (1 - p)^2 * -log p of the true class (Lin et al. 2017, eq. 4): easy pixels count little."""
    target = _target(logits_NKHW, mask_NHW)
    losses_NHW = _cross_entropies(logits_NKHW, target)
    weights_NHW = _weights(target, class_weights)
    return (weights_NHW * (-torch.expm1(-losses_NHW)) ** FOCAL_GAMMA * losses_NHW).sum()


def ohem_sum(logits_NKHW: Tensor, mask_NHW: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the hardest quarter of each image's valid pixels (online bootstrapping, Wu et al. 2016).

    Their mean stands for the image; at least one pixel is hard in an image with valid pixels.
    """
    target = _target(logits_NKHW, mask_NHW)
    losses_NHW = _cross_entropies(logits_NKHW, target) * _weights(target, class_weights)
    losses_NP = losses_NHW.masked_fill(target == IGNORE, -1.0).flatten(1)  # sorts after all others
    counts_N = (target != IGNORE).sum(dim=(1, 2))
    hard_N = (counts_N + OHEM_SHARE - 1) // OHEM_SHARE
    hardest_NP = losses_NP.topk(-(-losses_NP.shape[1] // OHEM_SHARE), dim=1).values
    taken_NP = torch.arange(hardest_NP.shape[1], device=target.device) < hard_N[:, None]
    means_N = (hardest_NP * taken_NP).sum(dim=1) / hard_N.clamp(min=1)
    return (means_N * counts_N).sum()


def dice_sum(logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
    """1 - Dice, 2 sum(p t) / (sum(p) + sum(t)), averaged over the classes in each image's truth.

    The soft Dice loss of Drozdzal et al. 2016, class by class. Absent classes are left out: their loss would be 1
    whenever a probability is above 0.
    """
    target = _target(logits_NKHW, mask_NHW)
    truth_NKHW, valid_NHW = _truth(target, logits_NKHW.shape[1]), target != IGNORE
    probabilities_NKHW = logits_NKHW.float().softmax(dim=1) * valid_NHW[:, None]
    overlap_NK = (probabilities_NKHW * truth_NKHW).sum(dim=(2, 3))
    truth_NK = truth_NKHW.sum(dim=(2, 3))
    total_NK = (probabilities_NKHW.sum(dim=(2, 3)) + truth_NK).where(truth_NK > 0, 1.0)
    return _image_means(1 - 2 * overlap_NK / total_NK, truth_NK)


def lovasz_sum(logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
    """Lovasz-Softmax (Berman et al. 2018), averaged over the classes in each image's truth.

    The convex surrogate of 1 - IoU: the errors of a class, each weighted by what it costs in IoU, largest first.
    """
    target = _target(logits_NKHW, mask_NHW)
    truth_NKP, valid_NHW = _truth(target, logits_NKHW.shape[1]).flatten(2), target != IGNORE
    errors_NKP = (truth_NKP.float() - logits_NKHW.float().softmax(dim=1).flatten(2)).abs()
    errors_NKP = errors_NKP.masked_fill(~valid_NHW.flatten(1)[:, None], -1.0)  # sorts after all others
    with torch.no_grad():
        weights_NKP = _jaccard_steps(errors_NKP, truth_NKP)
        weights_NKP *= valid_NHW.flatten(1)[:, None]
    return _image_means((errors_NKP * weights_NKP).sum(dim=2), truth_NKP.sum(dim=2))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy_sum,
    "focal": focal_sum,
    "ohem": ohem_sum,
    "dice": dice_sum,
    "lovasz": lovasz_sum,
}


def make_loss(terms: Sequence[tuple[float, str]], class_weights: Tensor | None = None) -> Loss:
    """The sum of the named losses, each times its factor (see `loss_terms.parse_loss`).

    class_weights: (K,) float32 on the device of the logits, for the losses with a value per pixel.
    """
    weighted = {} if class_weights is None else {"class_weights": class_weights}
    parts = [(factor, partial(LOSSES[name], **(weighted if name in PIXEL_LOSSES else {}))) for factor, name in terms]

    def loss(logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
        return torch.stack([factor * part(logits_NKHW, mask_NHW) for factor, part in parts]).sum()

    return loss


def network_loss(
    outputs: Tensor | Mapping[str, Tensor], mask_NHW: Tensor, loss: Loss, *, aux_weight: float = 0.5
) -> Tensor:
    """The loss of a network's output: logits, or {"out", "aux"} logits, the auxiliary ones times `aux_weight`.

    0.5 is the weight of torchvision's reference training.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, mask_NHW)
    return loss(outputs["out"], mask_NHW) + aux_weight * loss(outputs["aux"], mask_NHW)


def valid_count(mask_NHW: Tensor) -> Tensor:
    """How many pixels are not 255: an int64 scalar on the mask's device."""
    return (mask_NHW != IGNORE).sum()


def _target(logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
    """The mask as int64, checked: torch would read floats as class probabilities, and a single class has loss 0."""
    if mask_NHW.is_floating_point() or mask_NHW.is_complex() or mask_NHW.dtype == torch.bool:
        raise ValueError(f"a mask must hold integer class ids, but is {mask_NHW.dtype}")
    sizes = (logits_NKHW.shape[0], *logits_NKHW.shape[2:])
    if logits_NKHW.ndim != 4 or sizes != tuple(mask_NHW.shape):
        raise ValueError(
            f"logits must be (N, K, H, W) and the mask (N, H, W), but are {tuple(logits_NKHW.shape)} and "
            f"{tuple(mask_NHW.shape)}"
        )
    if logits_NKHW.shape[1] < 2:
        raise ValueError("a loss needs at least two classes; give the background a class of its own")
    return mask_NHW.long()


def _cross_entropies(logits_NKHW: Tensor, target: Tensor) -> Tensor:
    """(N, H, W) float32: -log of the true class's probability, 0 where the target is 255."""
    return functional.cross_entropy(logits_NKHW.float(), target, ignore_index=IGNORE, reduction="none")


def _weights(target: Tensor, class_weights: Tensor | None) -> Tensor | float:
    """(N, H, W) weight of each pixel's class; where the target is 255, that of any class, as the loss is 0 there."""
    return 1.0 if class_weights is None else class_weights[target.clamp(max=len(class_weights) - 1)]


def _truth(target: Tensor, num_classes: int) -> Tensor:
    """(N, K, H, W) bool: whether a pixel is of a class; 255 belongs to none."""
    return target[:, None] == torch.arange(num_classes, device=target.device).view(1, -1, 1, 1)


def _jaccard_steps(errors_NKP: Tensor, truth_NKP: Tensor) -> Tensor:
    """(N, K, P): what an error costs in IoU when all larger ones are made too (Berman et al. 2018, algorithm 1)."""
    order_NKP = errors_NKP.argsort(dim=2, descending=True, stable=True)
    hits_NKP = truth_NKP.gather(2, order_NKP).int().cumsum(dim=2)
    total_NK1 = hits_NKP[..., -1:]
    ranks_P = torch.arange(1, errors_NKP.shape[2] + 1, device=errors_NKP.device)
    losses_NKP = 1 - (total_NK1 - hits_NKP) / (total_NK1 + ranks_P - hits_NKP)
    steps_NKP = losses_NKP.diff(dim=2, prepend=torch.zeros_like(losses_NKP[..., :1]))
    return torch.empty_like(steps_NKP).scatter_(2, order_NKP, steps_NKP)


def _image_means(losses_NK: Tensor, pixels_NK: Tensor) -> Tensor:
    """Mean over the classes present in an image, times its pixels of them, summed over images."""
    present_NK = pixels_NK > 0
    means_N = (losses_NK * present_NK).sum(dim=1) / present_NK.sum(dim=1).clamp(min=1)
    return (means_N * pixels_NK.sum(dim=1)).sum()
