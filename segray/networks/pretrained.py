"""Pretrained weights into a network: names are matched without the prefixes that libraries and wrappers add."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

import torch
from torch import Tensor, nn

# Leading parts of a tensor's name that say where a backbone sits, not what the tensor is.
WRAPPERS = frozenset({"module", "_orig_mod", "network", "model", "backbone", "encoder", "features"})
COLOURS = 3


def load_backbone(network: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Copy every tensor of `state` that fits into the network; the number of tensors copied.

    `state`: of the whole network, of its backbone or encoder, or of an ImageNet classifier on that backbone. The
    network keeps its own tensors if those outside the backbone differ in shape (a head for other classes). Weights for
    another number of bands: those for three are spread over all (see `spread`), others leave the first convolution, or
    several side by side, as they are.
    ValueError: no tensor fits, or the backbone would be filled only in part, as with another architecture.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {bare_name(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    offered = {name: given.get(bare_name(name)) for name in own}
    fits = [name for name in own if offered[name] is not None and offered[name].shape == own[name].shape]
    if not fits:
        raise ValueError(
            f"none of the {len(given)} pretrained tensors fits the network, by name and shape; "
            f"it wants {next(iter(own))} {_shape(own)} and is offered {next(iter(given), 'nothing')} {_shape(given)}"
        )
    first = next((name for name in own if own[name].ndim == 4 and name.endswith("weight")), None)  # no embedding
    bands = first and _other_bands(own[first], offered[first])
    of_pixels = [name for name in own if bands and _other_bands(own[name], offered[name]) == bands]
    _check_whole(own, offered, {*fits, *of_pixels})
    taken = {name: offered[name] for name in fits}
    if bands and bands[1] == COLOURS:
        taken |= {name: spread(offered[name], bands[0]) for name in of_pixels}
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    return len(taken)


def spread(weight_OIHW: Tensor, bands: int) -> Tensor:
    """(O, `bands`, k, k): a first convolution for red, green and blue made one for other bands, as timm does.

    The colours repeat as often as it takes, which suits images whose first bands are red, green and blue. They are
    scaled so that outputs keep their size; a single band gets their sum.
    """
    if bands == 1:
        return weight_OIHW.sum(1, keepdim=True)
    return weight_OIHW[:, torch.arange(bands) % COLOURS] * (COLOURS / bands)


def bare_name(name: str) -> str:
    """A tensor's name without the wrappers in front: `module.backbone.stem_0.weight` -> `stem.0.weight`.

    timm's encoders have stages_0 and features_conv0 where its classifiers have stages.0 and features.conv0.
    """
    return _unwrapped(_unwrapped(name).replace("_", "."))


def _unwrapped(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _check_whole(own: Mapping[str, Tensor], offered: Mapping[str, Tensor | None], fits: set[str]) -> None:
    """ValueError if a tensor of the backbone stays random: training would silently start from a broken backbone."""
    backbone = [name for name in own if _in_backbone(name)]
    missed = [name for name in backbone if name not in fits]
    if missed:
        found = offered[missed[0]]
        has = "lack it" if found is None else f"have {tuple(found.shape)}"
        raise ValueError(
            f"the pretrained weights fit only {len(backbone) - len(missed)} of the {len(backbone)} tensors of the "
            f"backbone: it wants {missed[0]} {tuple(own[missed[0]].shape)}, and they {has}; "
            "give weights of the same backbone"
        )


def _in_backbone(name: str) -> bool:
    wrappers = set(takewhile(WRAPPERS.__contains__, name.split(".")))
    return not wrappers.isdisjoint({"backbone", "encoder"})


def _other_bands(own: Tensor, offered: Tensor | None) -> tuple[int, int] | None:
    """The bands that a convolution takes and those it is offered for, if the two differ in nothing else."""
    if offered is None or min(own.ndim, offered.ndim) < 2 or own[:, :1].shape != offered[:, :1].shape:
        return None
    bands, of_offered = own.shape[1], offered.shape[1]
    return (bands, of_offered) if bands != of_offered else None


def _shape(tensors: Mapping[str, Tensor]) -> str:
    return str(tuple(next(iter(tensors.values())).shape)) if tensors else ""
