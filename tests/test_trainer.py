"""The training loop in one process without Ray: what it writes, what it continues from, what it refuses."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import png
from gloo import run_two
from models import write_model
from scene_sets import raster, write_scenes
from test_scalars import events
from torch import nn

from segray import inspection, publishing
from segray.datasets import large, open_dataset
from segray.errors import ModelError, SegrayError
from segray.inspection import inspect
from segray.learner import Learner
from segray.listing import list_files
from segray.metrics import confusion_matrix, scores
from segray.model_dir import load_network, read_description
from segray.networks import NETWORKS
from segray.publishing import Publisher
from segray.segmenter import Segmenter
from segray.settings import TrainSettings
from segray.storage import publish
from segray.synthetic import CLASSES, scene
from segray.trainer import CHECK_EVERY, run
from segray.training_job import Job, initial_network
from segray.training_state import (
    compared,
    finished,
    load_state,
    newest_state,
    read_history,
    read_run,
    save_state,
    write_run,
)
from segray.training_validation import Validated, Validation, joined, validate_part
from segray.uris import join
from segray.workers import Worker

EPOCHS = 3


def make_job(data: str, output: str, **changes: object) -> Job:
    """A small training of a few steps an epoch."""
    values = {"network": "encoder_decoder?width=8", "epochs": EPOCHS, "batch_size": 4, "crop": 32, "precision": "fp32"}
    settings = TrainSettings(**{"data": data, "output": output, **values, **changes})
    dataset = open_dataset(data)
    train, val = dataset.samples("train"), dataset.samples("val")
    found = inspect(dataset, train, settings, val=val)
    units = {"train": found.train(train, settings.reach), "val": found.val(val, settings.crop)}
    return Job(settings=settings, dataset=dataset, inspection=found, data="mark", **units)


def silent(report: dict) -> None:
    """Ignore the report."""


def run_job(job: Job, report: Callable[[dict], None] = silent) -> dict:
    """Train to the end; the last state."""
    run(job, Worker(), report=report)
    return load_state(job.settings.output, job.settings.epochs)


def history_of(output: str) -> list[dict]:
    """The rows of metrics.jsonl without what takes another time in each training."""
    times = ("samples_per_s", "data_wait_share", "stage_seconds", "seconds")
    return [{name: value for name, value in row.items() if name not in times} for row in read_history(output)]


def same(one: object, other: object) -> bool:
    """Whether two states are equal to the bit, but for the times in their history."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "history")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Interrupted(Exception):
    """Raised by a test in the middle of a training."""


@pytest.fixture
def job(labelled_folder: str, tmp_path: Path) -> Job:
    return make_job(labelled_folder, str(tmp_path / "trained"))


def test_a_training_writes_model_metrics_page_and_state(job: Job) -> None:
    reports = []
    masks = run_job(job, reports.append)["masks"]
    output = job.settings.output
    names = {file.uri.removeprefix(output + "/") for file in list_files(output)}
    assert names == {
        "model/model.json", "model/weights.safetensors", "metrics.jsonl", "report.html",
        *(f"tensorboard/events.out.tfevents.epoch-000{epoch}" for epoch in (1, 2, 3)),
        "state/epoch-0002.pt", "state/epoch-0003.pt",
    }  # fmt: skip
    history = read_history(output)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["step"] for row in history] == [job.steps, 2 * job.steps, 3 * job.steps]
    assert [row for row in reports if "val_miou" in row] == history
    assert all(list(row["val_iou"]) == list(job.dataset.classes.names) for row in history)
    assert all(0 <= row["data_wait_share"] <= 1 and row["seconds"] > 0 for row in history)
    assert finished(job.settings)
    assert set(masks) == {1, 2}  # shown on the page beside the last one
    assert all(set(titled) == {sample.key for sample in job.val} for titled in masks.values())
    assert {mask.dtype for titled in masks.values() for mask in titled.values()} == {torch.uint8}


