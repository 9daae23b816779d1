"""What is special on a GPU: masks of the image and the model alone, and training that learns and resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_programs import exported
from test_segmenter import K, adversary, detailed, mosaic, scene, spec
from test_trainer import Interrupted, make_job, silent
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segray.batch_norm import synchronise
from segray.fusing import ConvReLU
from segray.inference import Inference
from segray.losses import LOSSES
from segray.networks import NETWORKS, build_network
from segray.programs import load_program
from segray.regions import whole_image
from segray.segmenter import Segmenter
from segray.trainer import run
from segray.training_state import load_state, read_history
from segray.workers import Worker

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


@pytest.mark.parametrize("blend", ["taper", "crop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_do_not_depend_on_windows_and_shards(blend: str, precision: str) -> None:
    pixels, valid = scene()
    options = {"blend": blend, "precision": precision, "device": GPU, "batch_size": 4}
    whole, total = mosaic(adversary(**options), pixels, valid, window=1000, shard_pixels=10**9)
    assert len(np.unique(whole)) == K + 1
    for window, shard_pixels in ((13, 4000), (32, 1), (50, 10**9)):
        cut, summed = mosaic(adversary(**options), pixels, valid, window=window, shard_pixels=shard_pixels)
        assert (cut == whole).all()
        assert summed == total


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_of_a_network_are_those_of_a_cpu(precision: str, compiled: bool) -> None:
    torch.manual_seed(0)
    network = build_network("unet", {"width": 16}, num_classes=K, in_channels=3)
    pixels, valid = scene(300, 200)
    options = {"num_classes": K, "blend": "taper"}
    expected, _ = mosaic(Segmenter(network, spec(), **options), pixels, valid, window=64, shard_pixels=64**2)
    segmenter = Segmenter(network, spec(), **options, device=GPU, precision=precision, batch_size=8, compiled=compiled)
    found, total = mosaic(segmenter, pixels, valid, window=64, shard_pixels=64**2)
    assert (found == expected).mean() > (0.995 if precision == "fp32" else 0.9)
    again, summed = mosaic(segmenter, pixels, valid, window=100, shard_pixels=10**9)
    assert (again == found).all()
    assert summed == total


@pytest.mark.parametrize("tta", ["flip", "d4"])
def test_views_of_tiles_give_the_masks_of_a_cpu(tta: str) -> None:
    torch.manual_seed(0)
    network = build_network("nano", {"width": 16}, num_classes=K, in_channels=3)
    pixels, valid = scene(90, 70)
    options = {"num_classes": K, "tta": tta, "blend": "crop"}
    expected = Segmenter(network, spec(), **options).mask_image(pixels, valid)
    found = Segmenter(network, spec(), **options, device=GPU, batch_size=4).mask_image(pixels, valid)
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_program_gives_the_masks_of_its_network(precision: str, decomposed: bool) -> None:
    torch.manual_seed(0)
    network = build_network("unet", {"width": 16}, num_classes=K, in_channels=3).eval()
    shapes = {0: torch.export.Dim("batch")}
    program = load_program(exported(network, shapes, torch.zeros(2, 3, 32, 32), decomposed=decomposed), source="x.pt2")
    pixels, valid = scene(90, 70)
    options = {"num_classes": K, "device": GPU, "precision": precision, "batch_size": 4}
    expected, found = (Segmenter(each, spec(), **options).mask_image(pixels, valid) for each in (network, program))
    assert (found == expected).mean() > (0.99 if precision == "fp32" else 0.9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["unet", "nano"])
def test_convolutions_that_apply_their_relu_give_the_same(name: str, precision: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, {}, num_classes=K, in_channels=3)
    inference = Inference(network, device=GPU, precision=precision)
    x = torch.randn(2, 3, 128, 96, device=GPU)
    found = inference(x).float()
    fused = [module for module in inference.network.modules() if isinstance(module, ConvReLU)]
    assert any(module.at_once for module in fused)
    for module in fused:
        module.at_once = False
    expected = inference(x).float()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_fused_convolution_passes_on_what_is_no_number() -> None:
    """NaN must come through, so that a network that yields it is noticed."""
    fused = ConvReLU(nn.Conv2d(8, 8, 3, padding=1)).to(GPU, torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(1, 8, 32, 32, device=GPU, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    x[0, :, 16, 16] = torch.nan
    assert fused(x).isnan().sum() == 8 * 9
    assert fused.at_once


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32])
def test_pixels_of_any_type_reach_the_device(kind: type) -> None:
    pixels, valid = scene(70, 50)
    masks = [adversary(device=device, batch_size=2).mask_image(pixels.astype(kind), valid) for device in ("cpu", GPU)]
    assert (masks[0] == masks[1]).mean() > 0.999


def test_small_images_and_details_are_those_of_a_cpu() -> None:
    pixels, valid = scene(30, 31)
    results = {}
    for device in ("cpu", GPU):
        segmenter = adversary(detailed=True, sampled=True, batch_size=4, blend="crop", device=device, temperature=1.7)
        results[device] = [found for (found,) in segmenter.segment([whole_image(pixels, valid)] * 6)]
    for one, other in zip(*results.values()):
        assert (one.mask == other.mask).mean() > 0.999
        assert np.abs(one.confidences.astype(int) - other.confidences.astype(int)).mean() < 50  # of 65,535
        assert (one.sampled.rows == other.sampled.rows).all()
    cut = detailed(*scene(120, 90), window=13, shard_pixels=4000, device=GPU, batch_size=4)
    whole = detailed(*scene(120, 90), window=1000, shard_pixels=10**9, device=GPU, batch_size=4)
    assert (cut[0] == whole[0]).all() and (cut[2] == whole[2]).all()


@pytest.mark.parametrize("loss", [*LOSSES, "cross_entropy+0.5*lovasz"])
def test_every_loss_trains(loss: str, labelled_folder: str, tmp_path: Path) -> None:
    job = make_job(
        labelled_folder, str(tmp_path / "out"), network="unet?width=16&depth=3", precision="bf16", loss=loss,
        epochs=12, crop=64, photometric=0.3, lr=3e-3,
    )  # fmt: skip
    run(job, Worker(device=GPU), report=silent)
    history = read_history(job.settings.output)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert max(row["val_miou"] for row in history) > 0.3


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_a_step(name: str, labelled_folder: str, tmp_path: Path) -> None:
    network = {"smp": "smp/unet/resnet18"}.get(name, name)
    if name == "smp":
        pytest.importorskip("segmentation_models_pytorch")
    job = make_job(labelled_folder, str(tmp_path / "out"), network=network, precision="bf16", epochs=1, crop=64)
    run(job, Worker(device=GPU), report=silent)
    assert np.isfinite(read_history(job.settings.output)[-1]["loss"])


def test_a_compiled_training_learns(labelled_folder: str, tmp_path: Path) -> None:
    job = make_job(labelled_folder, str(tmp_path / "out"), precision="bf16", compile=True, epochs=12, lr=0.01)
    run(job, Worker(device=GPU), report=silent)
    history = read_history(job.settings.output)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_an_interrupted_training_continues(labelled_folder: str, tmp_path: Path) -> None:
    jobs = [make_job(labelled_folder, str(tmp_path / name), network="nano?width=16", crop=64) for name in "ab"]

    def stop(report: dict) -> None:
        if report.get("epoch") == 2 and "val_miou" in report:
            raise Interrupted

    run(jobs[0], Worker(device=GPU), report=silent)
    with pytest.raises(Interrupted):
        run(jobs[1], Worker(device=GPU), report=stop)
    run(jobs[1], Worker(device=GPU), report=silent)
    whole, resumed = (load_state(job.settings.output, job.settings.epochs) for job in jobs)
    assert [row["epoch"] for row in resumed["history"]] == [1, 2, 3]
    for name, tensor in whole["network"].items():
        torch.testing.assert_close(resumed["network"][name].float(), tensor.float(), rtol=0.05, atol=0.02)


def test_distributed_parts_work_with_nccl(tmp_path: Path) -> None:
    """With one process: NCCL refuses two on one GPU."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        network = build_network("nano", {"width": 16}, num_classes=K, in_channels=3)
        network = synchronise(network, gpu=True).to(GPU, memory_format=torch.channels_last)
        parallel = DistributedDataParallel(network, device_ids=[0], gradient_as_bucket_view=True)
        x = torch.randn(4, 3, 64, 64, device=GPU).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            outputs = parallel(x)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["out"]
        logits.float().square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
        assert Worker(device=GPU).all_agree(True)
    finally:
        dist.destroy_process_group()
