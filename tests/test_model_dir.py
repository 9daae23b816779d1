"""Model directories: what is saved is loaded to the bit, on every store; damage and attacks are refused."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import shutil
from collections import OrderedDict
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from segray.errors import ModelError
from segray.inputs import InputSpec
from segray.listing import list_files
from segray.masks import Classes
from segray.model_dir import (
    Description,
    check_weights,
    load_network,
    load_state,
    read_description,
    save_model,
    write_temperature,
)
from segray.networks import build_network
from segray.storage import publish, read_bytes
from segray.store_errors import StoreError
from segray.uris import join

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = InputSpec(
    bands=(3, 0, 1), scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), tile=64, overlap=16, resolution=0.5
)
CLASSES = Classes(names=("ground", "Straße"), colors=((0, 0, 0), (255, 0, 9)))
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("unet", {"width": 8}, num_classes=2, in_channels=3).eval()


def description(uri: str) -> Description:
    return Description(
        uri=uri, network={"name": "unet", "options": {"width": 8}}, classes=CLASSES, spec=SPEC,
        metrics={"miou": 0.1 + 0.2}, training={"epochs": 3},
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path) -> str:
    uri = str(tmp_path / "model")
    save_model(description(uri), network())
    return uri


def edit(uri: str, **changes: object) -> str:
    """model.json with some keys replaced; None removes one."""
    document = {**json.loads(read_bytes(join(uri, "model.json"))), **changes}
    kept = {key: value for key, value in document.items() if value is not None}
    publish(join(uri, "model.json"), json.dumps(kept).encode())
    return uri


def test_what_is_saved_is_loaded_to_the_bit(store):
    original = network()
    save_model(description(store), original)
    loaded = read_description(store)
    weights = read_bytes(join(store, "weights.safetensors"))
    both = hashlib.sha256(read_bytes(join(store, "model.json")) + weights).hexdigest()
    assert loaded == replace(description(store), digest=both, weights_sha256=hashlib.sha256(weights).hexdigest())
    assert (loaded.spec, loaded.network_name) == (SPEC, "unet")
    assert len(list(list_files(store))) == 2
    rebuilt = load_network(loaded)
    assert not rebuilt.training
    with torch.no_grad():
        assert torch.equal(rebuilt(X), original(X))


def test_the_digest_changes_with_either_file_and_with_nothing_else(saved, tmp_path):
    digests = [read_description(saved).digest]
    assert read_description(shutil.copytree(saved, tmp_path / "copy").as_posix()).digest == digests[0]
    digests.append(read_description(edit(saved, training={"epochs": 4})).digest)
    save_model(description(saved), network(seed=1))
    digests.append(read_description(saved).digest)
    assert len(set(digests)) == 3


def test_a_temperature_is_written_beside_all_else(store):
    save_model(description(store), network())
    plain = read_description(store)
    assert plain.temperature == 1.0
    before = json.loads(read_bytes(join(store, "model.json")))
    publish(join(store, "model.json"), json.dumps({**before, "note": "by hand"}).encode())
    tempered = write_temperature(read_description(store), 1.25)
    after = json.loads(read_bytes(join(store, "model.json")))
    assert after == {**before, "note": "by hand", "temperature": 1.25}
    assert "temperature" not in before
    assert tempered == replace(plain, temperature=1.25, digest=tempered.digest)
    assert len(list(list_files(store))) == 2
    again = write_temperature(tempered, 2.0)
    assert len({plain.digest, tempered.digest, again.digest}) == 3
    with torch.no_grad():
        assert torch.equal(load_network(again)(X), network()(X))
    save_model(again, network())
    assert read_description(store).temperature == 2.0


def test_a_temperature_of_another_model_is_not_written(saved):
    read = read_description(saved)
    save_model(description(saved), network(seed=1))
    with pytest.raises(ModelError, match=r"model\.json or its weights changed meanwhile"):
        write_temperature(read, 1.25)
    assert read_description(saved).temperature == 1.0


def test_a_model_that_cannot_be_written(saved, monkeypatch):
    def refuse(uri: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", uri)

    read = read_description(saved)
    monkeypatch.setattr("segray.model_dir.publish", refuse)
    with pytest.raises(ModelError, match=r"cannot be written: .*; calibrate a copy of the model"):
        write_temperature(read, 1.25)


def test_a_store_that_fails_is_no_fault_of_a_model(saved, monkeypatch):
    def fail(*args: object) -> None:
        raise StoreError("the store answers 503: Slow Down")

    read = read_description(saved)
    monkeypatch.setattr("segray.model_dir.publish", fail)
    with pytest.raises(StoreError, match="503"):
        write_temperature(read, 1.25)
    monkeypatch.setattr("segray.model_dir.read_bytes", fail)
    for load in (lambda: load_network(read), lambda: load_state(read.weights_uri)):
        with pytest.raises(StoreError, match="503"):
            load()


def write_by_hand(uri: str) -> str:
    """A directory made without segray: model.json as documented, and weights."""
    document = {
        "format_version": 1,
        "network": {"name": "unet", "options": {"width": 8}},
        "classes": [{"id": 0, "name": "ground", "color": [0, 0, 0]}, {"id": 1, "name": "house", "color": [255, 0, 0]}],
        "ignore_index": 255,
        "input": {
            "bands": [0, 1, 2], "scale": 0.00392, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
            "tile": 64, "overlap": 16, "resolution": None,
        },
        "metrics": {"miou": 0.7},
        "training": {"settings": {}, "data": "sha", "versions": {}},
    }  # fmt: skip
    publish(join(uri, "model.json"), json.dumps(document).encode())
    publish(join(uri, "weights.safetensors"), save_tensors(network().state_dict()))
    return uri


def test_a_directory_written_by_hand(store):
    loaded = read_description(write_by_hand(store))
    assert loaded.spec.bands == (0, 1, 2)
    assert loaded.spec.resolution is None
    assert loaded.classes.names == ("ground", "house")
    with torch.no_grad():
        assert torch.equal(load_network(loaded)(X), network()(X))


def test_only_what_is_needed_must_be_there(tmp_path):
    uri = write_by_hand(str(tmp_path))
    edit(uri, metrics=None, training=None, ignore_index=None, network={"name": "unet", "options": {"width": 8}})
    assert read_description(uri).metrics == {}
    legend = json.loads(read_bytes(join(uri, "model.json")))["classes"]
    edit(uri, ignore_index=7, classes=[*legend, {"id": 7, "name": "unlabelled", "color": [1, 2, 3]}])
    assert (len(read_description(uri).classes), read_description(uri).classes.ignore_index) == (2, 7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format_version": 2}, "format version 2, but this segray reads up to 1; update segray"),
        ({"format_version": None}, "the key 'format_version' is missing"),
        ({"format_version": "1"}, "cannot be used: format_version should be the number 1, not '1'$"),
        ({"network": None}, "the key 'network' is missing"),
        ({"network": {}}, "network should be"),
        ({"network": {"name": None}}, "network should be"),
        ({"network": "unet"}, "cannot be used"),
        ({"network": {"program": "../../etc/passwd"}}, "network should be"),
        ({"network": {"name": "unet", "options": 5}}, "options of the network"),
        ({"network": {"program": "program.pt2"}}, "its weights or program does not exist"),
        ({"classes": [{"id": 1, "name": "a", "color": [0, 0, 0]}]}, "class ids must be 0, 1, 2"),
        (
            {"classes": [{"id": 0, "name": "a", "color": [0, 0, 0]}], "network": {"program": "program.pt2"}},
            "only one class; give the background a class",
        ),
        ({"classes": 5}, "cannot be used"),
        ({"ignore_index": 0}, "cannot be used|class ids"),
        ({"temperature": 0}, "temperature should be a positive number, not 0"),
        ({"temperature": -1.5}, "temperature should be a positive number"),
        ({"temperature": "warm"}, "temperature should be a positive number, not 'warm'"),
        ({"temperature": float("nan")}, "temperature should be a positive number"),
        ({"input": {}}, "cannot be used"),
        ({"input": {"bands": [0], "scale": 1, "mean": [0], "std": [0]}}, "must be positive"),
        ({"input": {"bands": ["red"], "scale": 1, "mean": [0], "std": [1]}}, "bands must be 0-based band numbers"),
        ({"input": {"bands": [0], "scale": 1, "mean": [math.nan], "std": [1]}}, "must be finite numbers"),
        ({"input": {"bands": [0], "scale": 1, "mean": [[0]], "std": [1]}}, "must be finite numbers"),
        ({"input": {"bands": [0], "scale": math.inf, "mean": [0], "std": [1]}}, "must be finite numbers"),
        (
            {"input": {"bands": [0], "scale": 1, "mean": [0], "std": [1], "resolution": [2]}},
            "resolution must be metres",
        ),
        ({"input": {"bands": [0], "scale": 1, "mean": [0], "std": [1], "resolution": 0}}, "resolution must be metres"),
        ({"input": {"bands": [0], "scale": 1, "mean": [0], "std": [1], "tile": 8, "overlap": 5}}, "overlap must be"),
        ({"input": {"bands": [0], "scale": 1, "mean": [0], "std": [1], "stride": 8}}, "stride"),
    ],
)
def test_wrong_descriptions_are_refused(saved, changes, sentence):
    with pytest.raises(ModelError, match=sentence) as caught:
        read_description(edit(saved, **changes))
    assert saved in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'"text"', b"[" * 10**5])
def test_damaged_descriptions_are_refused(saved, text):
    publish(join(saved, "model.json"), text)
    with pytest.raises(ModelError, match=r"model\.json cannot be used"):
        read_description(saved)


def test_a_missing_directory(store):
    with pytest.raises(ModelError, match=r"is no model directory: .*model\.json does not exist; give the OUTPUT/model"):
        read_description(store)


def test_a_file_in_place_of_the_directory(saved):
    with pytest.raises(ModelError, match=r"model\.json is no folder; give the OUTPUT/model of a training"):
        read_description(join(saved, "model.json"))


def test_damaged_weights_are_refused(saved):
    uri = join(saved, "weights.safetensors")
    good = read_bytes(uri)
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    for bad in (flipped, good[:-10], good[: len(good) // 2], b""):
        publish(uri, bad)
        with pytest.raises(ModelError, match="is damaged: its sha256"):
            read_description(saved)
    edit(saved, weights_sha256=None)
    for bad in (good[:-10], good[:5], b"", b"garbage" * 99):
        publish(uri, bad)
        with pytest.raises(ModelError, match=r"does not fit its model\.json"):
            load_network(read_description(saved))
    os.remove(uri)
    with pytest.raises(ModelError, match="its weights or program does not exist"):
        read_description(saved)


@pytest.mark.parametrize(
    "network_of_json",
    [
        {"name": "unet", "options": {"width": 16}}, {"name": "nosuch", "options": {}},
        {"name": "unet", "options": {"nosuch": 1}}, {"name": ["unet"], "options": {}},
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(saved, network_of_json):
    with pytest.raises(ModelError, match=r"does not fit its model\.json") as caught:
        load_network(read_description(edit(saved, network=network_of_json)))
    assert len(str(caught.value)) < 600


class Evil:
    """Pickles to a call that makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def test_pretrained_weights_in_every_form(store):
    state = network().state_dict()
    forms = {
        "a.safetensors": save_tensors(state), "a.pth": torch_saved(state), "b.pth": torch_saved({"state_dict": state}),
        "c.pt": torch_saved({"model": OrderedDict(state), "epoch": 3}),
        "d.pt": torch_saved({"model_state_dict": state, "model": {"name": "unet"}}),
        "e.pt": torch_saved({"net": state}), "f.pt": torch_saved({"state": state, "epoch": 3}),
        "old.pth": torch_saved(state, _use_new_zipfile_serialization=False),
    }  # fmt: skip
    for name, data in forms.items():
        publish(join(store, name), data)
        loaded = load_state(join(store, name))
        assert set(loaded) == set(state)
        assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.bin"])