def test_the_model_scores_what_validation_said(job: Job) -> None:
    run_job(job)
    description = read_description(job.settings.output + "/model")
    best = max(read_history(job.settings.output), key=lambda row: row["val_miou"])
    assert description.training["epoch"] == best["epoch"]
    assert description.training["settings"] == compared(job.settings)
    assert description.metrics["val_miou"] == best["val_miou"]
    assert (description.spec.tile, description.spec.overlap) == (32, 4)
    segmenter = Segmenter(load_network(description), description.spec, num_classes=len(description.classes))
    matrix = np.zeros((len(description.classes), len(description.classes) + 1), np.int64)
    for sample in job.val:
        labelled = job.read(sample)
        matrix += confusion_matrix(labelled.mask, segmenter.mask_image(labelled.pixels, labelled.valid), len(matrix))
    assert scores(matrix)["miou"] == best["val_miou"]


@pytest.mark.parametrize("network", ["encoder_decoder?width=8", "nano?width=8&reduce=2"])
def test_it_learns(labelled_folder: str, tmp_path: Path, network: str) -> None:
    output = str(tmp_path / "trained")
    job = make_job(labelled_folder, output, network=network, epochs=25, lr=0.01, augment="none", crop=48)
    run_job(job)
    history = read_history(job.settings.output)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["val_miou"] > 1.5 * history[0]["val_miou"]


RECIPE = {
    "network": "nano?width=8", "loss": "cross_entropy+dice", "class_weights": "inverse_sqrt", "optimizer": "sgd",
    "schedule": "one_cycle", "ema": 0.9, "photometric": 0.4, "accumulate": 2, "clip": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("recipe", [{}, RECIPE, {"ema": 0, "photometric": 0}])
@pytest.mark.parametrize(("last", "committed"), [("row", 1), ("loss", 2)])
def test_an_interrupted_training_ends_in_the_same_weights(
    labelled_folder: str, tmp_path: Path, last: str, committed: int, recipe: dict
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), **recipe)
    undisturbed = run_job(replace(job, settings=replace(job.settings, output=str(tmp_path / "other"))))
    seen = {"row": 0, "loss": 0}

    def interrupt(report: dict) -> None:
        kind = "row" if "val_miou" in report else "loss"
        seen[kind] += 1
        if kind == last and seen[kind] == {"row": 1, "loss": 3}[kind]:  # after the first epoch, or within the third
            raise Interrupted

    with pytest.raises(Interrupted):
        run_job(job, interrupt)
    assert newest_state(job.settings.output)[0] == committed
    assert same(run_job(job), undisturbed)


def dropping(num_classes: int, in_channels: int) -> nn.Module:
    """A network with randomness of its own."""
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, num_classes, 1))


