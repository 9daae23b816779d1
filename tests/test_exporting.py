"""The export job: files of all scenes, once each, also when it is killed and run again."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from mask_shards import UTM, Image, ids, write_masks
from PIL import Image as Picture
from running import contents, kill, run, start, wait_for

from segray.errors import SegrayError
from segray.export_tasks import Exporter, Outcome
from segray.exporting import _read_parts, export, outcomes_of
from segray.exports import EXPORTS
from segray.listing import list_files
from segray.scenes import Scene, open_masks
from segray.settings import ExportSettings
from segray.shards import shard_uri
from segray.storage import exists, read_bytes, read_text
from segray.uris import join

pytestmark = [
    pytest.mark.usefixtures("s3"),  # before Ray, whose workers get the environment in which it starts
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]
ARCHIVE = "s3://b/in"
LAND = (0.001, 0.0, 15.1, 0.0, -0.001, 50.2)
IMAGES = [
    Image(uri=f"{ARCHIVE}/d/big.tif", mask=ids(530, 410), crs="EPSG:32633", transform=UTM),
    *(
        Image(uri=f"{ARCHIVE}/t{k}.tif", mask=ids(60 + k, 64, seed=k), crs="EPSG:4326", transform=LAND)
        for k in range(3)
    ),
    Image(uri=f"{ARCHIVE}/t0.png", mask=ids(50, 40, seed=9)),
    Image(uri=f"{ARCHIVE}/part.tif", mask=ids(150, 150), failed=(0,)),
    Image(uri=f"{ARCHIVE}/torn.tif", mask=ids(90, 90), failed=(0,)),
    Image(uri=f"{ARCHIVE}/../../out.tif", mask=ids(20, 20)),
]


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> str:
    """A segmentation of several kinds of images, one of them failed, some cut by shards."""
    return write_masks(str(tmp_path_factory.mktemp("masks")), IMAGES, archive=ARCHIVE, rows_a_shard=4)


def settings(masks: str, output: object, **changes: object) -> ExportSettings:
    """Settings of an export in which one of eight scenes may fail."""
    return ExportSettings(**{"masks": masks, "output": str(output), **changes})


def test_all_scenes_become_files_and_a_second_run_does_nothing(local_ray, masks, tmp_path, caplog):
    summary = export(settings(masks, tmp_path, format="cog,png"))
    numbers = {name: summary[name] for name in ("scenes", "written", "skipped", "failed", "incomplete")}
    assert numbers == {"scenes": 8, "written": 7, "skipped": 0, "failed": 1, "incomplete": 1}
    assert summary["failed_share"] == 1 / 8
    assert summary["failures"] == [{"image": f"{ARCHIVE}/torn.tif", "error": "it is torn"}]
    for image in IMAGES[:5]:
        name = image.uri[len(ARCHIVE) + 1 :].removesuffix(".tif")
        with rasterio.open(tmp_path / f"{name}.tif") as file, Picture.open(tmp_path / f"{name}.png") as picture:
            assert (file.read(1) == image.mask).all()
            assert (np.array(picture) == image.mask).all()
    files = contents(tmp_path)
    assert summary["totals"]["files"] == 7 * 3 == len(files) - 3
    assert not [name for name in files if name.startswith("..")]
    caplog.set_level("INFO", "segray")
    again = export(settings(masks, tmp_path, format="png,cog"))
    numbers = {name: again[name] for name in ("scenes", "written", "skipped", "failed", "incomplete", "totals")}
    assert numbers == {"scenes": 8, "written": 0, "skipped": 7, "failed": 1, "incomplete": 1, "totals": {}}
    assert again["failures"] == summary["failures"]
    assert "nothing to do: all of 7 scenes" in caplog.text
    assert contents(tmp_path) == files


def test_the_collection_has_an_item_for_every_exported_scene(local_ray, masks, tmp_path):
    export(settings(masks, tmp_path, format="cog,png"))
    collection = pystac.ItemCollection.from_dict(json.loads((tmp_path / "collection.json").read_text()))
    assert len(collection.items) == 7
    assert [item.id for item in collection.items[:5]] == ["d/big", "t0", "t1", "t2", "t0.png"]
    assert [item.geometry is None for item in collection.items] == [False] * 4 + [True] * 3
    for item in collection.items:
        assert set(item.assets) == {"cog", "png"}
        for asset in item.assets.values():
            assert (tmp_path / asset.href).is_file()


def test_shards_are_asked_at_once_what_they_hold_and_kept_in_order(masks, monkeypatch):
    at_once = threading.Barrier(2, timeout=20)
    monkeypatch.setattr("segray.exporting.pieces_of", lambda masks, shard: [(at_once.wait() >= 0) * shard])
    assert _read_parts(open_masks(masks), range(2, 6)) == [2, 3, 4, 5]


def test_a_missing_file_is_written_again_and_only_that(local_ray, masks, tmp_path):
    export(settings(masks, tmp_path))
    before = contents(tmp_path)
    os.remove(tmp_path / "t1.tif")
    os.remove(tmp_path / "collection.json")
    summary = export(settings(masks, tmp_path))
    assert (summary["written"], summary["skipped"], summary["failed"]) == (1, 6, 1)
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"summary.json"}


def test_a_missing_collection_is_written_again(local_ray, masks, tmp_path):
    export(settings(masks, tmp_path))
    before = contents(tmp_path)
    os.remove(tmp_path / "collection.json")
    assert export(settings(masks, tmp_path))["written"] == 0
    assert contents(tmp_path)["collection.json"] == before["collection.json"]


def test_a_summary_of_what_was_missing_before_is_written_anew(local_ray, masks, tmp_path):
    export(settings(masks, tmp_path))
    before = contents(tmp_path)
    summary = json.loads(before["summary.json"])
    summary["lost"] = [{"file": "masks.pmtiles", "error": "it killed its process"}]  # written by a run that was killed
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "collection.json").write_text("{}")
    assert export(settings(masks, tmp_path))["lost"] == []
    after = contents(tmp_path)
    assert json.loads(after["summary.json"])["lost"] == []
    assert {name for name in before if before[name] != after[name]} == {"summary.json"}


def test_another_export_on_the_same_output_is_refused(local_ray, masks, tmp_path):
    other = write_masks(str(tmp_path / "other"), IMAGES[1:], archive=ARCHIVE)
    output = tmp_path / "out"
    export(settings(masks, output))
    before = contents(output)
    with pytest.raises(SegrayError, match="its format was cog and is now png; give another --output, or --overwrite"):
        export(settings(masks, output, format="png"))
    with pytest.raises(SegrayError, match="its masks_digest was"):
        export(settings(other, output))
    assert contents(output) == before
    (output / "t1.tif").write_bytes(b"stale")
    (output / "notes.txt").write_text("mine")
    summary = export(settings(other, output, overwrite=True))
    assert (summary["written"], summary["skipped"]) == (6, 0)
    assert contents(output)["t1.tif"] == before["t1.tif"]
    assert (output / "notes.txt").read_text() == "mine"
    assert export(settings(other, output))["written"] == 0


def test_what_is_there_of_others_is_left_alone(local_ray, masks, tmp_path):
    (tmp_path / "t0.tif").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(SegrayError, match=r"t0\.tif, but no export; give an empty --output"):
            export(settings(masks, tmp_path, overwrite=overwrite))
    assert contents(tmp_path) == {"t0.tif": b"mine"}


@pytest.mark.parametrize("fmt", [fmt for fmt, module in EXPORTS.items() if not module.PER_SCENE])
def test_a_format_of_one_file_holds_all_scenes_that_lie_somewhere(local_ray, masks, tmp_path, fmt):
    summary = export(settings(masks, tmp_path, format=f"cog,{fmt}"))
    assert (summary["scenes"], summary["written"]) == (8, 8)  # seven scenes, and the file of them all
    items = json.loads((tmp_path / "collection.json").read_text())["features"]
    assert [item["id"] for item in items[:5]] == ["d/big", "t0", "t1", "t2", "t0.png"]
    scenes = [item["assets"].get(fmt) for item in items]
    (path,) = {asset["href"] for asset in scenes if asset}
    assert [asset is not None for asset in scenes] == [True] * 4 + [False] * 3
    assert (tmp_path / path).is_file()
    before = contents(tmp_path)
    assert export(settings(masks, tmp_path, format=f"cog,{fmt}"))["written"] == 0
    assert contents(tmp_path) == before
    os.remove(tmp_path / path)
    assert export(settings(masks, tmp_path, format=f"cog,{fmt}"))["written"] == 1
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"summary.json"}


def test_masks_without_confidences_are_told_at_once(masks, tmp_path):
    with pytest.raises(SegrayError, match="has no confidence of pixels; segment with --confidence into another OUTPUT"):
        export(settings(masks, tmp_path / "out", format="cog,confidence"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["masks", "masks/masks", "masks/masks/x", "masks/plan", "archive", "archive/x", "."])
def test_an_output_among_its_sources_is_refused(tmp_path, place):
    archive = str(tmp_path / "archive")
    (tmp_path / "link").symlink_to(tmp_path)
    image = Image(uri=f"{archive}/a.tif", mask=ids(20, 20))
    uri = write_masks(str(tmp_path / "masks"), [image], archive=archive)
    with pytest.raises(SegrayError, match="holds the masks or their imagery; give a folder of its own"):
        export(settings(uri, tmp_path / "link" / place))


def test_a_tile_set_is_exported_as_tiles_with_their_marker(local_ray, tmp_path):
    size = 2 * np.pi * 6378137 / 256 / 2**4
    transform = (size, 0.0, -2 * np.pi * 6378137 / 2, 0.0, -size, 2 * np.pi * 6378137 / 2)
    image = Image(uri="xyz://4::s3://b/t", mask=ids(512, 600), crs="EPSG:3857", transform=transform)
    masks = write_masks(str(tmp_path / "m"), [image], archive="s3://b/t")
    summary = export(settings(masks, tmp_path / "out", format="png"))
    names = contents(tmp_path / "out")
    tiles = {f"4/{x}/{y}.png" for x in range(3) for y in range(2)}
    assert set(names) == tiles | {"4/tiles.json", "export.json", "summary.json", "collection.json"}
    assert summary["totals"]["tiles"] == 6
    (found,) = json.loads((tmp_path / "out" / "collection.json").read_text())["features"]
    assert found["assets"]["png"]["href"] == "./4/tiles.json"
    assert found["assets"]["png"]["type"] == "application/json" and "bands" not in found["assets"]["png"]
    os.remove(tmp_path / "out" / "4" / "tiles.json")  # as if it had been killed
    export(settings(masks, tmp_path / "out", format="png"))
    assert contents(tmp_path / "out")["4/0/0.png"] == names["4/0/0.png"]
    assert exists(str(tmp_path / "out" / "4" / "tiles.json"))


def test_an_object_store_holds_the_same_files(local_ray, masks, s3, tmp_path):
    output = f"{s3}/{uuid.uuid4().hex}"
    there = write_masks(join(output, "masks"), IMAGES, archive=ARCHIVE, rows_a_shard=4)
    summary = export(settings(there, join(output, "files")))
    assert summary["written"] == 7
    export(settings(masks, tmp_path))
    files = contents(tmp_path)
    found = {file.uri.partition("/files/")[2]: file.uri for file in list_files(join(output, "files"))}
    assert set(found) == set(files)
    for name, data in files.items():
        if name not in ("summary.json", "export.json"):
            assert read_bytes(found[name]) == data
    assert read_text(found["export.json"]) == files["export.json"].decode()
    assert export(settings(there, join(output, "files")))["written"] == 0


def test_a_damaged_shard_ends_in_failed_scenes_with_a_reason(local_ray, tmp_path):
    uri = write_masks(str(tmp_path / "m"), IMAGES[1:4], archive=ARCHIVE, rows_a_shard=1)
    shard = Path(shard_uri(uri, 1, "parquet"))
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDAX"))
    summary = export(settings(uri, tmp_path / "out"))
    assert (summary["written"], summary["failed"]) == (2, 1)
    assert "not a complete PNG" in summary["failures"][0]["error"]
    assert not (tmp_path / "out" / "t1.tif").exists()


def test_a_damaged_file_of_masks_is_told_in_one_sentence(local_ray, tmp_path):
    uri = write_masks(str(tmp_path / "m"), IMAGES[:4], archive=ARCHIVE, rows_a_shard=1)
    Path(shard_uri(uri, 3, "parquet")).write_bytes(b"no Parquet")
    with pytest.raises(SegrayError, match=r"^shard 3 of .* is damaged: .*; remove it and run segment.py again$"):
        export(settings(uri, tmp_path / "out"))


@dataclass(frozen=True, kw_only=True)
class Deadly(Exporter):
    """An exporter whose process dies on one scene, as if it took all memory."""

    def outcomes(self, scenes: list[Scene]) -> Iterator[Outcome]:
        """The scenes exported, until the deadly one comes."""
        for scene in scenes:
            if scene.image.endswith("t1.tif"):
                os.abort()
            yield from super().outcomes([scene])


@pytest.mark.usefixtures("local_ray", "code_sent_along")
def test_a_scene_that_kills_its_process_has_failed_and_no_other(masks, tmp_path):
    exporter = Deadly(masks=open_masks(masks), settings=settings(masks, tmp_path), usual=".tif")
    outcomes = list(outcomes_of(exporter))
    assert [outcome.image for outcome in outcomes] == [image.uri for image in IMAGES]
    failed = {outcome.image: outcome.error for outcome in outcomes if outcome.error}
    assert set(failed) == {f"{ARCHIVE}/t1.tif", f"{ARCHIVE}/torn.tif"}
    assert "killed the process that exported it" in failed[f"{ARCHIVE}/t1.tif"]
    assert sorted(name for name in contents(tmp_path) if name.startswith("t")) == [
        "t0.png.tif", "t0.png.tif.aux.xml", "t0.tif", "t0.tif.aux.xml", "t2.tif", "t2.tif.aux.xml",
    ]  # fmt: skip


class DeadlyAtAll(Exporter):
    """An exporter whose process dies on a file of all scenes."""

    def all_in_one(self, fmt: str, scenes: list[Scene]) -> Outcome:
        """Kill the process."""
        os.abort()


@pytest.mark.usefixtures("local_ray", "code_sent_along")
def test_a_file_of_all_scenes_that_kills_its_process_has_failed_and_no_other(masks, tmp_path, caplog):
    caplog.set_level("INFO", "segray")
    chosen = settings(masks, tmp_path, format="cog,pmtiles")
    exporter = DeadlyAtAll(masks=open_masks(masks), settings=chosen, usual=".tif")
    *others, last = outcomes_of(exporter)
    assert [outcome.image for outcome in others] == [image.uri for image in IMAGES]
    assert [outcome.image for outcome in others if outcome.written] == [
        image.uri for image in IMAGES if not image.uri.endswith("torn.tif")
    ]
    assert (last.image, last.scenes, last.written) == ("masks.pmtiles", 0, False)
    assert "masks.pmtiles killed the process that wrote it" in last.error
    assert "writing masks.pmtiles" in caplog.text


def test_a_file_of_all_scenes_that_fails_leaves_the_counts_of_scenes_alone(local_ray, tmp_path):
    image = Image(uri=f"{ARCHIVE}/bare.tif", mask=np.full((20, 20), 255, np.uint8), crs="EPSG:32633", transform=UTM)
    masks = write_masks(str(tmp_path / "masks"), [image], archive=ARCHIVE)
    summary = export(settings(masks, tmp_path / "out", format="cog,pmtiles"))
    numbers = {name: summary[name] for name in ("scenes", "written", "skipped", "failed", "failed_share", "failures")}
    assert numbers == {"scenes": 1, "written": 1, "skipped": 0, "failed": 0, "failed_share": 0, "failures": []}
    (lost,) = summary["lost"]
    assert lost["file"] == "masks.pmtiles" and "holds no class" in lost["error"]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[str, Path]:
    """The masks of many scenes of which one failed, and the output of an export in one piece."""
    folder = tmp_path_factory.mktemp("many")
    place = {"crs": "EPSG:32633", "transform": UTM}
    images = [
        Image(uri=f"/in/{k:03d}.tif", mask=ids(700, 700, seed=k), failed=(0,) if k == 30 else (), **place)
        for k in range(61)
    ]
    masks = write_masks(str(folder / "masks"), images, archive="/in", window=700)
    status, out, err = run("export", masks=masks, output=folder / "out", format="cog,png")
    assert status == 3, err
    assert "61 scene(s), 0 of them done before, 1 failed" in out
    assert "1.6% of the scenes failed; the first: it is torn" in err
    return masks, folder / "out"


def test_killed_and_run_again_the_files_are_those_of_an_undisturbed_run(many, tmp_path):
    masks, undisturbed = many
    flags = {"masks": masks, "output": tmp_path, "format": "cog,png"}
    process = start("export", **flags)
    assert wait_for(lambda: len(list(tmp_path.glob("*.png"))) >= 5)
    kill(process)
    files = {name: (tmp_path / name).stat().st_mtime_ns for name in contents(tmp_path) if name.endswith(".tif")}
    assert 0 < len(files) < 60
    status, out, err = run("export", **flags, max_failed=0.5)
    assert status == 0, err
    expected, found = contents(undisturbed), contents(tmp_path)
    assert set(found) == set(expected)
    assert all(found[name] == expected[name] for name in expected if name != "summary.json")
    status, out, err = run("export", **flags)
    assert status == 3, err
    assert "nothing to do: all of 60 scenes" in out
    assert contents(tmp_path) == found
