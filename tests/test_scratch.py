"""Temporary folders: empty, removed at the end or, after a kill, by the next process that looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mask_shards import Image, ids, scenes_of, write_masks

from segray.export_tasks import Exporter
from segray.scenes import open_masks
from segray.scratch import GRACE_S, PREFIX, remove_abandoned, scratch
from segray.settings import ExportSettings

HOLD = """
import time
from segray.scratch import scratch
with scratch() as folder:
    print(folder, flush=True)
    time.sleep(600)
"""
HOLD_EVENTS = """
import time
import tensorboardX
from segray.scalars import event_file
tensorboardX.SummaryWriter = lambda folder: (print(folder, flush=True), time.sleep(600))
event_file({"epoch": 1, "step": 9, "loss": 0.5}, [])
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The temporary folder of the test and of its processes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def age(folder: Path) -> None:
    """Make a folder look as if it had been made long ago."""
    then = folder.stat().st_mtime - 2 * GRACE_S
    os.utime(folder, (then, then))


def hold(code: str = HOLD) -> tuple[subprocess.Popen, Path]:
    """A process that works in a folder made long ago, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    made = Path(process.stdout.readline().strip())
    (made / "large.tif").write_bytes(b"1")
    age(made.parent)
    return process, made


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_folder_is_there_for_a_block(folder: Path) -> None:
    with scratch() as made:
        assert os.listdir(made) == []
        Path(made, "x").touch()
        age(Path(made).parent)
        remove_abandoned()
        assert os.listdir(made) == ["x"]
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_others_use_is_not(folder: Path) -> None:
    (process, left), (other, used) = hold(), hold()
    try:
        remove_abandoned()
        assert (left.exists(), used.exists()) == (True, True)
        kill(process)
        (folder / f"{PREFIX}fresh").mkdir()  # just made: not locked yet
        (folder / f"{PREFIX}link").symlink_to(used)
        remove_abandoned()
        assert not left.parent.exists()
        assert (used / "large.tif").exists()
        assert (folder / f"{PREFIX}fresh").exists()
    finally:
        kill(other)


def test_what_a_training_leaves_that_is_killed_as_it_writes_events_is_removed(folder: Path) -> None:
    process, _ = hold(HOLD_EVENTS)
    kill(process)
    remove_abandoned()
    assert list(folder.iterdir()) == []


def test_a_task_of_an_export_removes_what_killed_ones_left(folder: Path) -> None:
    process, left = hold()
    kill(process)
    image = Image(uri="s3://b/in/a.tif", mask=ids(20, 20))
    masks = open_masks(write_masks(str(folder / "masks"), [image], archive="s3://b/in"))
    settings = ExportSettings(masks=str(folder / "masks"), output=str(folder / "out"))
    exporter = Exporter(masks=masks, settings=settings, usual=".tif")
    (outcome,) = exporter.outcomes(scenes_of(masks))
    assert outcome.written
    assert not left.parent.exists()
    assert list(folder.glob("segray-*")) == []
