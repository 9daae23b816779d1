"""Networks by name: NETWORKS = {name: builder}. A new family needs one small file and its entries here.

A builder is called with num_classes, in_channels and the network's own options, and returns a module that maps float
(N, C, H, W) to logits (N, K, H, W) for any H, W >= 1 px. In train mode a network with an auxiliary head returns
{"out": logits, "aux": logits}; in eval mode every network returns the tensor alone.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from segray.networks import encoder_decoder, nano, smp, torchvision_nets, unet
from segray.networks.pretrained import load_backbone
from segray.networks.published import Published

__all__ = ["NETWORKS", "build_network", "load_backbone", "parse_network", "published"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "encoder_decoder": encoder_decoder.build,
    "unet": unet.build,
    "nano": nano.build,
    "fcn_resnet50": torchvision_nets.fcn_resnet50,
    "deeplabv3_resnet50": torchvision_nets.deeplabv3_resnet50,
    "deeplabv3_mobilenet_v3_large": torchvision_nets.deeplabv3_mobilenet_v3_large,
    "lraspp_mobilenet_v3_large": torchvision_nets.lraspp_mobilenet_v3_large,
    "smp": smp.build,
}
# The weights from ImageNet of the networks that have some: called with a network's options.
PUBLISHED: dict[str, Callable[..., Published]] = {
    "fcn_resnet50": lambda: torchvision_nets.published("ResNet50_Weights.DEFAULT"),
    "deeplabv3_resnet50": lambda: torchvision_nets.published("ResNet50_Weights.DEFAULT"),
    "deeplabv3_mobilenet_v3_large": lambda: torchvision_nets.published("MobileNet_V3_Large_Weights.DEFAULT"),
    "lraspp_mobilenet_v3_large": lambda: torchvision_nets.published("MobileNet_V3_Large_Weights.DEFAULT"),
    "smp": smp.published,
}


def build_network(name: str, options: Mapping[str, object], *, num_classes: int, in_channels: int) -> nn.Module:
    """The network of that name with random weights; ValueError, with the known ones, on an unknown name or option."""
    _check_name(name)
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes and in_channels must be at least 1, but are {num_classes} and {in_channels}")
    _check_options(name, options)
    try:
        return NETWORKS[name](num_classes=num_classes, in_channels=in_channels, **options)
    except (RuntimeError, TypeError) as error:  # of torch, with a trace of its own below the first line
        reason = str(error).partition("\n")[0]
        raise ValueError(f"network {name} cannot be built with the options {dict(options)}: {reason}") from error


def published(name: str, options: Mapping[str, object]) -> Published:
    """The weights from ImageNet for that network's backbone; ValueError if there are none. Downloads nothing yet."""
    if name not in PUBLISHED:
        raise ValueError(f"network {name} has no weights from ImageNet; {', '.join(PUBLISHED)} have them")
    return PUBLISHED[name](**options)


def parse_network(text: str) -> tuple[str, dict[str, object]]:
    """`unet?width=32` -> ("unet", {"width": 32}); `smp/ARCHITECTURE/ENCODER` names a network of the smp family.

    Values are read as int, float, true / false, or text, whichever fits first. ValueError: unknown name, wrong syntax.
    """
    path, _, query = text.partition("?")
    name, *parts = path.split("/")
    _check_name(name)
    if parts and (name != "smp" or len(parts) != 2 or not all(parts)):
        raise ValueError(f"network {path!r} is not understood; write NAME, or smp/ARCHITECTURE/ENCODER")
    options: dict[str, object] = dict(zip(("architecture", "encoder"), parts, strict=False))
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not key or not equals or key in options:
            raise ValueError(f"network {text!r} is not understood at {pair!r}; write NAME?option=value&option=value")
        options[key] = _value(value)
    return name, options


def _check_name(name: str) -> None:
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}{_known(name, NETWORKS)}")


def _check_options(name: str, options: Mapping[str, object]) -> None:
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)  # checks its options itself
    defaults = {option.name: option.default for option in parameters if option.default is not option.empty}
    for key, value in options.items():
        if key not in defaults and not takes_any:
            raise ValueError(f"network {name} has no option {key!r}{_known(key, defaults)}")
        # type(), not isinstance: True is an int, and width=true is a mistake
        if key in defaults and type(value) is not type(defaults[key]):
            wanted = type(defaults[key]).__name__
            raise ValueError(f"option {key} of network {name} is {value!r}, but must be of type {wanted}")


def _known(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest one, if any is close, and all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    suggestion = f", did you mean {close[0]!r}?" if close else ";"
    return f"{suggestion} known: {', '.join(names) or 'none'}"


def _value(text: str) -> object:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
