"""The output of a segmentation may lie anywhere but in its archive; planning lists the archive once."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from segray import outputs
from segray.archives.files import FilesArchive
from segray.errors import SegrayError
from segray.model_dir import read_description
from segray.outputs import check_place, plan_of
from segray.plan import Plan
from segray.segmentation import segment_work
from segray.settings import SegmentSettings
from segray.storage import publish


@pytest.mark.parametrize(
    ("archive", "output", "fits"),
    [
        ("s3://bucket/imagery", "s3://bucket/imagery-masks", True),
        ("s3://bucket/imagery/list.txt", "s3://bucket/imagery/masks", True),
        ("xyz://17::s3://bucket/tiles", "s3://bucket/masks", True),
        ("s3://bucket", "s3://bucket/masks", False),
        ("s3://bucket/imagery", "s3://bucket/imagery", False),
        ("xyz://17::s3://bucket/tiles", "s3://bucket/tiles/masks", False),
        ("{folder}/imagery", "{folder}/masks", True),
        ("{folder}/imagery", "{folder}/imagery/masks", False),
        ("{folder}/link", "{folder}/imagery/masks", False),
        ("{folder}/imagery/../imagery", "{folder}/link/masks", False),
    ],
)
@pytest.mark.usefixtures("s3")  # without one there are no credentials
def test_masks_do_not_become_imagery(tmp_path: Path, archive: str, output: str, fits: bool) -> None:
    (tmp_path / "imagery").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "imagery")
    archive, output = (uri.format(folder=tmp_path) for uri in (archive, output))
    settings = SegmentSettings(model="model", archive=archive, output=output)
    if fits:
        check_place(settings)
    else:
        with pytest.raises(SegrayError, match=f"--output {output} lies in the archive .*; give a folder beside it"):
            check_place(settings)


def test_masks_are_no_archive(tmp_path: Path) -> None:
    publish(str(tmp_path / "masks" / "plan" / "plan.json"), b"{}")
    settings = SegmentSettings(model="m", archive=str(tmp_path / "masks"), output=str(tmp_path / "masks"))
    for output in (settings.output, str(tmp_path / "out")):
        with pytest.raises(SegrayError, match="--archive .*masks holds masks, the output of a segmentation; give imag"):
            check_place(replace(settings, output=output))


def test_an_archive_is_listed_once_a_run(small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.png", "c.png", "d.png", "e.txt"):
        publish(str(tmp_path / "images" / name), b"no matter what")
    listings, images = [], FilesArchive.images
    monkeypatch.setattr(FilesArchive, "images", lambda self: listings.append(self.uri) or images(self))
    places = {"model": small_model, "archive": str(tmp_path / "images"), "output": str(tmp_path / "out")}
    settings = SegmentSettings(**places, shard_mpx=1)
    description = read_description(small_model)
    for run in (1, 2):
        plan = plan_of(settings, description, segment_work(settings, description))
        assert (plan.images, plan.skipped, len(listings)) == (3, 2, run)


def test_a_grid_of_the_model_needs_its_resolution(small_model: str) -> None:
    settings = SegmentSettings(model=small_model, archive="a", output="o", grid="model")
    with pytest.raises(SegrayError, match="--grid model needs the metres per pixel .*; give --resolution"):
        segment_work(settings, read_description(small_model))
    assert not segment_work(replace(settings, resolution=2.0), read_description(small_model)).enlarge


def test_a_million_shards_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SegmentSettings(model="model", archive="archive", output="output")
    plan = Plan(uri="plan", fingerprint={}, files=(200_000,), images=200_000, skipped=0)
    seen = []

    def in_tasks(function, parts):
        for part in parts:
            seen.append((len(part), part[0], part[-1]))
        return ()

    monkeypatch.setattr(outputs, "in_tasks", in_tasks)
    tracemalloc.start()
    outputs.earlier(settings, plan, [0, 7, 199_999])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert sum(count for count, _, _ in seen) == 199_997
    assert (seen[0], seen[-1][2]) == ((64, 1, 65), 199_998)
    seen.clear()
    outputs.earlier(settings, plan, [])
    assert sum(count for count, _, _ in seen) == 200_000


def test_overwriting_removes_the_summary_before_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(outputs, "remove", lambda uri: removed.append(uri.removeprefix(f"{tmp_path}/")))
    outputs._remove_results(SegmentSettings(model="m", archive="a", output=str(tmp_path)))
    assert removed[0] == "plan/plan.json"
    assert removed.index("summary.json") < removed.index("masks")


def test_a_copy_of_a_shard_in_a_folder_below_is_no_commit(tmp_path: Path) -> None:
    for name in ("shard-00000001.parquet", "old/shard-00000000.parquet", "shard-00000002.tar"):
        publish(str(tmp_path / "masks" / name), b"1")
    assert outputs.missing_shards(str(tmp_path), "parquet", 3) == [0, 2]


def test_a_copy_of_a_shard_in_a_folder_below_is_not_removed(tmp_path: Path) -> None:
    for name in ("shard-00000000.parquet", "shard-00000000.tar", "old/shard-00000000.parquet"):
        publish(str(tmp_path / "masks" / name), b"1")
    settings = SegmentSettings(model="m", archive="a", output=str(tmp_path))
    with pytest.raises(SegrayError, match=r"masks/old/shard-00000000\.parquet is no mask shard, so nothing is over"):
        outputs._remove_results(settings)
    (tmp_path / "masks" / "old" / "shard-00000000.parquet").unlink()
    outputs._remove_results(settings)
    assert not (tmp_path / "masks").exists()
