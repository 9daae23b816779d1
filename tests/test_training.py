"""Training on a real local Ray: several workers, and workers and drivers that are killed."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from conftest import png
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from running import ROOT, wait_for
from test_trainer import history_of, make_job, run_job, same

import segray.cluster
import segray.training
from segray.cluster import check_there, cores_each, share_of_node
from segray.command_line import BAD_INPUT
from segray.datasets import open_dataset
from segray.errors import SegrayError
from segray.inspection import fingerprint
from segray.listing import list_files
from segray.settings import TrainSettings
from segray.store_errors import FINAL_ERRORS
from segray.tracking import Tracking
from segray.training import _Deaths, _shown, train
from segray.training_console import Console
from segray.training_job import Job
from segray.training_remote import Board
from segray.training_state import finished, load_state, newest_state, read_history, write_run
from segray.validators import Validators


def processes_of(actor: str) -> list[int]:
    """The process ids in this test's Ray of actors of that class."""
    import psutil  # comes with Ray, and can be imported once Ray is

    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended in between
            if actor in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def test_two_workers_take_the_steps_of_one(local_ray: str, labelled_folder: str, tmp_path: Path) -> None:
    first = open_dataset(labelled_folder).samples("train")[0]
    Path(first.mask).write_bytes(png(np.full((96, 96), 255, np.uint8)))  # workers see unequal shares of void pixels
    for kind in ("images", "masks"):
        Path(labelled_folder, "val", kind, "s1.png").unlink()  # fewer images than workers
    one = make_job(labelled_folder, str(tmp_path / "one"), batch_size=5)  # 3 crops and 2
    alone = run_job(one)
    two = replace(one.settings, output=str(tmp_path / "two"), num_workers="1:2")
    train(two)
    shared = load_state(two.output, two.epochs)
    for name, weights in alone["network"].items():
        assert torch.allclose(weights, shared["network"][name], rtol=0, atol=1e-5), name
    for row, other in zip(read_history(one.settings.output), read_history(two.output), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["val_miou"] == pytest.approx(other["val_miou"], abs=1e-3)
    after = {file.uri: file.etag for file in list_files(two.output)}
    assert train(two)["already"]
    assert {file.uri: file.etag for file in list_files(two.output)} == after


def test_validators_validate_beside_the_training_and_may_die(
    local_ray: str, labelled_folder: str, tmp_path: Path
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "one"), epochs=6)
    undisturbed = run_job(job)
    settings = replace(job.settings, output=str(tmp_path / "two"), validators=1)
    killed = []

    def kill_validator() -> None:
        assert wait_for(lambda: newest_state(settings.output)[0] >= 2)
        for process in processes_of("_Validator"):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = threading.Thread(target=kill_validator)
    killer.start()
    train(settings)
    killer.join()
    assert len(killed) == 1
    assert same(load_state(settings.output, settings.epochs), undisturbed)
    assert history_of(settings.output) == history_of(job.settings.output)
    assert wait_for(lambda: not processes_of("_Validator"))  # Ray ends them soon after


def test_what_a_validator_meets_and_its_death_for_good_are_one_sentence(
    local_ray: str, labelled_folder: str, tmp_path: Path
) -> None:
    """What a training makes of them is in test_trainer.py."""
    job = make_job(labelled_folder, str(tmp_path / "trained"), validators=1, max_failures=0)
    Path(job.val[0].mask).write_bytes(png(np.full((96, 96), 77, np.uint8)))
    validators = Validators.start(ray.put(job), 1, gpu=False, cores=1, max_failures=0)
    weights = job.network().state_dict()
    with pytest.raises(SegrayError, match=rf"^{job.val[0].mask} holds the id 77"):
        validators.begin(job, weights, "fp32")()
    for process in processes_of("_Validator"):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(SegrayError, match=r"^a validator died more often than --max_failures 0 allows"):
        validators.begin(job, weights, "fp32")()
    validators.close()


def test_a_worker_that_dies_too_often_is_one_sentence(local_ray: str, labelled_folder: str, tmp_path: Path) -> None:
    settings = make_job(labelled_folder, str(tmp_path / "trained"), epochs=50, max_failures=0).settings

    def kill_worker() -> None:
        assert wait_for(lambda: newest_state(settings.output)[0] >= 1)
        for process in processes_of("RayTrainWorker"):
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill_worker)
    killer.start()
    with pytest.raises(SegrayError, match=r"^a worker died more often than --max_failures 0 allows.* start afresh$"):
        train(settings)
    killer.join()
    assert 1 <= newest_state(settings.output)[0] < settings.epochs


