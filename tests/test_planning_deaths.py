"""A file that kills the task that plans it: one failed item, and all others once, in order."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from test_expand import COUNT, CUTTING, geotiff, packed

from segray import expand, planning
from segray.listing import list_files
from segray.plan import Item

pytestmark = pytest.mark.usefixtures("local_ray", "code_sent_along")
NAMES = ("0.tif", "1-poison.tif", "2.tar", "3-poison.tar", "4-late.tif", "5.tif")


def die_late() -> None:
    """Die once what was yielded has arrived."""
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


@ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
def dying(files, cutting):
    """The planning task, but poison kills its process: in a tar after some members, in `late` at the end."""
    expand.MEMBERS_AT_A_TIME = 3
    for found in expand.expand(files, cutting):
        if any("poison.tif" in file.uri for file in files):
            os.kill(os.getpid(), signal.SIGKILL)
        yield found
        if "3-poison.tar" in files[0].uri and found.items[0].image.startswith("tar://3"):
            die_late()
    if any("late" in file.uri for file in files):
        die_late()


@ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
def crowded(files, cutting):
    """The planning task, but several files at once kill its process."""
    if len(files) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from expand.expand(files, cutting)


def planned(folder: Path, monkeypatch: pytest.MonkeyPatch, task: object) -> list[Item]:
    """The items of a folder, planned by that task."""
    monkeypatch.setattr(planning, "_expand", task)
    return list(planning._items(list_files(str(folder)), CUTTING, planning._Seen()))


def test_a_file_that_kills_its_task_is_one_failed_item_and_no_other_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in NAMES:
        if name.endswith(".tar"):
            packed(folder / name)
        else:
            (folder / name).write_bytes(geotiff())
    found = [(item.image.replace(f"{folder}/", ""), item.error) for item in planned(folder, monkeypatch, dying)]
    members = [f"tar://{number}.tif::" for number in range(COUNT)]
    killed = f": {planning.KILLED}"
    assert found == [
        ("0.tif", None),
        ("1-poison.tif", f"{folder}/1-poison.tif{killed}"),
        *((f"{member}2.tar", None) for member in members),
        *((f"{member}3-poison.tar", None) for member in members[:6]),
        ("3-poison.tar", f"{folder}/3-poison.tar{killed}"),
        ("4-late.tif", None),
        ("5.tif", None),
    ]


def test_files_that_are_too_much_together_are_planned_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tif").write_bytes(geotiff())
    found = [(Path(item.image).name, item.error) for item in planned(tmp_path, monkeypatch, crowded)]
    assert found == [(f"{number}.tif", None) for number in range(3)]
