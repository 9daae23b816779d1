"""The stand-in training takes the real loader's crops: the shape of its table, never a time."""

from __future__ import annotations

import pytest

from segray import feeding
from segray.errors import SegrayError
from segray.loading import reader_count
from segray.settings import BenchmarkSettings


def test_rows_are_by_threads_and_the_own_number_is_among_them(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(feeding, "STEP_S", 0.001)
    monkeypatch.setattr(feeding, "MOST_STEPS", 5)
    monkeypatch.setattr(feeding.os, "cpu_count", lambda: 2)
    options = {"what": "loading", "data": labelled_folder, "runs": 1, "tile": 64, "batch_size": 2}
    table = feeding.loading_table(BenchmarkSettings(output=str(tmp_path), **options))
    assert [row["threads"] for row in table["rows"]] == [1, 2, 4, 8]
    assert table["threads"] == reader_count(2) == 4
    for row in table["rows"]:
        assert min(row["wait_in_first_epoch"], row["wait_later"]) >= 0
        assert min(row["wait_in_first_epoch"], row["wait_later"]) <= row["wait"] < 1
        assert row["first_s"] > 0 and row["cpu_ms_a_crop"] > 0
    (note,) = table["notes"]
    assert "1 ms a step for 2 crops of 64 px waits for data" in note and "later, with its 4 threads; 5 steps" in note


def test_data_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(SegrayError, match="holds no file"):
        feeding.loading_table(BenchmarkSettings(what="loading", data=str(tmp_path), output=str(tmp_path)))
