"""Where a job may write: not into what it reads, and not over what another job wrote."""

from __future__ import annotations

from segray.errors import SegrayError
from segray.storage import exists, join, real

RECORDS = {"state/run.json": "a training", "plan/plan.json": "a segmentation", "export.json": "an export"}


def lies_in(uri: str, folder: str) -> bool:
    """Whether a URI is a folder, or of something below it, whatever links and dots lead there."""
    return f"{real(uri)}/".startswith(f"{real(folder)}/")


def check_unclaimed(output: str) -> None:
    """SegrayError when a job that keeps a record of itself wrote to an output."""
    for record, what in RECORDS.items():
        if exists(join(output, record)):
            raise SegrayError(f"--output {output} holds {what} ({record}); give a folder of its own")