def test_a_training_killed_within_an_epoch_continues_at_its_step(
    labelled_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "dropping", dropping)
    monkeypatch.setattr(Publisher, "busy", False)  # or no state would be saved while another is being saved
    recipe = {"network": "dropping", "batch_size": 2, "crop": 16, "save_minutes": 1e-9}
    job = make_job(labelled_folder, str(tmp_path / "trained"), **recipe)
    undisturbed = run_job(replace(job, settings=replace(job.settings, output=str(tmp_path / "other"))))
    assert job.steps > 4 * CHECK_EVERY
    reports = []

    def interrupt(report: dict) -> None:
        reports.append(report)
        if report["step"] == job.steps + 3 * CHECK_EVERY:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_job(job, interrupt)
    epoch, step = newest_state(job.settings.output)
    assert (epoch, step) == (1, 3 * CHECK_EVERY)
    continued = []
    assert same(run_job(job, continued.append), undisturbed)
    assert continued[0] == {"epoch": 1, "step": job.steps + step, "resumed": True}
    assert continued[1] == read_history(job.settings.output)[0]
    assert continued[2]["step"] == job.steps + step + CHECK_EVERY
    assert history_of(job.settings.output) == history_of(str(tmp_path / "other"))
    for epoch in (1, 2, 3):
        name = f"tensorboard/events.out.tfevents.epoch-000{epoch}"
        losses = [
            [(event.step, value.simple_value) for event in events(Path(output, name).read_bytes())
             for value in event.summary.value if value.tag == "step_loss"]
            for output in (job.settings.output, tmp_path / "other")
        ]  # fmt: skip
        assert losses[0] == losses[1] and len(losses[0]) == -(-job.steps // CHECK_EVERY)


def test_validated_elsewhere_a_training_writes_the_same(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run_job(replace(job, settings=replace(job.settings, output=str(tmp_path / "other"))))
    monkeypatch.setattr("segray.trainer.validate_part", None)  # the worker itself must validate nothing
    trained, begun, order = threading.Event(), [], []

    def elsewhere(job: Job, weights: dict[str, torch.Tensor], precision: str) -> Validation:
        network = job.network().eval()
        network.load_state_dict(weights)
        begun.append(network)

        def wait() -> Validated:
            assert trained.wait(60)  # until the next epoch's steps are done
            with ThreadPoolExecutor(1) as pool:
                place = {"device": torch.device("cpu"), "precision": precision, "pool": pool}
                parts = [validate_part(job, network, job.val[part::3], **place) for part in range(3)]
            return joined(job, parts)

        return wait

    def report(values: dict) -> None:
        kind = "row" if "val_miou" in values else "steps"
        order.append((kind, values["epoch"]))
        if order[-1] == ("steps", 2):
            trained.set()

    run(job, Worker(), report=report, elsewhere=elsewhere)
    assert len(begun) == EPOCHS
    assert order.index(("steps", 2)) < order.index(("row", 1)) < order.index(("row", 2)) < order.index(("row", 3))
    assert same(load_state(job.settings.output, EPOCHS), undisturbed)
    assert history_of(job.settings.output) == history_of(str(tmp_path / "other"))
    published = [read_description(join(output, "model")) for output in (job.settings.output, str(tmp_path / "other"))]
    assert published[0].metrics == published[1].metrics


def test_only_the_newest_states_are_kept(store: str) -> None:
    positions = [(1, 0), (1, 90), (1, 1000), (2, 0), (10, 0), (10, 5)]
    for number, (epoch, step) in enumerate(positions, 1):
        save_state(store, {"epoch": epoch, "step": step}, keep=3)
        assert newest_state(store) == (epoch, step)
        assert len(list(list_files(store))) == min(number, 3)
    assert load_state(store, 10) == {"epoch": 10, "step": 0}
    publish(join(store, "state", "epoch-0011.pt"), b"damaged")
    save_state(store, {"epoch": 10, "step": 6}, keep=1)
    assert newest_state(store) == (10, 6)
    assert len(list(list_files(store))) == 1


def test_weights_after_steps_in_parts_are_those_of_whole_steps(labelled_folder: str, tmp_path: Path) -> None:
    first = open_dataset(labelled_folder).samples("train")[0]
    Path(first.mask).write_bytes(png(np.full((96, 96), 255, np.uint8)))  # parts have unequal shares of void pixels
    recipe = {"loss": "cross_entropy+dice+lovasz", "class_weights": "inverse_log", "optimizer": "sgd"}
    whole, parts = (
        run_job(make_job(labelled_folder, str(tmp_path / str(accumulate)), **recipe, accumulate=accumulate))
        for accumulate in (1, 3)
    )
    for name, weights in whole["network"].items():
        assert torch.allclose(weights, parts["network"][name], rtol=0, atol=1e-6), name


def test_settings_reach_augmentation_loss_and_compiler(
    labelled_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append(module))
    changes = {"scale_range": "1:1.5", "class_weights": "inverse_sqrt", "compile": True}
    job = make_job(labelled_folder, str(tmp_path), **changes)
    assert job.augment().scale_range == (1.0, 1.5)
    weights, pixels = job.class_weights(), job.inspection.class_pixels
    assert weights.index(max(weights)) == pixels.index(min(pixels))
    learner = Learner(job, Worker())
    assert compiled == [learner.network]
    assert make_job(labelled_folder, str(tmp_path)).class_weights() is None


def test_the_model_is_the_average_of_the_weights_of_the_best_epoch(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    given, plain = iter([0.2, 0.5, 0.3]), publishing.scores
    monkeypatch.setattr(publishing, "scores", lambda matrix: {**plain(matrix), "miou": next(given)})
    state = run_job(job)
    description = read_description(job.settings.output + "/model")
    assert (description.training["epoch"], description.metrics["val_miou"]) == (2, 0.5)
    published = load_network(description).state_dict()
    assert same(dict(published), dict(load_state(job.settings.output, 2)["average"]))
    assert not any(same(dict(published), dict(state[name])) for name in ("network", "average"))  # the last epoch's
    assert not same(dict(state["network"]), dict(state["average"]))


def test_a_model_of_a_later_segray_is_not_taken_for_one_that_is_due(job: Job) -> None:
    run_job(job)
    source = Path(job.settings.output, "model", "model.json")
    later = json.dumps({**json.loads(source.read_text()), "format_version": 99})
    source.write_text(later)
    with pytest.raises(ModelError, match="has format version 99.*update segray"):
        finished(job.settings)
    assert source.read_text() == later


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
@pytest.mark.parametrize("scored", [[0.2, 0.5, 0.3], [0.2, 0.3, 0.5]])
def test_killed_before_its_model_is_whole_a_training_publishes_it_from_the_state(
    job: Job, monkeypatch: pytest.MonkeyPatch, scored: list[float], name: str
) -> None:
    given, plain, best = iter(scored), publishing.scores, scored.index(0.5) + 1
    monkeypatch.setattr(publishing, "scores", lambda matrix: {**plain(matrix), "miou": next(given)})

    def dying(uri: str, data: bytes) -> None:
        if uri.endswith(name) and newest_state(job.settings.output)[0] == best:
            raise Interrupted
        publish(uri, data)

    with patch("segray.model_dir.publish", dying), pytest.raises(Interrupted):
        run_job(job)
    assert newest_state(job.settings.output)[0] == best and not finished(job.settings)
    run_job(job)
    assert finished(job.settings)
    description = read_description(job.settings.output + "/model")
    assert (description.training["epoch"], description.metrics["val_miou"]) == (best, 0.5)
    published = load_network(description).state_dict()
    assert same(dict(published), dict(load_state(job.settings.output, best)["average"]))


def test_pretrained_weights_are_fetched_at_the_beginning_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], Job.network

    def network(job: Job, *, pretrained: bool = True) -> nn.Module:
        asked.append(pretrained)
        return plain(job, pretrained=pretrained)

    monkeypatch.setattr(Job, "network", network)
    for _ in range(2):
        run_job(job)
    assert asked == [True, False]


def work(rank: int, folder: Path) -> None:
    """One of two workers that train."""
    job = torch.load(folder / "job.pt", weights_only=False)
    run(job, Worker(rank=rank, world_size=2), report=silent)


def test_killed_while_it_is_validated_elsewhere_a_training_continues_at_the_end_of_the_epoch(
    job: Job, tmp_path: Path
) -> None:
    undisturbed = run_job(replace(job, settings=replace(job.settings, output=str(tmp_path / "other"))))

    def elsewhere(*_: object) -> Validation:
        def wait() -> Validated:
            raise Interrupted

        return wait

    with pytest.raises(Interrupted):
        run(job, Worker(), report=silent, elsewhere=elsewhere)
    assert newest_state(job.settings.output) == (0, job.steps)
    assert read_history(job.settings.output) == []
    reports = []
    assert same(run_job(job, reports.append), undisturbed)
    assert reports[0] == {"epoch": 0, "step": job.steps, "resumed": True}
    assert [row["epoch"] for row in reports if "val_miou" in row] == [1, 2, 3]
    assert history_of(job.settings.output) == history_of(str(tmp_path / "other"))


def work_and_fail(rank: int, folder: Path) -> None:
    """One of two workers whose validation, done elsewhere, fails."""
    job = torch.load(folder / "job.pt", weights_only=False)

    def elsewhere(*_: object) -> Validation:
        def wait() -> Validated:
            raise SegrayError("a mask holds the id 77")

        return wait

    with pytest.raises(SegrayError, match="id 77"):
        run(job, Worker(rank=rank, world_size=2), report=silent, elsewhere=elsewhere)
    (folder / f"ended-{rank}").touch()


def test_an_error_of_a_validation_elsewhere_ends_all_workers(labelled_folder: str, tmp_path: Path) -> None:
    recipe = {"batch_size": 2, "crop": 16, "save_minutes": 1e-9}  # a state is due when the error arrives
    job = make_job(labelled_folder, str(tmp_path / "trained"), **recipe)
    assert job.steps > 4 * CHECK_EVERY
    torch.save(job, tmp_path / "job.pt")
    run_two(work_and_fail, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("ended-*")) == ["ended-0", "ended-1"]
    assert newest_state(job.settings.output)[0] == 0


def work_without_list(rank: int, folder: Path) -> None:
    """One of two workers of which the first may not list the states."""

    def newest(output: str) -> None:
        raise SegrayError("may not be listed")

    with patch("segray.trainer.newest_state", newest), pytest.raises(SegrayError, match="may not be listed"):
        work(rank, folder)
    (folder / f"ended-{rank}").touch()


def test_states_that_cannot_be_listed_end_all_workers(job: Job, tmp_path: Path) -> None:
    torch.save(job, tmp_path / "job.pt")
    run_two(work_without_list, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("ended-*")) == ["ended-0", "ended-1"]


def test_a_publication_that_fails_ends_the_training_soon(
    labelled_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(output: str, history: list[dict]) -> None:
        raise OSError(errno.EIO, "the disk does not answer")

    monkeypatch.setattr("segray.publishing.write_history", fail)
    job = make_job(labelled_folder, str(tmp_path / "trained"), batch_size=1, crop=16, epochs=2)
    assert job.steps > 4 * CHECK_EVERY
    steps = []

    def report(values: dict) -> None:
        steps.append(values["step"])
        time.sleep(0.05)  # time in which the publication fails

    with pytest.raises(OSError, match="the disk does not answer"):
        run_job(job, report)
    assert job.steps <= max(steps) < job.steps + 4 * CHECK_EVERY


def test_too_little_memory_for_validation_is_a_sentence(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def validate(*of: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("segray.training_validation.validate", validate)
    with pytest.raises(SegrayError, match="validation ran out of GPU memory; lower --crop"):
        run_job(job)


def test_two_workers_take_the_steps_of_one_with_batch_norm(labelled_folder: str, tmp_path: Path) -> None:
    first = open_dataset(labelled_folder).samples("train")[0]
    Path(first.mask).write_bytes(png(np.full((96, 96), 255, np.uint8)))  # workers see unequal shares of void pixels
    recipe = {"network": "nano?width=4", "loss": "cross_entropy+dice", "optimizer": "sgd", "accumulate": 2, "epochs": 2}
    one = make_job(labelled_folder, str(tmp_path / "one"), batch_size=7, **recipe)  # 4 crops and 3
    alone = run_job(one)
    two = replace(one, settings=replace(one.settings, output=str(tmp_path / "two")))
    torch.save(two, tmp_path / "job.pt")
    run_two(work, tmp_path)
    shared = load_state(two.settings.output, 2)
    for kind in ("network", "average"):
        for name, values in alone[kind].items():
            assert torch.allclose(values, shared[kind][name], rtol=1e-4, atol=1e-4), name
    titles = [sample.key for sample in one.val]
    assert [list(masks) for state in (alone, shared) for masks in state["masks"].values()] == [titles] * 2
    for row, other in zip(read_history(one.settings.output), read_history(two.settings.output), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_damaged_state_is_passed_over(job: Job) -> None:
    undisturbed = run_job(job)
    newest = Path(job.settings.output, "state", f"epoch-{EPOCHS:04d}.pt")
    part = newest.read_bytes()[:1000]
    for damaged in (b"", b"\x80\x02.", b"\x80\x02X\x05.", part):
        newest.write_bytes(damaged)
        assert newest_state(job.settings.output)[0] == EPOCHS - 1
    reports = []
    assert same(run_job(job, reports.append), undisturbed)
    assert reports[0] == {"epoch": EPOCHS - 1, "step": (EPOCHS - 1) * job.steps, "resumed": True}


def test_metrics_that_were_lost_are_written_again_from_the_state(job: Job) -> None:
    run_job(job)
    history = read_history(job.settings.output)
    metrics = Path(job.settings.output, "metrics.jsonl")
    metrics.write_text(metrics.read_text()[:-9])
    with pytest.raises(SegrayError, match=r"metrics.jsonl is damaged: .*; remove it, and run the same command again"):
        finished(job.settings)
    metrics.unlink()
    assert not finished(job.settings)
    run_job(job)
    assert read_history(job.settings.output) == history
    assert finished(job.settings)


def test_a_loss_that_is_no_number_ends_the_training(labelled_folder: str, tmp_path: Path) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), lr=1e30)
    with pytest.raises(SegrayError, match=r"no longer finite at step \d+ .*lower --lr"):
        run_job(job)
    assert newest_state(job.settings.output)[0] == 0


def test_validation_without_a_label_has_no_score_and_the_last_epoch_is_the_model(job: Job) -> None:
    for sample in job.val:
        Path(sample.mask).write_bytes(png(np.full((96, 96), 255, np.uint8)))
    run_job(job)
    assert [row["val_miou"] for row in read_history(job.settings.output)] == [None] * EPOCHS
    assert read_description(job.settings.output + "/model").training["epoch"] == EPOCHS


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unknown_id_is_an_error_that_names_the_file(job: Job, split: str) -> None:
    mask = getattr(job, split)[-1].mask
    Path(mask).write_bytes(png(np.full((96, 96), 77, np.uint8)))
    with pytest.raises(SegrayError, match=rf"{split}/masks/\S+ holds the id 77"):
        run_job(job)


@pytest.mark.parametrize("network", ["deeplabv3_mobilenet_v3_large", "smp/unet/resnet18"])
def test_a_batch_too_small_for_batchnorm_is_an_error_with_advice(
    labelled_folder: str, tmp_path: Path, network: str
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), network=network, batch_size=1, epochs=1)
    with pytest.raises(SegrayError, match="a batch of 1 leaves .* at least 2 images a step .*--batch_size"):
        run_job(job)


def test_a_large_scene_is_trained_on_and_validated_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"LARGE_PIXELS": 5000, "PIECE_SIDE": 48, "CROPS_A_SIDE": 1, "ALIGNED": 16}
    for name, value in names.items():
        monkeypatch.setattr(large, name, value)
    monkeypatch.setattr(inspection, "BLOCK_PIXELS", 2000)
    image, mask = scene(5, 120, 150)
    files = {}
    for split in ("train", "val"):
        files |= {f"{split}/images/a.tif": raster(image.transpose(2, 0, 1)), f"{split}/labels/a.tif": raster(mask)}
    data = write_scenes(str(tmp_path / "data"), files, classes=CLASSES.to_json())
    job = make_job(data, str(tmp_path / "out"), epochs=2, batch_size=8, balance=0.5)
    assert len(job.train) > 5 and len(job.val) > 5
    assert (job.order(1)[:, 1] >= 0).any()
    run_job(job)
    description = read_description(job.settings.output + "/model")
    best = max(read_history(job.settings.output), key=lambda row: row["val_miou"])
    segmenter = Segmenter(load_network(description), description.spec, num_classes=len(description.classes))
    labelled = job.read(job.dataset.samples("val")[0])
    whole = confusion_matrix(labelled.mask, segmenter.mask_image(labelled.pixels, labelled.valid), len(CLASSES))
    assert scores(whole)["miou"] == best["val_miou"]


def test_everything_works_on_a_store_without_folders(write_folder: Callable[[str], str]) -> None:
    job = make_job(write_folder("memory://trainer/data"), "memory://trainer/out", epochs=1)
    write_run(job.settings, job.data, asdict(job.inspection))
    run_job(job)
    assert finished(job.settings)
    assert json.loads(json.dumps(asdict(job.inspection))) == read_run(job.settings, job.data)["inspection"]
    assert read_run(replace(job.settings, overwrite=True), job.data) is None
    assert read_description("memory://trainer/out/model").training["epoch"] == 1


@pytest.mark.parametrize(
    ("changes", "data", "sentence"),
    [
        ({"lr": 0.5}, "mark", r"--lr was 0\.001 and is 0\.5"),
        ({"bands": (0,), "seed": 3}, "mark", r"--bands was None and is \[0\]; --seed was 0 and is 3"),
        ({}, "other", r"the data have changed \(names, sizes or times of their files, or the legend\)"),
    ],
)
def test_another_training_is_refused_on_the_same_output(job: Job, changes: dict, data: str, sentence: str) -> None:
    write_run(job.settings, job.data, asdict(job.inspection))
    other = replace(job.settings, **changes)
    with pytest.raises(SegrayError, match=sentence + "; start afresh with --overwrite"):
        read_run(other, data)
    assert read_run(replace(other, overwrite=True), data) is None
    free = {"num_workers": "3", "validators": 2, "max_failures": 9, "keep": 5, "save_minutes": 1}
    same_steps = replace(job.settings, **free, mlflow="http://h", wandb="p")
    assert read_run(same_steps, job.data)["data"] == "mark"


def test_starting_afresh_discards_what_a_training_left_and_nothing_else(job: Job) -> None:
    run_job(job)
    keep = Path(job.settings.output, "notes.txt")
    keep.write_text("mine")
    with pytest.raises(SegrayError, match="not the state of its training"):
        write_run(job.settings, job.data, asdict(job.inspection))
    write_run(replace(job.settings, overwrite=True), job.data, asdict(job.inspection))
    assert [file.uri.removeprefix(job.settings.output) for file in list_files(job.settings.output)] == [
        "/notes.txt",
        "/state/run.json",
    ]


@pytest.mark.parametrize("left", [[], [".run.json.0123456789abcdef0123456789abcdef.tmp"]])
def test_killed_while_it_writes_its_first_file_a_training_begins_anew(job: Job, left: list[str]) -> None:
    folder = Path(job.settings.output, "state")
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).write_text("{")
    assert read_run(job.settings, job.data) is None
    write_run(job.settings, job.data, asdict(job.inspection))
    assert read_run(job.settings, job.data)["data"] == job.data


@pytest.mark.parametrize("name", ["model", "model/weights.safetensors"])
def test_the_weights_to_start_from_are_not_overwritten(job: Job, name: str) -> None:
    write_run(job.settings, job.data, asdict(job.inspection))
    afresh = replace(job.settings, overwrite=True)
    assert read_run(replace(afresh, weights="ResNet18_Weights.DEFAULT"), job.data) is None
    with pytest.raises(SegrayError, match=f"--overwrite would discard --weights {job.settings.output}/{name}"):
        read_run(replace(afresh, weights=f"{job.settings.output}/{name}"), job.data)


@pytest.mark.parametrize("name", ["model/net.py", "model/old/model.json", "state/a.csv", "tensorboard/notes.txt"])
def test_what_no_training_wrote_is_not_overwritten(job: Job, name: str) -> None:
    afresh = replace(job.settings, overwrite=True)
    run_job(job)
    assert read_run(afresh, job.data) is None
    mine = Path(job.settings.output, name)
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(SegrayError, match=f"{mine} is of no training, so nothing is overwritten"):
        read_run(afresh, job.data)


def test_an_earlier_model_is_trained_further(labelled_folder: str, tmp_path: Path) -> None:
    job = make_job(labelled_folder, str(tmp_path / "first"))
    run_job(job)
    uri = str(tmp_path / "first" / "model")
    learned = load_network(read_description(uri)).state_dict()
    further = make_job(labelled_folder, str(tmp_path / "second"), weights=uri, lr=1e-5, epochs=1)
    assert (further.spec.mean, further.spec.std) == (job.spec.mean, job.spec.std)
    start = further.network().state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in learned.items())
    run_job(further)
    best = max(row["val_miou"] for row in read_history(job.settings.output))
    assert read_history(further.settings.output)[0]["val_miou"] == pytest.approx(best, abs=0.05)

    sizes = {"bands": len(job.spec.bands), "classes": len(job.dataset.classes)}
    other = initial_network(further.settings, **{**sizes, "classes": 7}).state_dict()
    new = {name for name, tensor in learned.items() if tensor.shape != other[name].shape}
    assert new == {list(learned)[-2], list(learned)[-1]}  # the last layer, and it alone
    assert all(torch.equal(other[name], tensor) for name, tensor in learned.items() if name not in new)

    wider = replace(further.settings, network="encoder_decoder?width=16")
    with pytest.raises(SegrayError, match=r"another network; give --network 'encoder_decoder\?width=8'"):
        initial_network(wider, **sizes)
    program = replace(further.settings, weights=write_model(str(tmp_path / "program")))
    with pytest.raises(SegrayError, match="program is an exported program, which cannot be trained further"):
        initial_network(program, **sizes)