def test_wrong_weights_are_refused_and_never_executed(tmp_path, name):
    trap = tmp_path / "executed"
    good = torch_saved(network().state_dict())
    contents = [
        torch_saved({"a": Evil(str(trap))}), torch_saved({"a": Evil(str(trap))}, _use_new_zipfile_serialization=False),
        b"", b"garbage", good[:100], good[:-100], torch_saved(torch.zeros(2)), torch_saved([1, 2]),
        b"\x80\x02.", b"\x80\x02X\x05.", b"PK\x03\x04",
    ]  # fmt: skip
    for content in contents:
        publish(str(tmp_path / name), content)
        with pytest.raises(ModelError, match="neither a file of weights nor a torchvision name"):
            load_state(str(tmp_path / name))
        assert not trap.exists()


@pytest.mark.parametrize("layout", [True, False])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(1), r"numpy\.\S+\.scalar"),
        (nn.Conv2d(1, 1, 1), r"torch\.nn\.modules\.conv\.Conv2d"),
        (Evil("nowhere"), r"\w+\.mkdir"),
    ],
)
def test_python_objects_beside_tensors_are_named_in_one_sentence(tmp_path, value, named, layout):
    path = tmp_path / "x.pth"
    saved = {"state_dict": network().state_dict(), "extra": value}
    path.write_bytes(torch_saved(saved, _use_new_zipfile_serialization=layout))
    with pytest.raises(ModelError, match=rf"Python objects beside tensors \({named}\), .*; save its tensors") as caught:
        load_state(str(path))
    assert len(str(caught.value)) < 300 + len(str(path))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(("value", "keys"), [({"epoch": 3, "optimizer": {}}, "but epoch, optimizer;"), ({}, "nothing")])
