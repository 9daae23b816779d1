"""The segmentation job as users run it: killed anywhere, run again, and what its exit status says (R2)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from models import write_model
from PIL import Image
from running import contents, kill, kill_actor, run, start, wait_for

from segray.synthetic import scene


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model whose mask shows every tile that is not where it should be."""
    return write_model(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model) -> tuple[Path, Path]:
    """An archive of many shards and the output of a run in one piece."""
    images, output = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("undisturbed")
    for number in range(60):
        Image.fromarray(scene(number, 96, 96)[0]).save(images / f"i{number:02d}.png")
    status, out, err = run("segment", model=model, archive=images, output=output, shard_mpx=0.02, actors=2)
    assert status == 0, err
    assert "60 images segmented" in out
    return images, output


def test_killed_anywhere_and_run_again_the_masks_are_those_of_an_undisturbed_run(undisturbed, model, tmp_path):
    images, whole_output = undisturbed
    settings = {"model": model, "archive": images, "output": tmp_path, "shard_mpx": 0.02, "actors": 2}
    shards = len(contents(whole_output / "masks"))
    rng = random.Random(5)

    def published() -> int:
        return len(list((tmp_path / "masks").glob("shard-*.parquet"))) if (tmp_path / "masks").exists() else 0

    for _ in range(2):  # the driver is killed twice
        goal = published() + rng.randint(1, shards // 4)
        process = start("segment", **settings)
        assert wait_for(lambda goal=goal: published() >= goal)
        kill(process)
    assert 0 < published() < shards
    process = start("segment", **settings)
    for _ in range(2):  # then an actor is killed twice
        goal = published() + 1
        assert wait_for(lambda goal=goal: published() >= goal)
        kill_actor(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert contents(tmp_path / "masks") == contents(whole_output / "masks")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, whole_output))
    for name in ("images", "windows", "pixels", "confidence"):
        assert ours[name] == theirs[name]
    before = contents(tmp_path)
    status, out, _ = run("segment", **settings)
    assert status == 0
    assert "nothing to do" in out
    assert contents(tmp_path) == before


def test_exit_status(undisturbed, model, tmp_path):
    images, _ = undisturbed
    status, _, err = run("segment", model=tmp_path / "none", archive=images, output=tmp_path / "out")
    assert status == 2
    assert "is no model directory" in err
    assert err.count("\n") == 1
    (tmp_path / "some").mkdir()
    Image.fromarray(scene(1, 40, 40)[0]).save(tmp_path / "some" / "a.png")
    (tmp_path / "some" / "b.png").write_bytes(b"")
    status, out, err = run("segment", model=model, archive=tmp_path / "some", output=tmp_path / "out")
    assert status == 3
    assert "50.0% of the images failed" in err
    assert "the file is empty" in err
    status, _, _ = run("segment", model=model, archive=tmp_path / "some", output=tmp_path / "out", max_failed=0.5)
    assert status == 0
