"""What a training runs in processes of its own that do not train. They import this file, so it is without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segray.datasets import Dataset, Sample
    from segray.inspection import Inspection
    from segray.settings import TrainSettings


class Board:
    """What the workers tell the driver: reports in order, and the one error that ends the training.

    An actor of its own, so that it outlives the workers.
    """

    def __init__(self) -> None:
        self.reports: list[dict] = []
        self.error: str | None = None

    def add(self, report: dict) -> None:
        """Append a report."""
        self.reports.append(report)

    def fail(self, sentence: str) -> None:
        """Keep the first error."""
        self.error = self.error or sentence

    def failure(self) -> str | None:
        """The error, if there is one."""
        return self.error

    def take(self) -> list[dict]:
        """The reports since the last call."""
        reports, self.reports = self.reports, []
        return reports


def inspect_all(dataset: Dataset, samples: list[Sample], settings: TrainSettings) -> Inspection:
    """See `inspection.inspect`; pretrained weights that do not fit are refused too, now rather than by every worker."""
    from segray.inspection import inspect

    inspection = inspect(dataset, samples, settings)
    if settings.weights:
        from segray.training_job import initial_network

        initial_network(settings, bands=len(inspection.bands), classes=len(dataset.classes))
    return inspection
