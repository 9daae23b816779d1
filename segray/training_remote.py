"""What a training runs in extra processes that do not train; they import this file, so it does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segray.settings import TrainSettings


class Board:
    """What the workers tell the driver: reports in order, and the one error that ends the training.

    It is an actor, so that it outlives the workers.
    """

    def __init__(self) -> None:
        self.reports: list[dict] = []
        self.error: str | None = None
        self.begun = False

    def add(self, report: dict) -> None:
        """Append a report."""
        self.reports.append(report)

    def fail(self, sentence: str) -> None:
        """Keep the first error."""
        self.error = self.error or sentence

    def begin(self) -> str | None:
        """Note that a worker has begun; returns the error, if there is one."""
        self.begun = True
        return self.error

    def end(self, reason: str) -> None:
        """Note why the workers ended (one of them died or met an error); new ones may begin."""
        self.begun = False
        self.reports.append({"ended": reason})

    def failure(self) -> str | None:
        """The error, if there is one."""
        return self.error

    def take(self) -> tuple[bool, list[dict]]:
        """Whether a worker has begun and they have not ended since, and the reports since the last call."""
        reports, self.reports = self.reports, []
        return self.begun, reports


def weights_fit(settings: TrainSettings, *, bands: int, classes: int) -> None:
    """SegrayError when the pretrained weights do not fit the network: found here, before any worker starts."""
    from segray.training_job import initial_network

    initial_network(settings, bands=bands, classes=classes)
