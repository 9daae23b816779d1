"""Experiment trackers beside OUTPUT: MLflow and Weights & Biases, fed by the driver with what the workers report.

They find their credentials themselves (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY, ~/.netrc);
none is written anywhere.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from segray.errors import SegrayError
from segray.scalars import is_row, scalars
from segray.storage import publish, read_bytes
from segray.store_errors import describe
from segray.uris import join

log = logging.getLogger("segray")
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}  # by flag, which also names the extra and the module
MARKS = ("epoch", "step")  # in rows and in reports of steps: how far a run has been logged
FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError)  # of a network, a server, a disk
FINISH_S = 120.0  # how long a training waits for its trackers at its end
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # else many minutes


class Tracker(Protocol):
    """A run at a tracker. errors: what its package raises, besides FAILURES."""

    errors: tuple[type[Exception], ...]

    def start(self, settings: dict, run: str | None) -> tuple[str, dict[str, float]]:
        """Begin a run, or continue the one with that id; its id, and the last value of each of MARKS that it has."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers by name, at a step of the training."""

    def finish(self, *, failed: bool) -> None:
        """End the run."""


class MLflow:
    """A run in the experiment MLFLOW_EXPERIMENT_NAME (default: segray) at a tracking URI."""

    def __init__(self, uri: str) -> None:
        for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **PATIENCE}.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        self.errors, self.metric = (MlflowException,), Metric
        self.connect, self.run = lambda: MlflowClient(tracking_uri=uri), ""

    def start(self, settings: dict, run: str | None) -> tuple[str, dict[str, float]]:
        """See Tracker; a run that cannot be continued, such as a deleted one, is begun anew."""
        self.client = self.connect()
        if run and self._is_there(run):
            self.client.update_run(run, status="RUNNING")
            self.run = run
            return run, {name: self._last(name) for name in MARKS}
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "segray")
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run = self.client.create_run(number).info.run_id
        for key, value in settings.items():
            self.client.log_param(self.run, key, value)
        return self.run, {}

    def log(self, values: dict[str, float], step: int) -> None:
        """See Tracker. MLflow allows only some characters in names."""
        now, named = int(1000 * time.time()), ((re.sub(r"[^\w\-. /]", "_", name), values[name]) for name in values)
        self.client.log_batch(self.run, [self.metric(name, value, now, step) for name, value in named])

    def finish(self, *, failed: bool) -> None:
        """See Tracker."""
        self.client.set_terminated(self.run, status="FAILED" if failed else "FINISHED")

    def _is_there(self, run: str) -> bool:
        """Whether there is a run of that id that was not deleted; a server that does not say so has failed."""
        try:
            return self.client.get_run(run).info.lifecycle_stage != "deleted"
        except self.errors as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _last(self, name: str) -> float:
        return max((metric.value for metric in self.client.get_metric_history(self.run, name)), default=-1)


class WandB:
    """A run in a project of Weights & Biases, PROJECT or ENTITY/PROJECT; WANDB_MODE=offline keeps it in WANDB_DIR."""

    def __init__(self, project: str) -> None:
        import wandb

        self.errors, self.wandb, self.run = (wandb.Error,), wandb, None
        self.entity, _, self.project = project.rpartition("/")

    def start(self, settings: dict, run: str | None) -> tuple[str, dict[str, float]]:
        """See Tracker."""
        quiet = self.wandb.Settings(silent=True, console="off", x_disable_stats=True)
        place = {"project": self.project, "entity": self.entity or None}
        self.run = self.wandb.init(**place, id=run, resume="allow", config=settings, settings=quiet)
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric("step_loss", step_metric="step")
        return self.run.id, {name: self.run.summary[name] for name in MARKS if self.run.summary.get(name) is not None}

    def log(self, values: dict[str, float], step: int) -> None:
        """See Tracker. Rows may come after later steps, so W&B's own step, which never goes back, is not used."""
        self.run.log(values)

    def finish(self, *, failed: bool) -> None:
        """See Tracker."""
        self.run.finish(exit_code=int(failed))


TRACKERS = {"mlflow": MLflow, "wandb": WandB}


def check_trackers(wanted: dict[str, str | None]) -> None:
    """SegrayError when the package of a tracker is missing. wanted: MLflow's URI and W&B's project by flag."""
    for flag, value in wanted.items():
        spec = importlib.util.find_spec(flag) if value else None
        if value and (spec is None or spec.origin is None):  # a folder of that name, such as W&B creates, is no package
            raise SegrayError(
                f"--{flag} needs the package {PACKAGES[flag]}, which is not installed: pip install 'segray[{flag}]'"
            )


class Tracking:
    """All trackers of a training, served in a thread of their own, so that a slow one does not hold up training.

    A tracker that fails after its start is dropped with a line in the log; training goes on.
    """

    def __init__(self, wanted: dict[str, str | None], *, settings: dict, output: str) -> None:
        """Begin or continue a run at each tracker; SegrayError when one cannot be used. wanted: see check_trackers.

        The ids of the runs are kept in OUTPUT/state/tracking.json.
        """
        self._trackers: dict[str, tuple[Tracker, dict[str, float]]] = {}
        self._reports: SimpleQueue[dict | None] = SimpleQueue()
        self._failed = False
        self._thread = Thread(target=self._serve, name="segray-tracking", daemon=True)
        self._thread.start()
        runs = _read_runs(output)
        try:
            for flag, value in wanted.items():
                if value:
                    runs[flag] = self._start(flag, value, settings, runs.get(flag))
                    publish(_runs_uri(output), json.dumps(runs).encode())  # to be continued, should the next one fail
        except BaseException as error:
            self.__exit__(type(error))  # ends the runs begun before it
            raise

    def add(self, report: dict) -> None:
        """Log a report of `trainer.run`, only once: after a restart some come again."""
        if "step" in report and "resumed" not in report:
            self._reports.put(report)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the runs once all is logged, as failed after an error; give up waiting after FINISH_S."""
        self._failed = kind is not None
        self._reports.put(None)
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            log.info("%s had not received everything after %.0f s", " and ".join(self._trackers), FINISH_S)

    def _start(self, flag: str, value: str, settings: dict, run: str | None) -> str:
        tracker = TRACKERS[flag](value)
        try:
            run, last = tracker.start(settings, run)
        except (*FAILURES, *tracker.errors) as error:
            raise SegrayError(f"--{flag} {value} cannot be used: {describe(error)[:300]}") from error
        self._trackers[flag] = (tracker, last)
        return run

    def _serve(self) -> None:
        while (report := self._reports.get()) is not None:
            values, mark = scalars(report), "epoch" if is_row(report) else "step"
            for flag, (tracker, last) in list(self._trackers.items()):
                if report[mark] > last.get(mark, -1):
                    last[mark] = report[mark]
                    self._try(flag, tracker, partial(tracker.log, values, report["step"]))
        for flag, (tracker, _) in list(self._trackers.items()):
            self._try(flag, tracker, partial(tracker.finish, failed=self._failed))

    def _try(self, flag: str, tracker: Tracker, call: Callable[[], None]) -> None:
        try:
            call()
        except (*FAILURES, *tracker.errors) as error:
            log.info("%s failed and is left out from here on: %s", flag, describe(error)[:300])
            del self._trackers[flag]


def _runs_uri(output: str) -> str:
    return join(output, "state", "tracking.json")


def _read_runs(output: str) -> dict[str, str]:
    try:
        return json.loads(read_bytes(_runs_uri(output)))
    except (FileNotFoundError, ValueError):
        return {}
