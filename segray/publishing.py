"""What a finished epoch leaves in OUTPUT, written while the next one is trained: its state, then the best model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch

from segray.metrics import scores
from segray.model_dir import save_weights
from segray.report import Picture, training_page
from segray.scalars import Point, event_file
from segray.storage import publish
from segray.training_job import Job
from segray.training_state import compared, improved, model_due, read_history, save_state, write_history
from segray.training_validation import Validated, Validation
from segray.uris import join
from segray.versions import versions

Masks = dict[int, dict[str, torch.Tensor]]  # of earlier epochs, by the titles of their pictures


class Publisher:
    """Runs publications one after the other in a thread; an error of one is raised by the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segray-publish")
        self._last: Future | None = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    @property
    def busy(self) -> bool:
        """Whether a publication is under way or has failed."""
        return not self.done_within(0) or self.failed

    @property
    def failed(self) -> bool:
        """Whether the last publication failed: the next call raises its error."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def done_within(self, seconds: float) -> bool:
        """Wait at most so many seconds; whether no publication is under way then."""
        return self._last is None or bool(wait([self._last], seconds).done)

    def submit(self, publication: Callable[[], None]) -> None:
        """Begin a publication once the one before is done."""
        self.wait()
        self._last = self._pool.submit(publication)

    def wait(self) -> None:
        """Wait until everything is published."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


@dataclass(kw_only=True)
class Record:
    """What a training has published. history: rows of metrics.jsonl. masks: of the pictures in earlier epochs.

    While a publication is under way, nothing else may use it.
    """

    history: list[dict] = field(default_factory=list)
    masks: Masks = field(default_factory=dict)

    def state(self) -> dict:
        """The record as part of a state."""
        return {"history": list(self.history), "masks": dict(self.masks)}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished epoch. row: its row of metrics.jsonl without scores. points: losses of its steps.

    validation: under way or done. state: a copy to resume from, without the record. unscored: the same for the moment
    before validation, saved first if validation runs elsewhere; else empty. record: of the epochs before this one.
    page: whether the page is due. report: called with the whole row at the end.
    """

    job: Job
    row: dict
    points: Sequence[Point]
    validation: Validation
    state: dict
    unscored: dict
    record: Record
    page: bool
    report: Callable[[dict], None]

    def publish(self) -> None:
        """Write metrics, events, the page if due, the state, which commits them, and the model if it is the best."""
        record, output, keep = self.record, self.job.settings.output, self.job.settings.keep
        if self.unscored:
            save_state(output, {**self.unscored, **record.state()}, keep=keep)
        validated = self.validation()
        row, earlier = {**self.row, **self._scores(validated)}, dict(record.masks)
        record.history.append(row)
        if row["epoch"] in pictured(self.job.settings.epochs):
            record.masks[row["epoch"]] = {each.title: torch.from_numpy(each.mask.copy()) for each in validated.pictures}
        write_history(output, record.history)
        # TensorBoard reads the files of a folder one after the other, in order of name
        name = f"events.out.tfevents.epoch-{row['epoch']:04d}"
        publish(join(output, "tensorboard", name), event_file(row, self.points))
        if self.page:
            publish(join(output, "report.html"), self._page(validated.pictures, earlier))
        save_state(output, {**self.state, **record.state()}, keep=keep)
        if improved(record.history):  # after the state, from which `restore_model` has it again
            _save_model(self.job, row, self.state)
        self.report(row)

    def _scores(self, validated: Validated) -> dict:
        result = scores(validated.matrix)
        return {
            "val_miou": result["miou"],
            "val_iou": dict(zip(self.job.dataset.classes.names, result["iou"])),
            "classes_in_mean": result["classes_in_mean"],
            "pixel_accuracy": result["pixel_accuracy"],
        }

    def _page(self, pictures: Sequence[Picture], earlier: Masks) -> bytes:
        settings = self.job.settings
        return training_page(
            classes=self.job.dataset.classes,
            history=[{**row, "val_iou": list(row["val_iou"].values())} for row in self.record.history],
            settings=compared(settings),
            about=self._about(),
            pictures=list(pictures),
            earlier={epoch: {title: mask.numpy() for title, mask in masks.items()} for epoch, masks in earlier.items()},
            title=f"Training of {settings.network}",
        )

    def _about(self) -> dict:
        job = self.job
        return {
            "data": job.settings.data,
            "training images (or pieces of large ones)": len(job.train),
            "validation images (or blocks of large ones)": len(job.val),
            "steps per epoch": job.steps,
            "precision": self.state["precision"],
            "versions": versions(),
        }


def restore_metrics(job: Job, state: dict) -> None:
    """Publish the metrics of a state if metrics.jsonl differs: it was lost, or has an epoch that was not committed."""
    if read_history(job.settings.output) != state["history"]:
        write_history(job.settings.output, state["history"])


def restore_model(job: Job, state: dict) -> None:
    """Publish the model of a state between epochs, if a training that was killed after the state still owes it."""
    if model_due(job.settings.output, state["history"]):
        _save_model(job, state["history"][-1], state)


def weights_of(state: dict) -> dict[str, torch.Tensor]:
    """The weights in a state that are validated and published: those of `Learner.model`."""
    return state["average"] or state["network"]


def _save_model(job: Job, row: dict, state: dict) -> None:
    save_weights(job.description(row, precision=state["precision"]), weights_of(state))


def pictured(epochs: int) -> set[int]:
    """The epochs, besides the newest, whose pictures the page shows."""
    return {1, (epochs + 1) // 2}


def copied(value: object) -> object:
    """A copy of a state on the CPU, which further training does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value
