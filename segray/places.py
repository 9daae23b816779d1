"""Where a job may write: not into what it reads, and not over what another job wrote."""

from __future__ import annotations

import os

from segray.errors import SegrayError
from segray.storage import exists
from segray.uris import join, local_path, real

TRAINING, SEGMENTATION, EVALUATION, EXPORT = "state/run.json", "plan/plan.json", "metrics.json", "export.json"
RECORDS = {TRAINING: "a training", SEGMENTATION: "a segmentation", EVALUATION: "an evaluation", EXPORT: "an export"}


def lies_in(uri: str, folder: str) -> bool:
    """Whether a URI is a folder or something below it, with links and dots resolved."""
    return f"{real(uri)}/".startswith(f"{real(folder)}/")


def check_unclaimed(output: str, own: str) -> None:
    """SegrayError when another kind of job wrote to an output and none of this kind did, or nobody may write there.

    own: the record that this kind of job leaves there, one of RECORDS. Pages and summaries of all kinds have equal
    names.
    """
    if exists(join(output, own)):
        return
    for record, what in RECORDS.items():
        if record != own and exists(join(output, record)):
            raise SegrayError(f"--output {output} holds {what} ({record}); give a folder of its own")
    if path := local_path(output):
        _check_writable(output, path)


def _check_writable(output: str, path: str) -> None:
    """SegrayError when a folder cannot be made or written at a path: an evaluation would find out at its end."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise SegrayError(f"--output {output} cannot be written: {path} is no folder; give another one")
    if not os.access(path, os.W_OK | os.X_OK):
        raise SegrayError(f"--output {output} cannot be written: no right to write to {path}; give another folder")
