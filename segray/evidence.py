"""Evidence: where in a tile lies what speaks for one class rather than another, as the deepest features have it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEEPEST = 32  # stride: encoders reduce no further, while what is pooled to a few values has no places

Stage = tuple[str, object]  # module, and the key of the tensor in its output if that holds several


def evidence(network: nn.Module, x_1CHW: Tensor, pixels_HW: Tensor, *, chosen: int, other: int) -> np.ndarray | None:
    """(H, W) float32 from -1 to 1: above 0 what speaks for the class `chosen` at the pixels, below for `other`.

    HiResCAM (Draelos & Carin 2020) of S, the sum over the pixels of the difference of both logits: the features of the
    deepest stage times the gradient of S by them, summed over channels, enlarged bilinearly, its largest magnitude 1.
    What reaches the logits past that stage, as through skip connections, is not in it. None for a network without such
    a stage, as exported programs are, or where nothing speaks for either. pixels_HW: bool. network: in eval mode, fp32,
    with parameters that ask for no gradient, or the graph holds all of it.
    """
    stage = _deepest(network, x_1CHW)
    if stage is None:
        return None
    name, key = stage
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple, output: object) -> object:
        kept.append(dict(_tensors(output))[key].detach().requires_grad_())
        return _with(output, key, kept[-1].clone())  # what follows may work in place

    handle = network.get_submodule(name).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits_KHW = network(x_1CHW)[0]
    finally:
        handle.remove()
    features = kept[-1]
    score = (logits_KHW[chosen] - logits_KHW[other])[pixels_HW].sum()
    if not score.requires_grad:  # nothing that was cut reaches the logits
        return None
    (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
    if gradient is None:
        return None
    found = (gradient * features.detach()).sum(dim=1, keepdim=True)
    largest = found.abs().max()
    if not torch.isfinite(largest) or not largest:
        return None
    enlarged = F.interpolate(found / largest, x_1CHW.shape[-2:], mode="bilinear", align_corners=False)
    return enlarged[0, 0].cpu().numpy()


@torch.no_grad()
def _deepest(network: nn.Module, x_1CHW: Tensor) -> Stage | None:
    """Where the deepest stage ends: an encoder's smallest features if one gives those of its stages, else a guess.

    The guess: of the smallest outputs of modules those of most channels, and of these the last.
    """
    height, width = x_1CHW.shape[-2:]
    ended: list[tuple[bool, int, int, Stage]] = []

    def note(name: str, output: object) -> None:
        for key, tensor in _tensors(output):
            channels, rows, cols = tensor.shape[1:] if tensor.ndim == 4 else (0, height, width)
            placed = min(rows, cols) > 1 and rows * DEEPEST >= height and cols * DEEPEST >= width
            if placed and rows * cols < height * width:
                ended.append((key is None, rows * cols, -channels, (name, key)))

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
    return min(reversed(ended), key=lambda found: found[:3])[3] if ended else None


def _tensors(output: object) -> Iterator[tuple[object, Tensor]]:
    """(key, tensor) of the tensors in what a module gives: alone, with the key None, or in a list or a dictionary."""
    if isinstance(output, Tensor):
        yield None, output
    items = output.items() if isinstance(output, dict) else enumerate(output) if isinstance(output, list) else ()
    yield from ((key, value) for key, value in items if isinstance(value, Tensor))


def _with(output: object, key: object, tensor: Tensor) -> object:
    if key is None:
        return tensor
    changed = copy.copy(output)
    changed[key] = tensor
    return changed