def test_ctrl_c_is_answered_at_once(
    local_ray: str, labelled_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, said = ray.train.torch.TorchTrainer.fit, []
    controller, before = (
        SimpleNamespace(abort=SimpleNamespace(remote=lambda: ray.put(0))),
        signal.getsignal(signal.SIGINT),
    )

    @wraps(fit)
    def interrupted(trainer: ray.train.torch.TorchTrainer) -> None:
        trainer._register_sigint_handler(controller)
        signal.raise_signal(signal.SIGINT)
        raise KeyboardInterrupt

    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(fit.__module__).addHandler(handler)
    logging.getLogger(fit.__module__).setLevel(logging.NOTSET)
    logging.getLogger("ray").setLevel(logging.WARNING)  # as jobs start Ray
    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(make_job(labelled_folder, str(tmp_path / "trained")).settings)
    finally:
        logging.getLogger(fit.__module__).removeHandler(handler)
        signal.signal(signal.SIGINT, before)
    assert [line.split(".")[0] for line in said] == ["Received SIGINT"]


def test_an_error_of_one_worker_ends_all_with_its_sentence(
    local_ray: str, labelled_folder: str, tmp_path: Path
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), num_workers="2", max_failures=0, batch_size=2)
    mask = job.train[-1].mask
    Path(mask).write_bytes(png(np.full((96, 96), 77, np.uint8)))
    # as if the inspection, which samples large data, had not seen that mask
    write_run(job.settings, fingerprint_of(job), asdict(job.inspection))
    with pytest.raises(SegrayError, match=rf"{mask} holds the id 77"):
        train(job.settings)
    assert newest_state(job.settings.output)[0] == 0


def test_an_output_that_workers_cannot_write_is_an_error_of_the_disk(
    local_ray: str, labelled_folder: str, tmp_path: Path
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), max_failures=0)
    write_run(job.settings, fingerprint_of(job), asdict(job.inspection))
    (tmp_path / "trained" / "model").write_bytes(b"")  # where a folder should be
    with pytest.raises(FINAL_ERRORS, match=f"{tmp_path}/trained/model"):
        train(job.settings)


def test_workers_without_a_compiler_are_one_sentence(
    local_ray: str, labelled_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), compile=True, max_failures=0)
    write_run(job.settings, fingerprint_of(job), asdict(job.inspection))
    monkeypatch.setattr(segray.training, "ONE_ARENA", {"env_vars": {"CXX": "/nowhere/g++"}})
    with pytest.raises(SegrayError, match=r"cannot be compiled: .*; on CPUs this needs g\+\+ .*leave out --compile"):
        train(job.settings)


def fingerprint_of(job: Job) -> str:
    return fingerprint(job.dataset, [*job.train, *job.val])


def test_an_error_of_the_inspection_is_one_sentence(
    local_ray: str, labelled_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    mask = open_dataset(labelled_folder).samples("train")[2].mask
    Path(mask).write_bytes(png(np.full((96, 96), 77, np.uint8)))
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", labelled_folder, "--output", str(tmp_path / "trained")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "train.py"), run_name="__main__")
    assert ended.value.code == BAD_INPUT
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{mask} holds the id 77" in said[0]
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "unknown"}, "unknown"),
        ({"network": "unet?widht=3"}, "widht"),
        ({"data": "/nowhere"}, "/nowhere does not exist or holds no file; check the URI given with --data"),
    ],
)
def test_bad_settings_are_refused_before_ray_starts(
    labelled_folder: str, tmp_path: Path, changes: dict, sentence: str
) -> None:
    settings = TrainSettings(**{"data": labelled_folder, "output": str(tmp_path), **changes})
    with pytest.raises(SegrayError, match=sentence):
        train(settings)


def test_classes_without_a_training_pixel_are_named(
    labelled_folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(segray.training, "in_tasks", map)
    legend = Path(labelled_folder, "classes.json")
    known = json.loads(legend.read_text())
    more = [{"id": len(known["classes"]) + k, "name": f"rare {k}", "color": [k, 1, 2]} for k in range(2)]
    legend.write_text(json.dumps({**known, "classes": known["classes"] + more}))
    dataset, settings = open_dataset(labelled_folder), TrainSettings(data=labelled_folder, output="/nowhere")
    segray.training._inspect(dataset, dataset.samples("train"), dataset.samples("val"), settings)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith("no training label has a pixel of rare 0, rare 1;")


def test_a_worker_knows_its_share_of_its_node(local_ray: str) -> None:
    assert ray.get(ray.remote(share_of_node).remote()) == 2


@pytest.mark.parametrize(("gpu", "advice"), [(True, "no GPU yet; .*: --actors"), (False, "no worker node")])
def test_nothing_is_concluded_from_a_cluster_that_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, advice: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0, "memory": 1e9})
    with pytest.raises(SegrayError, match=advice):
        check_there("--actors", gpu=gpu)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0, "GPU": 1.0})
    check_there("--actors", gpu=gpu)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_workers": "4"}, r"--num_workers 4 needs more than the 2 core\(s\)"),
        ({"validators": 2}, r"--num_workers 1 and --validators 2 need more than the 2 core\(s\)"),
    ],
)
def test_more_workers_than_the_machine_has_cores_are_refused(
    local_ray: str, labelled_folder: str, tmp_path: Path, changes: dict, sentence: str
) -> None:
    settings = TrainSettings(data=labelled_folder, output=str(tmp_path), batch_size=4, **changes)
    with pytest.raises(SegrayError, match=sentence):
        train(settings)


