"""The tables of memory, growth and lattices on tiny data: their shape, and that their sizes are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import CLASSES

from segray.errors import SegrayError
from segray.masks import Classes, encode_png
from segray.scaling import growth_table, lattice_table, memory_table
from segray.settings import BenchmarkSettings
from segray.storage import publish
from segray.uris import join

SMALL = {"network": "encoder_decoder?width=4", "tile": 64, "overlap": 8, "window": 128, "actors": "1", "runs": 1}


@pytest.fixture
def labelled(tmp_path, write_folder) -> str:
    """Labelled scenes whose legend is that of the tests' model."""
    uri = write_folder(str(tmp_path / "labelled"))
    publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES}).encode())
    classes = Classes.from_json(CLASSES, 255, source="models.py")
    for path in Path(uri).glob("*/masks/*.png"):
        path.write_bytes(encode_png(np.random.default_rng(0).integers(0, 3, (96, 96)).astype(np.uint8), classes))
    return uri


@pytest.mark.usefixtures("local_ray")
def test_growth(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.scaling.GROWTH_TIMES", (1, 2))
    table = growth_table(BenchmarkSettings(output=str(tmp_path), size=100, shard_mpx=0.01, **SMALL))
    assert [row["mpx"] for row in table["rows"]] == [0.01, 0.04]
    assert all(0 < row["s_per_mpx"] <= row["with_plan_and_report"] for row in table["rows"])
    assert [note.partition(":")[0] for note in table["notes"]] == ["0.04 Mpx"]


@pytest.mark.usefixtures("local_ray")
def test_a_lattice(tmp_path, labelled, small_model, monkeypatch):
    options = {**SMALL, "network": None, "tile": None, "overlap": None}
    settings = BenchmarkSettings(
        what="lattice", data=labelled, model=small_model, output=str(tmp_path / "out"), **options
    )
    monkeypatch.setattr("segray.scaling.LATTICES", ((32, 8),))
    monkeypatch.setattr("segray.scaling.BLENDS", ("taper",))
    (row,) = lattice_table(settings)["rows"]
    assert (row["tile"], row["overlap"], row["blend"]) == (32, 8, "taper")
    assert 0 <= row["miou"] <= 1 and 0 < row["seam_disagreement"] <= 1 and row["mpx_per_s"] > 0


def test_lattices(tmp_path, labelled, monkeypatch):
    monkeypatch.setattr("segray.scaling._of_lattice", lambda settings, samples, **lattice: lattice)
    monkeypatch.setattr("segray.scaling.LATTICES", ((32, 8), (96, 16), (128, 8), (128, 16)))
    table = lattice_table(BenchmarkSettings(what="lattice", data=labelled, model="none", output=str(tmp_path)))
    assert table["rows"] == [
        {"tile": tile, "overlap": overlap, "blend": blend}
        for tile, overlap in ((32, 8), (96, 16))
        for blend in ("taper", "crop")
    ]
    assert table["notes"][1:] == ["images of 96 x 96 pixels are too small for tiles of 128"]


def test_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    table = memory_table(BenchmarkSettings(output=str(tmp_path), size=64, shard_mpx=0.01, **SMALL))
    assert {"driver", "actor"} <= {row["process"] for row in table["rows"]}
    assert [run["mpx"] for run in table["runs"]] == [0.004096, 0.4096]
    assert all(row["times"] > 0 and row["mb_at_0.004096_mpx"] > 50 for row in table["rows"])


@pytest.mark.parametrize("table", [memory_table, growth_table])
def test_archives_of_several_sizes_are_made_up(table, tmp_path):
    with pytest.raises(SegrayError, match="leave --archive out"):
        table(BenchmarkSettings(archive="/a", output=str(tmp_path)))
