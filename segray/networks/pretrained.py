"""Pretrained weights into a network: names are matched without the prefixes that libraries and wrappers add."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile

import torch
from torch import Tensor, nn

# Leading parts of a tensor's name that say where a backbone sits, not what the tensor is.
WRAPPERS = frozenset({"module", "_orig_mod", "network", "model", "backbone", "encoder", "features"})
FLATTENED = re.compile(r"(?<=[a-z])_(\d+)(?=\.)")  # stages_0.x for stages.0.x: timm's encoders, unlike its classifiers


def load_backbone(network: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Copy every tensor of `state` that fits into the network; the number of tensors copied.

    `state`: of the whole network, of its backbone or encoder, or of an ImageNet classifier on that backbone. The
    network keeps its own tensors if those outside the backbone differ in shape (a head for other classes), and its
    first convolution if the weights are for another number of bands.
    ValueError: no tensor fits, or the backbone would be filled only in part, as with another architecture.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {bare_name(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    fits = [name for name in own if bare_name(name) in given and given[bare_name(name)].shape == own[name].shape]
    if not fits:
        raise ValueError(
            f"none of the {len(given)} pretrained tensors fits the network, by name and shape; "
            f"it wants {next(iter(own))} {_shape(own)} and is offered {next(iter(given), 'nothing')} {_shape(given)}"
        )
    _check_whole(own, given, fits)
    with torch.no_grad():
        for name in fits:
            own[name].copy_(given[bare_name(name)])
    return len(fits)


def bare_name(name: str) -> str:
    """A tensor's name without the wrappers in front: `module.backbone.stem_0.weight` -> `stem.0.weight`."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts.pop(0)
    return FLATTENED.sub(r".\1", ".".join(parts))


def _check_whole(own: Mapping[str, Tensor], given: Mapping[str, Tensor], fits: list[str]) -> None:
    """ValueError if a tensor of the backbone stays random: training would silently start from a broken backbone."""
    backbone = [name for name in own if _in_backbone(name)]
    first = next((name for name in backbone if own[name].ndim == 4), None)
    missed = [name for name in backbone if name not in set(fits) and not _other_bands(name, first, own, given)]
    if missed:
        offered = given.get(bare_name(missed[0]))
        has = "lack it" if offered is None else f"have {tuple(offered.shape)}"
        raise ValueError(
            f"the pretrained weights fit only {len(backbone) - len(missed)} of the {len(backbone)} tensors of the "
            f"backbone: it wants {missed[0]} {tuple(own[missed[0]].shape)}, and they {has}; "
            "give weights of the same backbone"
        )


def _in_backbone(name: str) -> bool:
    wrappers = set(takewhile(WRAPPERS.__contains__, name.split(".")))
    return not wrappers.isdisjoint({"backbone", "encoder"})


def _other_bands(name: str, first: str | None, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """True if this is the first convolution and the weights differ from it only in the number of input bands."""
    offered = given.get(bare_name(name))
    if name != first or offered is None or offered.ndim != 4:
        return False
    wanted = own[name].shape
    return offered.shape[0] == wanted[0] and offered.shape[2:] == wanted[2:]


def _shape(tensors: Mapping[str, Tensor]) -> str:
    return str(tuple(next(iter(tensors.values())).shape)) if tensors else ""
