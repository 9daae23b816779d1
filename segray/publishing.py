"""What a finished epoch leaves in OUTPUT, put there beside the training of the next one, its state last of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from segray.model_dir import save_weights
from segray.report import Picture, training_page
from segray.scalars import Point, event_file
from segray.storage import join, publish
from segray.training_job import Job
from segray.training_state import compared, save_state, write_history

Masks = dict[int, dict[str, torch.Tensor]]  # of earlier epochs, by the titles of their pictures


class Publisher:
    """Runs one publication after the other in a thread; what one raises is raised by the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segray-publish")
        self._last: Future | None = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    @property
    def busy(self) -> bool:
        """Whether a publication is under way."""
        return self._last is not None and not self._last.done()

    def submit(self, publication: Callable[[], None]) -> None:
        """Begin a publication when the former is done."""
        self.wait()
        self._last = self._pool.submit(publication)

    def wait(self) -> None:
        """Return when all is published."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished epoch. history: the rows up to its own. points: losses of its steps. state: to resume from, a copy.

    masks: what the network made of the pictures in earlier epochs. page: whether the page is due.
    """

    job: Job
    history: Sequence[dict]
    points: Sequence[Point]
    pictures: Sequence[Picture]
    masks: Masks
    state: dict
    page: bool

    def publish(self) -> None:
        """Model if it is the best, metrics, events and page of the epoch, and last the state, which commits them."""
        row, output = self.history[-1], self.job.settings.output
        if improved(self.history):
            weights = self.state["average"] or self.state["network"]
            save_weights(self.job.description(row, precision=self.state["precision"]), weights)
        write_history(output, self.history)
        # TensorBoard reads the files of a folder one after the other, in the order of their names
        name = f"events.out.tfevents.epoch-{row['epoch']:04d}"
        publish(join(output, "tensorboard", name), event_file(row, self.points))
        if self.page:
            publish(join(output, "report.html"), self._page())
        save_state(output, self.state, keep=self.job.settings.keep)

    def _page(self) -> bytes:
        settings = self.job.settings
        return training_page(
            classes=self.job.dataset.classes,
            history=[{**row, "val_iou": list(row["val_iou"].values())} for row in self.history],
            settings=compared(settings),
            pictures=list(self.pictures),
            earlier={
                epoch: {title: mask.numpy() for title, mask in masks.items()} for epoch, masks in self.masks.items()
            },
            title=f"Training of {settings.network}",
        )


def improved(history: Sequence[dict]) -> bool:
    """Whether the last epoch is the best by validation mIoU; without a labelled pixel each one is."""
    miou = history[-1]["val_miou"]
    return miou is None or all(row["val_miou"] is None or miou > row["val_miou"] for row in history[:-1])


def pictured(epochs: int) -> set[int]:
    """The epochs, beside the last one, of which the page shows pictures."""
    return {1, (epochs + 1) // 2}


def masks_of(pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
    """The masks of pictures, as a state keeps them."""
    return {picture.title: torch.from_numpy(picture.mask.copy()) for picture in pictures}


def copied(value: object) -> object:
    """A copy of a state on the CPU, which the training that goes on does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value
