"""Parts done in Ray tasks come in order, with the first error as a sentence; data look the same in tasks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import ROOT

from segray import cluster, tasks
from segray.datasets import open_dataset
from segray.errors import LabelError, SegrayError
from segray.inspection import inspect
from segray.settings import TrainSettings


def test_what_tasks_give(local_ray, labelled_folder):
    def later_first(part: int) -> int:
        """The square of a number; small ones take longer."""
        time.sleep(0.02 * (4 - part % 5))
        if part == 13:
            raise LabelError("13 is no number")
        return part**2

    assert list(tasks.in_tasks(later_first, range(10), in_flight=3)) == [part**2 for part in range(10)]
    assert list(tasks.in_tasks(later_first, [])) == []
    results = tasks.in_tasks(later_first, [12, 13, 14])
    assert next(results) == 144
    with pytest.raises(LabelError, match="^13 is no number$"):
        next(results)
    drawn: list[int] = []
    few = tasks.in_tasks(later_first, (drawn.append(part) or part for part in range(10)), in_flight=2)
    assert (next(few), drawn) == (0, [0, 1])
    assert (next(few), drawn) == (1, [0, 1, 2])
    dataset, settings = open_dataset(labelled_folder), TrainSettings(data=labelled_folder, output="none", crop=32)
    samples = dataset.samples("train")
    assert inspect(dataset, samples, settings, run=tasks.in_tasks) == inspect(dataset, samples, settings)


def test_a_folder_that_a_node_does_not_see_is_no_output(local_ray, tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    cluster.check_shared(output, "export.json")  # the driver's own node is not asked
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "of another machine"))
    with pytest.raises(SegrayError, match=f"--output {output} is a folder of the driver's machine that the node "):
        cluster.check_shared(output, "export.json")
    cluster.check_shared("s3://bucket/out", "export.json")
    Path(output).mkdir()
    Path(output, "export.json").touch()
    cluster.check_shared(output, "export.json")


def test_tasks_run_the_code_of_the_driver_whatever_their_node_has_installed(local_ray, tmp_path):
    shutil.copytree(ROOT / "segray", tmp_path / "segray")
    (tmp_path / "segray" / "__init__.py").write_text('__version__ = "of the driver"\n')
    code = "from segray import cluster, tasks, versions\ncluster.start()\n"
    code += "print(*tasks.in_tasks(lambda part: versions.versions()['segray'], [0]))"
    environment = {**os.environ, "RAY_ADDRESS": local_ray, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "elsewhere").mkdir()  # Ray's workers look into the driver's working directory too
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["of the driver"], done.stderr
