"""What a training reports, as numbers by name, for TensorBoard event files and experiment trackers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from segray.scratch import scratch

Point = tuple[int, float, float]  # step, loss since the previous point, seconds since 1970
GROUPS = {"val_iou": "val_iou", "stage_seconds": "time"}  # a row's groups of numbers by name, and their prefix


def is_row(report: dict) -> bool:
    """Whether a report is the row of an epoch, not the report of a step."""
    return "val_miou" in report


def scalars(report: dict) -> dict[str, float]:
    """The numbers in a row of metrics.jsonl or in a step's report, without any that are missing or not finite."""
    if not is_row(report):
        return {"step": report["step"], "step_loss": report["loss"]}
    flat = {name: value for name, value in report.items() if name not in ("step", *GROUPS)}
    for group, prefix in GROUPS.items():
        flat |= {f"{prefix}/{name}": value for name, value in report.get(group, {}).items()}
    return {name: value for name, value in flat.items() if value is not None and math.isfinite(value)}


def event_file(row: dict, points: Iterable[Point]) -> bytes:
    """A TensorBoard event file of one epoch, by global step: its row, and the losses of its steps."""
    from tensorboardX import SummaryWriter

    with scratch() as folder:
        with SummaryWriter(folder) as writer:
            at = None
            for step, loss, at in points:
                writer.add_scalar("step_loss", loss, step, walltime=at)
            for name, value in scalars(row).items():
                writer.add_scalar(name, value, row["step"], walltime=at)
        with os.scandir(folder) as files, open(next(files), "rb") as file:
            return file.read()
