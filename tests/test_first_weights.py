"""--weights imagenet: a backbone's published weights come from its library's cache, with the moments they expect."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import segmentation_models_pytorch
import timm
import torch
import torchvision
from safetensors.torch import save_file
from test_trainer import make_job, run_job

from segray.errors import ModelError, SegrayError
from segray.first_weights import IMAGENET_MEAN, IMAGENET_STD, check_first_weights, first_moments, first_weights
from segray.networks.published import Moments
from segray.settings import TrainSettings
from segray.training_job import initial_network

VALUE = 0.25  # that no initialisation gives
OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def settings(network: str, **others: object) -> TrainSettings:
    return TrainSettings(**{"data": "none", "output": "none", "network": network, "weights": "imagenet", **others})


def filled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.full_like(tensor, VALUE) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a network, and the caches of its libraries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def publish_at_hub(cache: Path, repository: str, revision: str, state: dict[str, torch.Tensor]) -> None:
    """What downloading weights and their config.json from the hub leaves in its cache."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    save_file(state, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps(OWN))


def test_an_encoder_of_the_library(cache: Path, labelled_folder: str, tmp_path: Path) -> None:
    encoders = segmentation_models_pytorch.encoders
    published = encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    state = filled(encoders.get_encoder("resnet18").state_dict())
    publish_at_hub(cache, published["repo_id"], published["revision"], state)
    job = make_job(
        labelled_folder, str(tmp_path / "trained"), network="smp/fpn/resnet18", weights="imagenet", epochs=1, crop=64
    )
    assert (job.spec.mean, job.spec.std) == (tuple(OWN["mean"]), tuple(OWN["std"]))
    encoder = job.network().network.encoder.state_dict()
    assert all((tensor == VALUE).all() for name, tensor in encoder.items() if tensor.is_floating_point())
    assert run_job(job)["epoch"] == 1


@pytest.mark.parametrize(
    ("network", "encoder", "moments"),
    [
        ("smp/fpn/tu-convnext_atto?decoder_dropout=0.5", "convnext_atto", (IMAGENET_MEAN, IMAGENET_STD)),
        ("smp/dpt/tu-test_vit", "test_vit", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ],
)
def test_an_encoder_of_timm(cache: Path, network: str, encoder: str, moments: Moments) -> None:
    state = filled(timm.create_model(encoder).state_dict())
    publish_at_hub(cache, timm.models.get_pretrained_cfg(encoder).hf_hub_id, "1" * 40, state)
    start = initial_network(settings(network), bands=3, classes=2).network.encoder.state_dict()
    assert all((tensor == VALUE).all() for tensor in start.values())
    assert first_moments(settings(network), bands=3, scale=1 / 255) == moments


@pytest.fixture
def file(cache: Path) -> Path:
    """Where torchvision keeps the weights of a MobileNet."""
    place = cache / "hub" / "checkpoints" / torchvision.models.MobileNet_V3_Large_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    place.parent.mkdir(parents=True)
    return place


def test_a_backbone_of_torchvision(file: Path) -> None:
    torch.save(filled(torchvision.models.mobilenet_v3_large().state_dict()), file)
    chosen = settings("lraspp_mobilenet_v3_large")
    backbone = initial_network(chosen, bands=3, classes=2).backbone.state_dict()
    assert all((tensor == VALUE).all() for tensor in backbone.values() if tensor.is_floating_point())
    assert first_moments(chosen, bands=3, scale=1 / 255) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("content", [b"<html>a proxy's page</html>", b"", b"PK\x03\x04"])
def test_a_damaged_download_is_a_sentence(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for weights, name in (("imagenet", "--weights imagenet"), ("MobileNet_V3_Large_Weights.DEFAULT",) * 2):
        chosen = settings("lraspp_mobilenet_v3_large", weights=weights)
        with pytest.raises(
            ModelError, match=f"^{name} cannot be downloaded: .*; fetch https://.*{file.name}"
        ) as caught:
            first_weights(chosen)
        assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(("bands", "scale"), [(4, 1 / 255), (3, 1 / 65535), (3, 1.0)])
def test_other_images_keep_their_own_moments(bands: int, scale: float) -> None:
    assert first_moments(settings("smp/unet/resnet18"), bands=bands, scale=scale) is None


@pytest.mark.parametrize(
    ("network", "place"),
    [
        ("smp/unet/resnet18", "https://huggingface.co/smp-hub/resnet18.imagenet/resolve/main/model.safetensors"),
        ("smp/unet/tu-resnet18", "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"),
    ],
)
def test_without_a_network_it_is_said_what_to_download(cache: Path, network: str, place: str) -> None:
    check_first_weights(settings(network))
    with pytest.raises(ModelError, match=f"--weights imagenet cannot be downloaded: .*; fetch {place} where"):
        first_weights(settings(network))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("unet", "network unet has no weights from ImageNet; .*smp have them"),
        ("smp/unet/resnext101_32x16d", "no weights from ImageNet, only instagram, ssl, swsl"),
        ("smp/unet/mit_b0", "NVIDIA Source Code License"),
        ("smp/unet/tu-convnextv2_atto", "are under cc-by-nc-4.0; .*allow_noncommercial=true"),
        ("smp/unet/tu-test_nothing", "timm has no pretrained weights for test_nothing"),
    ],
)
def test_networks_without_such_weights(network: str, sentence: str) -> None:
    with pytest.raises(SegrayError, match=sentence):
        check_first_weights(settings(network))


def test_terms_may_be_accepted() -> None:
    check_first_weights(settings("smp/unet/tu-convnextv2_atto?allow_noncommercial=true"))