@pytest.mark.parametrize(
    ("nodes", "workers", "cores"),
    [
        ([{"CPU": 2}], 1, 2),
        ([{"CPU": 2}], 2, 1),
        ([{"CPU": 2}], 3, 1),  # more workers than CPUs: Ray waits for the cluster to grow
        ([{"CPU": 4}, {"CPU": 2}], 1, 4),
        ([{"CPU": 4}, {"CPU": 4}], 3, 2),
        ([{"CPU": 8}, {"CPU": 0}], 2, 4),
        ([], 1, 1),
    ],
)
def test_workers_get_all_cores_that_they_all_can_have(nodes: list[dict], workers: int, cores: int) -> None:
    assert cores_each(nodes, workers) == cores


def test_a_wait_for_workers_is_told_and_told_again_when_they_died(
    local_ray: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(segray.cluster, "NO_ROOM_S", 0.1)
    monkeypatch.setattr(segray.training, "POLL_S", 0.05)
    board = ray.remote(num_cpus=0)(Board).remote()
    callback = _Deaths(board)
    console = Console(epochs=1, steps_per_epoch=1)
    waiting = segray.cluster.NO_ROOM % "worker"
    expected = [waiting, "worker 1 died", waiting, "worker 0 ended: OSError: [Errno 5] a disk", waiting]
    with (
        caplog.at_level(logging.INFO, logger="segray"),
        Tracking({}, settings={}, output="") as tracking,
        _shown(board, Validators(None, [], []), console, tracking),
    ):
        assert wait_for(lambda: caplog.messages == expected[:1])
        died = WorkerHealthCheckFailedError("a health check failed", RuntimeError())
        for count, errors in ((3, {0: OSError("the other one hung up"), 1: died}), (5, {0: OSError(5, "a\ndisk")})):
            assert ray.get(board.begin.remote()) is None
            callback.after_exception(None, errors)
            assert wait_for(lambda count=count: caplog.messages == expected[:count])
    assert caplog.messages == expected


def test_what_a_board_hands_over_late_is_not_lost(
    local_ray: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class SlowBoard(Board):
        def take(self) -> tuple[bool, list[dict]]:
            taken = super().take()
            time.sleep(0.5)
            return taken

    monkeypatch.setattr(segray.training, "POLL_S", 0.05)
    monkeypatch.setattr(segray.training, "PATIENCE_S", 0.1)
    board = ray.remote(num_cpus=0)(SlowBoard).remote()
    reasons = [f"worker {number} died" for number in range(4)]
    with (
        caplog.at_level(logging.INFO, logger="segray"),
        Tracking({}, settings={}, output="") as tracking,
        _shown(board, Validators(None, [], []), Console(epochs=1, steps_per_epoch=1), tracking),
    ):
        for count, reason in enumerate(reasons[:3], 1):
            ray.get(board.end.remote(reason))
            assert wait_for(lambda count=count: caplog.messages == reasons[:count])
        ray.get(board.end.remote(reasons[3]))  # as the training ends
    assert caplog.messages == reasons


# The last of the file: for minutes after its driver is killed, Ray keeps a run's reservations, and a training with
# "1:2" workers waits for their release.
def test_killing_driver_and_worker_changes_nothing(
    local_ray: str, labelled_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(labelled_folder, str(tmp_path / "trained"), epochs=12)
    undisturbed = run_job(replace(job, settings=replace(job.settings, output=str(tmp_path / "other"))))
    settings = job.settings

    flags = [f"--{name}={getattr(settings, name)}" for name in ("data", "output", "network", "epochs", "batch_size")]
    driver = subprocess.Popen(
        [sys.executable, "jobs/train.py", *flags, "--crop=32", "--precision=fp32"],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": local_ray, "PYTHONPATH": str(ROOT)},
    )
    assert wait_for(lambda: newest_state(settings.output)[0] >= 1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not finished(settings)
    assert wait_for(lambda: not processes_of("RayTrainWorker"))

    killed_at = []

    def kill_worker() -> None:
        start = newest_state(settings.output)[0]
        assert wait_for(lambda: newest_state(settings.output)[0] >= start + 2)
        for process in processes_of("RayTrainWorker"):
            os.kill(process, signal.SIGKILL)
            killed_at.append(newest_state(settings.output)[0])

    killer = threading.Thread(target=kill_worker)
    killer.start()
    with caplog.at_level(logging.INFO, logger="segray"):
        result = train(settings)
    killer.join()
    assert len(killed_at) == 1
    told = [text for text in caplog.messages if text.startswith(("worker", "continuing"))]
    assert [text.split(" after ")[0] for text in told] == ["continuing", "worker 0 died", "continuing"]
    assert 3 <= killed_at[0] < settings.epochs
    assert same(load_state(settings.output, settings.epochs), undisturbed)
    assert result["epochs"] == settings.epochs
    assert [row["epoch"] for row in read_history(settings.output)] == list(range(1, settings.epochs + 1))
    assert {file.uri.removeprefix(settings.output).split("/")[1] for file in list_files(settings.output)} == {
        "model", "metrics.jsonl", "report.html", "state", "tensorboard",
    }  # fmt: skip
