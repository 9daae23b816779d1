"""smp: the architectures and encoders of segmentation_models_pytorch, an extra: pip install 'segray[smp]'."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection
from types import ModuleType

import torch
from torch import Tensor, nn

from segray.networks.any_size import pad_to_multiple
from segray.networks.published import Moments, Published

# Encoders whose source is under other terms: prefix -> terms. The rest of the library is MIT, timm is Apache-2.0.
RESTRICTED = {
    "mit_": "the NVIDIA Source Code License, which allows non-commercial use only",
    "mobileone_": "Apple's own licence, not an open-source one",
}
IMAGENET = "imagenet"  # as the library calls it
# Of weights, as timm writes them; older versions of timm write none where it is Apache-2.0.
OPEN_LICENCES = {None, "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}
# What the builder sets itself: weights are neither downloaded nor read (timm would unpickle the file `checkpoint_path`,
# and options may come from a model's file), and a network returns logits only.
SETTLED = {
    "self", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip
# What H and W must be, in strides of the encoder: (a multiple of, at least). dpt halves its last feature map once more,
# pan does so three times; all others take any multiple of the stride.
SIZES = {"dpt": (2, 2), "pan": (1, 8)}


class AnySize(nn.Module):
    """A network of the library that takes any H, W >= 1 px: input padded as it needs, logits cropped back.

    multiple, least: what H and W of the network's own input must be a multiple of, and at least, in pixels.
    """

    def __init__(self, network: nn.Module, *, multiple: int, least: int) -> None:
        super().__init__()
        self.network = network
        network.requires_divisible_input_shape = False  # ensured here; the library's check cannot be traced
        self.multiple = multiple
        self.least = least

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K, H, W) of the input's H and W."""
        height, width = x_NCHW.shape[-2:]
        return self.network(pad_to_multiple(x_NCHW, self.multiple, least=self.least))[..., :height, :width]


def build(
    *,
    num_classes: int,
    in_channels: int,
    architecture: str = "unet",
    encoder: str = "resnet34",
    allow_noncommercial: bool = False,
    **options: object,
) -> nn.Module:
    """A network of the library with random weights; `options` are keywords of its architecture's class.

    ValueError: the library is missing, a name or an option is unknown, the encoder takes images of one size only, or it
    is under restricted terms and allow_noncommercial is not set.
    """
    _check_licence(encoder, allow_noncommercial)
    library = _library()
    _check_names(library, architecture, encoder, options)
    if architecture == "dpt":
        options.setdefault("dynamic_img_size", True)  # else its transformer takes images of only one size
    try:
        network = library.create_model(
            architecture, encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes, **options
        )
        stride = int(network.encoder.output_stride)
        multiple, least = (strides * stride for strides in SIZES.get(architecture, (1, 1)))
        sized = AnySize(network, multiple=multiple, least=least)
        _freeze_unused(sized, in_channels=in_channels)
    except (RuntimeError, TypeError, KeyError, AssertionError) as error:  # unknown value, or takes one size only
        given = ", ".join(f"{name}={value}" for name, value in options.items()) or "no options"
        reason = " ".join(str(error).split())
        raise ValueError(f"smp/{architecture}/{encoder} cannot be made with {given}: {reason}") from error
    return sized


def published(
    *, architecture: str = "unet", encoder: str = "resnet34", allow_noncommercial: bool = False, **options: object
) -> Published:
    """The encoder's weights from ImageNet; those of timm's encoders are under the tag in their name, else its default.

    ValueError: there are none, or they are under restricted terms and allow_noncommercial is not set.
    """
    _check_licence(encoder, allow_noncommercial)
    library = _library()
    encoders = library.encoders
    if encoder.startswith("tu-"):
        place, weights = _place_at_timm(encoder.removeprefix("tu-"), allow_noncommercial), True
    else:
        settings = encoders.encoders[encoder]["pretrained_settings"]
        if IMAGENET not in settings:
            raise ValueError(f"encoder {encoder} has no weights from ImageNet, only {', '.join(settings) or 'random'}")
        place, weights = _file_of(settings[IMAGENET]["repo_id"]), IMAGENET

    def load() -> dict[str, Tensor]:  # by the architecture, since dpt takes encoders that get_encoder does not
        return library.create_model(architecture, encoder, encoder_weights=weights, **options).encoder.state_dict()

    def moments() -> Moments:
        found = encoders.get_preprocessing_params(encoder, pretrained=IMAGENET)
        return tuple(found["mean"]), tuple(found["std"])

    return Published(place, load, moments)


def _place_at_timm(name: str, allow_noncommercial: bool) -> str:
    from timm.models import get_pretrained_cfg, is_model_pretrained

    if not is_model_pretrained(name):
        raise ValueError(
            f"timm has no pretrained weights for {name}; give an encoder with others, or leave --weights out"
        )
    about = get_pretrained_cfg(name)
    if about.license not in OPEN_LICENCES and not allow_noncommercial:
        raise ValueError(
            f"the weights of {name} are under {about.license}; choose another encoder, or accept their terms with the "
            "option allow_noncommercial=true"
        )
    return _file_of(about.hf_hub_id) if about.hf_hub_id else about.url


def _file_of(repository: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/main/model.safetensors"


def _check_licence(encoder: str, allow_noncommercial: bool) -> None:
    for prefix, terms in RESTRICTED.items():
        if encoder.startswith(prefix) and not allow_noncommercial:
            raise ValueError(
                f"encoder {encoder} is under {terms}; choose another one, or accept its terms with the option "
                "allow_noncommercial=true"
            )


def _check_names(library: ModuleType, architecture: str, encoder: str, options: dict[str, object]) -> None:
    architectures = library.MODEL_ARCHITECTURES_MAPPING
    _check_known("architecture", architecture, architectures)
    from_timm = encoder.startswith("tu-")  # has its own keywords, which timm checks
    if ":" in encoder or "/" in encoder:  # hf-hub:NAME, local-dir:PATH: timm would fetch or read those
        raise ValueError(f"encoder {encoder!r} names a place; give the name of an architecture, such as tu-resnet18")
    if not from_timm:
        _check_known("encoder", encoder, library.encoders.encoders)
    settings = set(inspect.signature(architectures[architecture]).parameters) - SETTLED
    for name in options:
        if not from_timm or name in SETTLED:
            _check_known("option", name, settings)


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        names = f"close: {', '.join(close)}" if close else f"known: {', '.join(sorted(known))}"
        raise ValueError(f"segmentation_models_pytorch has no {kind} {name!r}; {names}")


def _freeze_unused(network: AnySize, *, in_channels: int) -> None:
    """Freeze the parameters that no logit depends on (pspnet's last stages): data-parallel training waits for them.

    They are found with one backward pass, in eval mode: no statistics and no random numbers change.
    """
    training = network.training
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        logits_NKHW = network.eval()(torch.zeros(1, in_channels, 2 * network.multiple, 2 * network.multiple))
        gradients = torch.autograd.grad(logits_NKHW.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    network.train(training)


def _library() -> ModuleType:
    try:
        import segmentation_models_pytorch
    except ModuleNotFoundError as error:
        raise ValueError("networks of the smp family need an extra: pip install 'segray[smp]'") from error
    return segmentation_models_pytorch
