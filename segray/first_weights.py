"""What `--weights` gives a training to start from: an earlier model, a file or a name of weights, or `imagenet`.

Importing this file does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from segray.errors import SegrayError
from segray.model_dir import check_weights, earlier_model, fetched, load_state
from segray.settings import TrainSettings
from segray.train_settings import IMAGENET

if TYPE_CHECKING:
    from torch import Tensor

    from segray.networks.published import Moments, Published

# of ImageNet in 0..1, used to train pretrained backbones: https://pytorch.org/vision/stable/models.html
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def check_first_weights(settings: TrainSettings) -> None:
    """SegrayError when there are no such weights. Reads and downloads nothing."""
    if settings.weights == IMAGENET:
        _published(settings)
    elif settings.weights:
        check_weights(settings.weights)


def first_weights(settings: TrainSettings) -> Mapping[str, Tensor]:
    """Their tensors by name; SegrayError when there are none, or they are of an earlier model with another network."""
    from segray.networks import parse_network

    if settings.weights == IMAGENET:
        published = _published(settings)
        return fetched(f"--weights {IMAGENET}", published.place, published.load)
    earlier = earlier_model(settings.weights)
    if earlier and "program" in earlier.network:
        raise SegrayError(
            f"{earlier.uri} is an exported program, which cannot be trained further; give other --weights"
        )
    name, options = parse_network(settings.network)
    if earlier and earlier.network != {"name": name, "options": options}:
        spelled = earlier.training.get("settings", {}).get("network", earlier.network)
        raise SegrayError(
            f"the model {earlier.uri} has another network; give --network {spelled!r}, or other --weights"
        )
    return load_state(earlier.weights_uri if earlier else settings.weights)


def first_moments(settings: TrainSettings, *, bands: int, scale: float) -> Moments | None:
    """(mean, std) of what they saw: the earlier model's input, or ImageNet's; None if the images differ from that.

    They differ if they have another number of bands or another `scale`, hence another type of pixel.
    """
    colour = (bands, scale) == (3, 1 / 255)
    if settings.weights == IMAGENET:
        published = _published(settings)
        return fetched(f"--weights {IMAGENET}", published.place, published.moments) if colour else None
    earlier = earlier_model(settings.weights)
    if earlier is None:
        return (IMAGENET_MEAN, IMAGENET_STD) if colour else None
    spec = earlier.spec
    return (spec.mean, spec.std) if (len(spec.bands), spec.scale) == (bands, scale) else None


def _published(settings: TrainSettings) -> Published:
    from segray.networks import parse_network, published

    try:
        return published(*parse_network(settings.network))
    except ValueError as error:
        raise SegrayError(str(error)) from error
