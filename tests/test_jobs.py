"""What the jobs print at the end."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import MISSING, fields
from types import ModuleType

import pytest
from running import ROOT

from segray.command_line import DONE, TOO_MANY_FAILED, parse, run_job
from segray.settings import (
    BenchmarkSettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    SegmentSettings,
    TrainSettings,
)

METRICS = {
    "classes": ["water", "land"], "iou": [1.0, None], "miou": 1.0, "classes_in_mean": 1, "pixel_accuracy": 1.0,
    "boundary_miou": 0.98765, "ece": 0.01, "images": 3, "split": "val",
}  # fmt: skip


def job(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "boundary mIoU 0.9877, ECE 0.0100"),
        ({"boundary_miou": None}, "boundary mIoU none, ECE 0.0100"),  # no contour in labelled pixels
        ({"miou": None, "pixel_accuracy": None}, "no labelled pixel in the 3 images of val, so there is no score"),
    ],
)
def test_evaluate_says_every_score_or_that_there_is_none(changes, line, monkeypatch, capsys) -> None:
    evaluate = job("evaluate")
    monkeypatch.setattr(evaluate, "evaluate", lambda settings: {**METRICS, **changes})
    assert evaluate.main(EvaluateSettings(model="m", data="d", output="o", split="val")) == DONE
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("failed_share", [0.0, 0.5])
def test_export_names_a_file_of_all_scenes_that_was_not_written(failed_share, monkeypatch, capsys) -> None:
    export = job("export")
    summary = {"scenes": 4, "skipped": 0, "failed": 2, "totals": {}, "seconds": 1.0, "failed_share": failed_share}
    lost = [{"file": "masks.pmtiles", "error": "there was too little memory"}]
    failures = [{"image": "a.tif", "error": "it is torn"}]
    monkeypatch.setattr(export, "export", lambda settings: {**summary, "lost": lost, "failures": failures})
    chosen = ExportSettings(masks="m", output="o", format="pmtiles", max_failed=0.4)
    assert export.main(chosen) == TOO_MANY_FAILED
    lines = ["masks.pmtiles was not written: there was too little memory"]
    lines += ["50.0% of the scenes failed; the first: it is torn"] * (failed_share > 0)
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_demo_hands_on_what_it_is_told_to_overwrite(overwrite, monkeypatch, tmp_path) -> None:
    demo, given = job("demo"), {}
    results = {"train": {}, "evaluate": METRICS, "segment": {"pixels": {"total": 1}}, "export": {}}
    for name, result in results.items():
        monkeypatch.setattr(demo, name, lambda settings, n=name, r=result: given.update({n: settings}) or r)
    monkeypatch.setattr(demo, "make_imagery", lambda data, archive: None)
    flags = ["--output", str(tmp_path), "--epochs", "3", *["--overwrite"] * overwrite]
    assert demo.main(parse(DemoSettings, flags)) == DONE
    assert given["train"].epochs == 3
    assert all(given[name].overwrite == overwrite for name in ("train", "segment", "export"))


JOBS = {
    "benchmark": BenchmarkSettings, "demo": DemoSettings, "evaluate": EvaluateSettings, "export": ExportSettings,
    "segment": SegmentSettings, "train": TrainSettings,
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_help_shows_commands_as_they_are_typed_and_which_flags_must_be_given(name, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit):
        run_job(job(name).main, JOBS[name])
    commands, _, flags = capsys.readouterr().out.partition("\noptions:\n")
    assert commands.count(f"python jobs/{name}.py") >= 2  # on a machine and on a cluster
    assert not re.search(r"\\\\$", commands, re.MULTILINE)  # one backslash continues a line
    required = [item.name for item in fields(JOBS[name]) if item.default is MISSING]
    assert [flag.split()[0] for flag in flags.split("\n  --") if flag.rstrip().endswith("(required)")] == required
