"""Model directories: model.json and weights.safetensors (or program.pt2), saved and loaded on any store.

Reading the description needs no torch, so that a driver that only plans stays small.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from segray.errors import ModelError, SegrayError, TornModelError
from segray.inputs import InputSpec
from segray.masks import IGNORE, Classes
from segray.storage import exists, opened, publish, read_bytes
from segray.store_errors import StoreError, at_fault, describe
from segray.uris import join

if TYPE_CHECKING:
    import torch
    from torch import nn

Found = TypeVar("Found")
FORMAT_VERSION = 1
# what decoding broken bytes raises, torch's unpickler included, and what reading broken files raises
GARBLED = (
    EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip
DAMAGE = (OSError, *GARBLED)
STATES = ("state_dict", "model_state_dict", "model", "net", "state")  # where checkpoints keep a network's tensors
SAVE_TENSORS = "save its tensors alone with torch.save(model.state_dict(), PATH)"
WEIGHTS, PROGRAM = "weights.safetensors", "program.pt2"
OF_A_JOB = ("band_names", "scale_given")  # what flags say about the images of one job, not about the network


@dataclass(frozen=True, kw_only=True)
class Description:
    """What model.json says.

    network: {"name", "options"} or {"program": "program.pt2"}. temperature: what logits are divided by to get
    confidences (see `write_temperature`). digest: see `read_description`.
    """

    uri: str
    network: dict
    classes: Classes
    spec: InputSpec
    metrics: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    temperature: float = 1.0
    digest: str = ""
    weights_sha256: str | None = None

    @property
    def network_name(self) -> str:
        """For people: the network's name, or that of its program."""
        return self.network.get("name") or self.network["program"]

    @property
    def weights_uri(self) -> str:
        """The file that holds the weights or the program."""
        return join(self.uri, self.network.get("program", WEIGHTS))


def save_model(description: Description, network: nn.Module) -> None:
    """Write a model directory: weights, then the model.json that has their sha256, each in one atomic step."""
    save_weights(description, network.state_dict())


def save_weights(description: Description, state: dict[str, torch.Tensor]) -> None:
    """As `save_model`; state: the network's state_dict."""
    from safetensors.torch import save

    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    document = {
        "format_version": FORMAT_VERSION,
        "network": description.network,
        "classes": description.classes.to_json(),
        "ignore_index": IGNORE,
        "input": {name: value for name, value in asdict(description.spec).items() if name not in OF_A_JOB},
        "metrics": description.metrics,
        "training": description.training,
        **({} if description.temperature == 1.0 else {"temperature": description.temperature}),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    publish(description.weights_uri, weights)
    publish(join(description.uri, "model.json"), json.dumps(document, indent=1).encode())


def read_description(uri: str) -> Description:
    """The description of a model directory; its digest is the sha256 over model.json and the weights or program.

    ModelError with the fix when the directory is missing, damaged, or of a later format version.
    """
    source = join(uri, "model.json")
    try:
        text = read_bytes(source)
        document = json.loads(text)
        if not isinstance(version := document["format_version"], int):
            raise ValueError(f"format_version should be the number {FORMAT_VERSION}, not {version!r}")
        if version > FORMAT_VERSION:
            raise ModelError(
                f"{source} has format version {version}, but this segray reads up to {FORMAT_VERSION}; update segray"
            )
        description = _parse(uri, document)
        weights_sha256, digest = _digests(text, description.weights_uri)
    except FileNotFoundError as error:
        missing = source if not exists(source) else "its weights or program"
        raise TornModelError(
            f"{uri} is no model directory: {missing} does not exist; give the OUTPUT/model of a training"
        ) from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, SegrayError) as error:
        if isinstance(error, ModelError):
            raise
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else describe(error)
        if isinstance(error, NotADirectoryError):
            reason = f"{uri} is no folder; give the OUTPUT/model of a training"
        raise at_fault(error, ModelError)(f"{source} cannot be used: {reason}") from error
    if description.weights_sha256 not in (None, weights_sha256):
        raise TornModelError(
            f"{description.weights_uri} is damaged: its sha256 is not the one in model.json; copy it anew, or run the "
            f"training again"
        )
    return replace(description, digest=digest)


def write_temperature(description: Description, temperature: float) -> Description:
    """Set only `temperature` in a model's model.json, in one atomic step; returns the new description.

    This changes the digest, so anything segmented before counts as another model's. ModelError when the directory has
    changed since it was read, or cannot be written.
    """
    source = join(description.uri, "model.json")
    if read_description(description.uri).digest != description.digest:
        raise ModelError(f"{source} or its weights changed meanwhile; calibrate the model once nothing else writes it")
    document = {**json.loads(read_bytes(source)), "temperature": temperature}
    try:
        publish(source, json.dumps(document, indent=1).encode())
    except StoreError:
        raise
    except OSError as error:
        raise ModelError(f"{source} cannot be written: {describe(error)}; calibrate a copy of the model") from error
    return read_description(description.uri)


def load_network(description: Description) -> nn.Module:
    """The network of a model directory with its weights, in eval mode; ModelError when the two do not match.

    Nothing in the files is executed: weights are safetensors, programs are searched first (see `programs`). Errors of a
    failing store are passed on, as by `load_state` and `write_temperature`.
    """
    if "program" in description.network:
        return _load_program(description)
    from safetensors import SafetensorError
    from safetensors.torch import load

    from segray.networks import build_network

    network = description.network
    try:
        built = build_network(
            network["name"],
            network.get("options", {}),
            num_classes=len(description.classes),
            in_channels=len(description.spec.bands),
        )
        built.load_state_dict(load(read_bytes(description.weights_uri)))
    except StoreError:
        raise
    except (SafetensorError, *DAMAGE) as error:
        reason = describe(error)[:300]
        raise ModelError(f"{description.weights_uri} does not fit its model.json: {reason}") from error
    return built.eval()


