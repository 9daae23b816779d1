"""Evidence: where in a tile lies what speaks for one class rather than another, as the deepest features have it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEEPEST = 32  # stride: networks reduce no further, while what is pooled to a few values says nothing of places


def evidence(network: nn.Module, x_1CHW: Tensor, pixels_HW: Tensor, *, chosen: int, other: int) -> np.ndarray | None:
    """(H, W) float32 from -1 to 1: above 0 what speaks for the class `chosen` at the pixels, below for `other`.

    HiResCAM (Draelos & Carin 2020) of S, the sum over the pixels of the difference of both logits: the features of the
    deepest stage times the gradient of S by them, summed over channels, enlarged bilinearly, its largest magnitude 1.
    What reaches the logits past that stage, as through skip connections, is not in it. None for a network without such
    a stage, as exported programs are, or where nothing speaks for either. pixels_HW: bool. network: in eval mode, fp32.
    """
    name = _deepest(network, x_1CHW)
    if name is None:
        return None
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # what follows may work in place

    handle = network.get_submodule(name).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits_KHW = network(x_1CHW)[0]
    finally:
        handle.remove()
    features = kept[-1]
    score = (logits_KHW[chosen] - logits_KHW[other])[pixels_HW].sum()
    (gradient,) = torch.autograd.grad(score, features)
    found = (gradient * features.detach()).sum(dim=1, keepdim=True)
    largest = found.abs().max()
    if not torch.isfinite(largest) or not largest:
        return None
    enlarged = F.interpolate(found / largest, x_1CHW.shape[-2:], mode="bilinear", align_corners=False)
    return enlarged[0, 0].cpu().numpy()


@torch.no_grad()
def _deepest(network: nn.Module, x_1CHW: Tensor) -> str | None:
    """The module that ends the deepest stage: of the smallest outputs those of most channels, and of these the last."""
    height, width = x_1CHW.shape[-2:]
    ended: list[tuple[int, int, str]] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            channels, rows, cols = output.shape[1:]
            if rows * cols < height * width and rows * DEEPEST >= height and cols * DEEPEST >= width:
                ended.append((rows * cols, -channels, name))

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        network(x_1CHW)
    finally:
        for handle in handles:
            handle.remove()
    return min(reversed(ended), key=lambda found: found[:2], default=(0, 0, None))[2]
