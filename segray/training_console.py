"""Progress of a training for people to read: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("segray")
LINE_EVERY_S = 30.0  # within an epoch, if there is no bar


class Console:
    """Shows what the training reports, in the order in which it happened.

    Reports are those of `trainer.run`, and {"ended": why} when the workers ended early. After a worker died, steps may
    go back to the newest state. The row of an epoch comes while the next one is under way, and perhaps again after a
    restart.
    """

    def __init__(self, *, epochs: int, steps_per_epoch: int, bar: bool | None = None) -> None:
        self._epochs, self._steps, self._total = epochs, steps_per_epoch, epochs * steps_per_epoch
        self._last = time.monotonic()
        self._bar: tqdm | None = None
        self._with_bar = sys.stdout.isatty() if bar is None else bar
        self._miou: float | None = None
        self._epoch = 0  # the last one for which a line was shown

    def show(self, report: dict) -> None:
        """Show one report."""
        if "ended" in report:
            self._line(report["ended"])
            return
        if "resumed" in report:
            within = report["step"] - report["epoch"] * self._steps
            more = f" and {within} steps of the next" if within else ""
            self._line(f"continuing after epoch {report['epoch']}/{self._epochs}{more}")
            return
        if "val_miou" in report:
            self._miou = report["val_miou"]
            if report["epoch"] > self._epoch:
                self._line(epoch_line(report, self._epochs))
            self._epoch = report["epoch"]
        elif not self._with_bar and time.monotonic() - self._last > LINE_EVERY_S:
            self._line(f"epoch {report['epoch']}/{self._epochs}, step {report['step']}, loss {report['loss']:.4f}")
        if self._with_bar:
            self._move(report)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.clear()
        log.info(text)

    def _move(self, report: dict) -> None:
        if self._bar is None:
            first = report["step"]
            self._bar = tqdm(total=self._total, initial=first, unit="step", file=sys.stdout, dynamic_ncols=True)
        if "val_miou" not in report:
            self._bar.n = report["step"]
        self._bar.set_postfix(loss=f"{report['loss']:.3f}", mIoU=_percent(self._miou))


def epoch_line(row: dict, epochs: int) -> str:
    """One line for a finished epoch, from its row of metrics.jsonl."""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}, validation mIoU {_percent(row['val_miou'])} over "
        f"{row['classes_in_mean']} classes, {row['seconds']:.1f} s, {row['samples_per_s']:.1f} crops/s, "
        f"{row['data_wait_share']:.0%} of it waiting for data"
    )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