def test_a_file_without_tensors_says_what_it_holds(tmp_path, value, keys):
    (tmp_path / "x.pth").write_bytes(torch_saved(value))
    with pytest.raises(ModelError, match=f"x.pth holds no tensors by name, .* {keys}"):
        load_state(str(tmp_path / "x.pth"))


def test_the_output_of_a_training_is_no_file_of_weights_but_holds_a_model(store):
    save_model(description(join(store, "model")), network())
    with pytest.raises(ModelError, match=f"output of a training; give the model in it, {join(store, 'model')}$"):
        load_state(store)


@pytest.mark.parametrize(
    "name", ["nosuch.pth", "NoSuch_Weights.DEFAULT", "ResNet18_Weights.NOPE", "plain", "s3", "a/b.c.d", "os.system"]
)
def test_unknown_names_of_weights(name):
    with pytest.raises(ModelError, match="neither a file of weights nor a torchvision name"):
        load_state(name)
    with pytest.raises(ModelError, match="neither a file of weights nor a torchvision name"):
        check_weights(name)


def test_weights_that_may_be_used_pass_the_first_check(tmp_path):
    publish(str(tmp_path / "b.pth"), b"weights")
    for name in (str(tmp_path), str(tmp_path / "b.pth"), "ResNet18_Weights.DEFAULT"):
        check_weights(name)


def test_without_a_network_it_is_said_what_to_download(tmp_path, monkeypatch):
    def no_network(*args: object) -> None:
        raise URLError(OSError(101, "Network is unreachable"))

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(ModelError, match=r"cannot be downloaded: .*unreachable.*; fetch https://.*/resnet18-\w+\.pth "):
        load_state("ResNet18_Weights.DEFAULT")


def test_a_torchvision_name_comes_from_the_cache_and_is_never_executed(tmp_path, monkeypatch):
    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    publish(str(cached), torch_saved({"fc.weight": torch.arange(3.0)}))
    assert load_state("ResNet18_Weights.DEFAULT")["fc.weight"].tolist() == [0, 1, 2]
    publish(str(cached), torch_saved({"a": Evil(str(tmp_path / "executed"))}))
    with pytest.raises(ModelError, match="never executed"):
        load_state("ResNet18_Weights.DEFAULT")
    assert not (tmp_path / "executed").exists()
