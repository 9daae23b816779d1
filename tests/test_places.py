"""Where a job may write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mask_shards import Image, ids, write_masks

from segray import cluster
from segray.errors import SegrayError
from segray.evaluation import evaluate
from segray.exporting import export
from segray.places import EVALUATION, EXPORT, RECORDS, SEGMENTATION, TRAINING, check_unclaimed
from segray.segmentation import segment
from segray.settings import EvaluateSettings, ExportSettings, SegmentSettings, TrainSettings
from segray.training import train


@pytest.fixture
def jobs(labelled_folder: str, small_model: str, tmp_path: Path) -> dict[str, Callable[[str], dict]]:
    """Each kind of job as a function of its output, by the record that it leaves there."""
    images, masks = f"{labelled_folder}/val/images", str(tmp_path / "masks")
    return {
        TRAINING: lambda output: train(TrainSettings(data=labelled_folder, output=output)),
        SEGMENTATION: lambda output: segment(SegmentSettings(model=small_model, archive=images, output=output)),
        EVALUATION: lambda output: evaluate(EvaluateSettings(model=small_model, data=labelled_folder, output=output)),
        EXPORT: lambda output: export(ExportSettings(masks=masks, output=output, format="cog")),
    }


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("there", RECORDS)
def test_the_output_of_another_job_keeps_its_page(record, there, jobs, tmp_path, monkeypatch):
    write_masks(str(tmp_path / "masks"), [Image(uri="s3://bucket/a.png", mask=ids(20, 20))], archive="s3://bucket")
    monkeypatch.setattr(cluster, "start", lambda: pytest.fail("it is refused before anything starts"))
    output = tmp_path / "output"
    (output / there).parent.mkdir(parents=True)
    (output / there).write_text("{}")
    (output / "report.html").write_text("theirs")
    if record == there:
        check_unclaimed(str(output), record)
        return
    with pytest.raises(SegrayError, match=f"^--output {output} holds {RECORDS[there]} .*; give a folder of its own$"):
        jobs[record](str(output))
    assert (output / "report.html").read_text() == "theirs"


@pytest.mark.parametrize("record", RECORDS)
def test_where_nobody_can_write_is_found_before_anything_starts(record, jobs, tmp_path, monkeypatch):
    write_masks(str(tmp_path / "masks"), [Image(uri="s3://bucket/a.png", mask=ids(20, 20))], archive="s3://bucket")
    monkeypatch.setattr(cluster, "start", lambda: pytest.fail("it is refused before anything starts"))
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SegrayError, match=f"^--output {output} cannot be written: {tmp_path}/file is no folder"):
            jobs[record](str(output))
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    with pytest.raises(SegrayError, match=f"cannot be written: no right to write to {tmp_path};"):
        jobs[record](str(tmp_path / "new" / "output"))


def test_an_output_that_one_began_before_is_continued(tmp_path):
    for record in (TRAINING, SEGMENTATION):
        (tmp_path / record).parent.mkdir()
        (tmp_path / record).write_text("{}")
    check_unclaimed(str(tmp_path), SEGMENTATION)
    with pytest.raises(SegrayError, match="holds a training"):
        check_unclaimed(str(tmp_path), EXPORT)