def fetched(name: str, place: str, fetch: Callable[[], Found]) -> Found:
    """What a library fetches from `place`; ModelError when it cannot be downloaded, or what came is damaged."""
    from safetensors import SafetensorError

    try:
        return fetch()
    except (SafetensorError, *DAMAGE) as error:
        raise ModelError(
            f"{name} cannot be downloaded: {_reason(error)}; fetch {place} where there is a network, and give the file "
            "as --weights"
        ) from error


def earlier_model(weights: str) -> Description | None:
    """The model whose directory or weights file is at that path or URI; None if `weights` means something else."""
    uri = weights.removesuffix(f"/{WEIGHTS}")
    return read_description(uri) if exists(join(uri, "model.json")) else None


def check_weights(uri: str) -> None:
    """ModelError when pretrained weights are neither there nor known to torchvision. Reads and downloads nothing."""
    from torchvision.models import get_weight

    try:
        if not exists(uri):
            get_weight(uri)
    except GARBLED as error:
        reason = describe(error)
        raise ModelError(f"{uri} is neither a file of weights nor a torchvision name for one: {reason}") from error


def load_state(uri: str) -> dict[str, torch.Tensor]:
    """Pretrained weights by path or URI (safetensors, or what torch.save wrote), or by torchvision's name for them.

    A name such as ResNet50_Weights.IMAGENET1K_V2 is downloaded. ModelError when it is neither, or holds no tensors, or
    Python objects beside them.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from segray.networks.torchvision_nets import published

    try:
        if not exists(uri):
            named = published(uri)
            return fetched(uri, named.place, named.load)
        data = read_bytes(uri)
        if uri.endswith(".safetensors"):
            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not tensors by name")
    except (ModelError, StoreError):
        raise
    except (SafetensorError, SegrayError, *DAMAGE) as error:
        reason = _reason(error)
        if isinstance(error, (IsADirectoryError, FileNotFoundError)) and exists(join(uri, "model", "model.json")):
            reason = f"it is the output of a training; give the model in it, {join(uri, 'model')}"
        raise ModelError(f"{uri} is neither a file of weights nor a torchvision name for one: {reason}") from error
    for key in STATES:
        state = state[key] if isinstance(state.get(key), dict) else state
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, state))[:200] or "nothing"
        raise ModelError(f"{uri} holds no tensors by name, nor under {', '.join(STATES)}, but {keys}; {SAVE_TENSORS}")
    return tensors


def _reason(error: Exception) -> str:
    """Why weights cannot be read, without torch's advice to execute the file anyway."""
    if not isinstance(error, pickle.UnpicklingError):
        return describe(error).rstrip(".")
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not found:
        return "it is damaged, or not what torch.save wrote"
    return f"it holds Python objects beside tensors ({found[1]}), which are never executed; {SAVE_TENSORS}"


def _parse(uri: str, document: dict) -> Description:
    source = join(uri, "model.json")
    spec = {name: tuple(value) if isinstance(value, list) else value for name, value in document["input"].items()}
    network = document["network"]
    if network.get("program", PROGRAM) != PROGRAM or not (network.get("name") or "program" in network):
        raise ValueError(f'network should be {{"name", "options"}} or {{"program": "{PROGRAM}"}}, not {network}')
    if not isinstance(network.get("options", {}), dict):
        raise ValueError(f"the options of the network should be values by name, not {network['options']!r}")
    classes = Classes.from_json(document["classes"], document.get("ignore_index", IGNORE), source=source)
    # a network with a sigmoid has one logit, and its masks would be that class everywhere
    if "program" in network and len(classes) == 1:
        raise ValueError("it has only one class; give the background a class, and a logit: torch.cat([0 * x, x], 1)")
    return Description(
        uri=uri,
        network=network,
        classes=classes,
        spec=InputSpec(**spec),
        metrics=document.get("metrics", {}),
        training=document.get("training", {}),
        temperature=_temperature(document.get("temperature", 1.0)),
        weights_sha256=document.get("weights_sha256"),
    )


def _temperature(value: object) -> float:
    if not isinstance(value, (int, float)) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"temperature should be a positive number, not {value!r}")
    return float(value)


def _digests(text: bytes, weights_uri: str) -> tuple[str, str]:
    """sha256 of the weights, and of model.json followed by the weights, read in pieces."""
    weights, both = hashlib.sha256(), hashlib.sha256(text)
    with opened(weights_uri) as file:
        while piece := file.read(2**22):
            weights.update(piece)
            both.update(piece)
    return weights.hexdigest(), both.hexdigest()


def _load_program(description: Description) -> nn.Module:
    from segray.programs import load_program

    spec, source = description.spec, description.weights_uri
    program = load_program(read_bytes(source), source=source)
    for what, taken, wanted in (
        ("bands", program.in_channels, len(spec.bands)),
        ("rows", program.height, spec.tile),
        ("columns", program.width, spec.tile),
    ):
        if taken not in (None, wanted):
            raise ModelError(
                f"{source} takes {taken} {what}, but model.json says {wanted}; correct bands or tile in it"
            )
    return program
