"""What a training runs in processes of its own that do not train. They import this file, so it is without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segray.settings import TrainSettings


class Board:
    """What the workers tell the driver: reports in order, and the one error that ends the training.

    An actor of its own, so that it outlives the workers.
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
        """A worker begins; the error, if there is one."""
        self.begun = True
        return self.error

    def end(self, reason: str) -> None:
        """The workers have ended, since one of them died or met an error; others may begin."""
        self.begun = False
        self.reports.append({"ended": reason})

    def has_begun(self) -> bool:
        """Whether any worker is at work."""
        return self.begun

    def failure(self) -> str | None:
        """The error, if there is one."""
        return self.error

    def take(self) -> list[dict]:
        """The reports since the last call."""
        reports, self.reports = self.reports, []
        return reports


def weights_fit(settings: TrainSettings, *, bands: int, classes: int) -> None:
    """SegrayError when the pretrained weights do not fit the network: now, rather than met by every worker."""
    from segray.training_job import initial_network

    initial_network(settings, bands=bands, classes=classes)
