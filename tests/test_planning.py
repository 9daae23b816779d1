"""Plans of archives whose files hold many images: members in their order, what is skipped, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png
from containers import tar_of, zip_of

from segray.errors import SegrayError
from segray.segmentation import segment
from segray.settings import SegmentSettings
from segray.storage import publish
from segray.synthetic import scene
from segray.uris import join

COUNT = 7


def image(number: int) -> bytes:
    return png(scene(number, 40 + number, 64)[0])


def packed(path: Path) -> str:
    """A folder with a tar, a zip, a picture, a broken zip, a text file, and a tree of tiles that is no tile set."""
    path.mkdir()
    samples = ({f"{number:03d}.png": image(number), f"{number:03d}.cls": b"1"} for number in range(COUNT))
    (path / "a.tar").write_bytes(tar_of({name: data for sample in samples for name, data in sample.items()}))
    members = {"deep/x.png": image(20), "../../x.png": image(21), "note.txt": b"no image"}
    (path / "b.zip").write_bytes(zip_of(members))
    (path / "c.png").write_bytes(image(30))
    (path / "d.zip").write_bytes(b"PK no zip at all")
    (path / "e.txt").write_text("no image")
    return str(path)


def test_members_are_images_and_what_is_wrong_is_a_row(local_ray, small_model: str, tmp_path: Path) -> None:
    settings = {"model": small_model, "archive": packed(tmp_path / "archive"), "format": "parquet", "max_failed": 0.5}
    summary = segment(SegmentSettings(**settings, output=str(tmp_path / "out"), shard_mpx=0.006))
    rows = pq.read_table(tmp_path / "out" / "masks").to_pylist()
    base = str(tmp_path / "archive")
    failed = {row["image"]: row["error"] for row in rows if row["status"] == "failed"}
    assert summary["images"] == {"ok": COUNT + 2, "nodata": 0, "failed": 2}
    assert [row["image"] for row in rows] == [
        *(f"tar://{number:03d}.png::{base}/a.tar" for number in range(COUNT)),
        f"zip://deep/x.png::{base}/b.zip",
        f"zip://../../x.png::{base}/b.zip",
        f"{base}/c.png",
        f"{base}/d.zip",
    ]
    assert '".." in it' in failed[f"zip://../../x.png::{base}/b.zip"]
    assert f"{base}/d.zip" in failed[f"{base}/d.zip"]
    assert summary["skipped_files"] == COUNT + 2
    assert summary["shards"]["total"] > 3
    plan = json.loads((tmp_path / "out" / "plan" / "plan.json").read_text())
    assert plan["images"] == len(rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 2  # it shows pictures of members
    apart = tmp_path / "apart"
    for number in range(COUNT):
        publish(join(str(apart), f"{number:03d}.png"), image(number))
    segment(SegmentSettings(**{**settings, "archive": str(apart)}, output=str(tmp_path / "out2")))
    masks = [row["mask"] for row in pq.read_table(tmp_path / "out2" / "masks").to_pylist()]
    assert masks == [row["mask"] for row in rows[:COUNT]]
    before = (tmp_path / "out" / "summary.json").read_bytes()
    segment(SegmentSettings(**settings, output=str(tmp_path / "out"), shard_mpx=0.006))
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


def test_an_archive_without_a_usable_member_is_refused(local_ray, small_model: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no zip at all")
    (tmp_path / "b.zip").write_bytes(zip_of({"note.txt": b"no image"}))
    for name, sentence in (("a.zip", r"a\.zip"), ("b.zip", "no image in them")):
        settings = SegmentSettings(model=small_model, archive=str(tmp_path / name), output=str(tmp_path / "out"))
        with pytest.raises(SegrayError, match=sentence):
            segment(settings)
    assert not (tmp_path / "out" / "masks").exists()


def test_a_bad_line_of_a_list_is_a_failed_row(local_ray, small_model: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(image(1))
    (tmp_path / "empty.png").write_bytes(b"")
    pq.write_table(pa.table({"image": [image(number) for number in range(3)]}), tmp_path / "some.parquet")
    bad = {
        "none.png": "none.png cannot be read: it does not exist",
        "nosuch://x/y.jpg": "cannot be opened",
        "x.png/z.jpg": "cannot be read",
        "a\0b.png": "cannot be read",
        "empty.png": "the file is empty",
    }
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in ["x.png", *bad, "./x.png", "some.parquet"]))
    settings = {"model": small_model, "archive": str(tmp_path / "list.txt"), "output": str(tmp_path / "out")}
    summary = segment(SegmentSettings(**settings))
    assert summary["images"] == {"ok": 1 + 3, "nodata": 0, "failed": len(bad)}  # x.png is listed twice and counted once
    assert np.isclose(summary["failed_share"], len(bad) / (len(bad) + 4))
    for name, reason in bad.items():
        (error,) = [row["error"] for row in summary["failures"] if row["image"].endswith(name)]
        assert reason in error
    with pytest.raises(SegrayError, match="--column was None|--column was"):
        segment(SegmentSettings(**settings, column="other"))


def test_the_driver_plans_without_torch_and_ray_data():
    """They would be half of its memory; 50,000 objects take a tenth of what they take."""
    code = "import sys, segray.segmentation; print({'torch', 'ray.data'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
