"""The segmentation job as users run it: killed anywhere, run again, and what its exit status says (R2)."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from running import contents, kill, kill_actor, run, start, wait_for

from segray.synthetic import scene

ROOM = "make room, and run the same command again: what was written is kept"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_model) -> tuple[Path, Path]:
    """An archive of many shards with two broken files, and the output of a run in one piece."""
    images, output = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("undisturbed")
    for number in range(120):
        Image.fromarray(scene(number, 96, 96)[0]).save(images / f"i{number:03d}.png")
    for name in ("i030-broken.png", "i060-broken.png"):
        (images / name).write_bytes(b"")
    status, out, err = run("segment", model=small_model, archive=images, output=output, shard_mpx=0.01, actors=1)
    assert status == 3, err
    assert "120 images segmented, 0 without data, 2 failed" in out
    assert "1.6% of the images failed" in err
    assert "the file is empty" in err
    return images, output


def test_killed_anywhere_and_run_again_the_masks_are_those_of_an_undisturbed_run(undisturbed, small_model, tmp_path):
    images, whole_output = undisturbed
    settings = {"model": small_model, "archive": images, "output": tmp_path, "shard_mpx": 0.01, "actors": 2}
    shards = len(contents(whole_output / "masks"))
    rng = random.Random(5)

    def published() -> int:
        return len(list((tmp_path / "masks").glob("shard-*.parquet"))) if (tmp_path / "masks").exists() else 0

    for _ in range(2):  # the driver is killed twice, then an actor
        goal = published() + rng.randint(1, shards // 10)  # actors go on for a moment, and some shards must remain
        process = start("segment", **settings)
        assert wait_for(lambda goal=goal: published() >= goal)
        kill(process)
    assert 0 < published() < shards
    process = start("segment", **settings, max_failed=0.5)
    assert wait_for(lambda: kill_actor(process))
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert contents(tmp_path / "masks") == contents(whole_output / "masks")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, whole_output))
    for name in ("images", "windows", "pixels", "confidence"):
        assert ours[name] == theirs[name]
    before = contents(tmp_path)
    status, out, _ = run("segment", **settings)
    assert status == 3
    assert "nothing to do" in out
    assert contents(tmp_path) == before


def test_a_full_disk_is_one_sentence_and_with_more_room_the_job_goes_on(undisturbed, small_model, tmp_path):
    images, whole_output = undisturbed
    settings = {"model": small_model, "archive": images, "output": tmp_path, "shard_mpx": 0.01, "actors": 1}
    size = "size={}k,mode=777"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size.format(256), "none", tmp_path], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        status, _, err = run("segment", **settings)
        done = len(list((tmp_path / "masks").glob("shard-*.parquet")))
        assert 0 < done < len(contents(whole_output / "masks")) - 64  # more remain than Ray Data lets fail
        assert status == 1
        assert err.endswith(f"--output {tmp_path} is full: [Errno 28] No space left on device; {ROOM}\n")
        assert "Traceback" not in err
        subprocess.run(["mount", "-o", "remount," + size.format(2**16), tmp_path], check=True)
        status, _, err = run("segment", **settings, max_failed=0.5)
        assert status == 0, err
        assert contents(tmp_path / "masks") == contents(whole_output / "masks")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_bad_input_is_one_sentence(tmp_path):
    status, _, err = run("segment", model=tmp_path / "none", archive=tmp_path, output=tmp_path / "out")
    assert status == 2
    assert "is no model directory" in err
    assert err.count("\n") == 1
