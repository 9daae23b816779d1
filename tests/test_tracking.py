"""Trackers: each number once whatever restarts, a missing package is one sentence, and none ends a training."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segray import tracking
from segray.errors import SegrayError
from segray.tracking import MLflow, Tracking, check_trackers

RUNS: dict[str, list[dict]] = {}


class Remembering:
    """A tracker in this process. place: "down" cannot be reached, "dies" fails after a while."""

    errors = (LookupError,)

    def __init__(self, place: str) -> None:
        self.place = place

    def start(self, settings: dict, run: str | None) -> tuple[str, dict[str, float]]:
        if self.place == "down":
            raise ConnectionError("nobody\nthere")
        self.run = run or f"run-{len(RUNS)}"
        self.logged = RUNS.setdefault(self.run, [])
        return self.run, {
            name: max((row.get(name, -1) for row in self.logged), default=-1) for name in ("epoch", "step")
        }

    def log(self, values: dict[str, float], step: int) -> None:
        if self.place == "dies" and len(self.logged) == 3:
            raise LookupError("disk full")
        self.logged.append(values)

    def finish(self, *, failed: bool) -> None:
        self.logged.append({"failed": failed})


@pytest.fixture(autouse=True)
def trackers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": Remembering, "wandb": Remembering})
    RUNS.clear()


def reports(first: int, last: int) -> list[dict]:
    """What a training of 20 steps an epoch reports; it continues after `first` - 1 epochs."""
    found: list[dict] = [{"epoch": first - 1, "step": 20 * (first - 1), "resumed": True}]
    for epoch in range(first, last + 1):
        found += [{"epoch": epoch, "step": 20 * epoch - back, "loss": 1 / epoch} for back in (4, 0)]
        found.append({"epoch": epoch, "step": 20 * epoch, "loss": 1.0, "val_miou": 0.5, "val_iou": {"a": None}})
    return found


def follow(output: Path, wanted: dict[str, str | None], *parts: list[dict]) -> None:
    with Tracking(wanted, settings={"lr": 0.1}, output=str(output)) as run:
        for part in parts:
            for report in part:
                run.add(report)


def test_every_number_is_logged_once_in_one_run_after_any_restart(tmp_path: Path) -> None:
    follow(tmp_path, {"mlflow": "here", "wandb": None}, reports(1, 3), reports(2, 3))  # a worker died
    follow(tmp_path, {"mlflow": "here", "wandb": "there"}, reports(3, 4))  # the driver died, and a flag was added
    first, second = RUNS.values()
    assert [row["epoch"] for row in first if "epoch" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in first if "step" in row] == [16, 20, 36, 40, 56, 60, 76, 80]
    assert [row["epoch"] for row in second if "epoch" in row] == [3, 4]
    assert first[-1] == second[-1] == {"failed": False}
    runs = json.loads((tmp_path / "state" / "tracking.json").read_text())
    assert [RUNS[runs[flag]] for flag in ("mlflow", "wandb")] == [first, second]


def test_a_run_whose_training_failed_has_failed(tmp_path: Path) -> None:
    with pytest.raises(SegrayError), Tracking({"mlflow": "here"}, settings={}, output=str(tmp_path)):
        raise SegrayError("the loss is no longer finite")
    assert list(RUNS.values()) == [[{"failed": True}]]


def test_a_tracker_that_fails_is_left_out_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="segray"):
        follow(tmp_path, {"mlflow": "dies", "wandb": "lives"}, reports(1, 3))
    assert caplog.messages == ["mlflow failed and is left out from here on: disk full"]
    assert [len(rows) for rows in RUNS.values()] == [3, 10]


def test_one_that_cannot_be_reached_is_a_sentence_before_training(tmp_path: Path) -> None:
    with pytest.raises(SegrayError, match="--wandb down cannot be used: nobody there"):
        follow(tmp_path, {"mlflow": None, "wandb": "down"})
    assert not (tmp_path / "state").exists()


def test_where_one_cannot_be_reached_the_others_fail_and_are_continued(tmp_path: Path) -> None:
    with pytest.raises(SegrayError, match="--wandb down cannot be used"):
        follow(tmp_path, {"mlflow": "here", "wandb": "down"})
    assert RUNS == {"run-0": [{"failed": True}]}
    follow(tmp_path, {"mlflow": "here", "wandb": "there"}, reports(1, 1))
    assert [len(rows) for rows in RUNS.values()] == [5, 4]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    follow(tmp_path, {"mlflow": None, "wandb": None}, reports(1, 2))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers({"mlflow": None, "wandb": None})
    for flag, package in (("mlflow", "mlflow-skinny"), ("wandb", "wandb")):
        with pytest.raises(
            SegrayError, match=rf"--{flag} needs the package {package}, .*pip install 'segray\[{flag}\]'"
        ):
            check_trackers({flag: "x"})


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # where W&B keeps what it logs
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(SegrayError, match="--wandb needs the package wandb"):
        check_trackers({"mlflow": None, "wandb": "project"})


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_mlflow_has_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": MLflow})
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns"
    follow(tmp_path, {"mlflow": uri}, reports(1, 2))
    follow(tmp_path, {"mlflow": uri}, reports(2, 3))
    from mlflow import MlflowClient

    client, run = MlflowClient(uri), json.loads((tmp_path / "state" / "tracking.json").read_text())["mlflow"]
    assert [metric.step for metric in client.get_metric_history(run, "val_miou")] == [20, 40, 60]
    assert [metric.step for metric in client.get_metric_history(run, "step_loss")] == [16, 20, 36, 40, 56, 60]
    assert client.get_run(run).data.params == {"lr": "0.1"} and client.get_run(run).info.status == "FINISHED"


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_mlflow_begins_anew_only_after_a_run_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = f"file://{tmp_path}/mlruns"
    run, _ = MLflow(uri).start({}, None)
    assert MLflow(uri).start({}, run)[0] == run
    MlflowClient(uri).delete_run(run)
    assert MLflow(uri).start({}, run)[0] not in ("", run)
    assert MLflow(uri).start({}, 32 * "0")[0] not in ("", 32 * "0")

    def fail(client: MlflowClient, run: str) -> None:
        raise MlflowException("the server does not answer")

    monkeypatch.setattr(MlflowClient, "get_run", fail)
    with pytest.raises(MlflowException, match="does not answer"):
        MLflow(uri).start({}, run)
