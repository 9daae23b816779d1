"""--overwrite leaves nothing of the former export, and touches nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from mask_shards import UTM, Image, ids, write_masks
from running import contents

from segray.export_removal import remove_former
from segray.export_tasks import Exporter
from segray.exporting import export
from segray.exports.mercator import EDGE
from segray.scenes import Scene, open_masks
from segray.settings import ExportSettings

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
IMAGES = [
    Image(uri="/in/d/a.tif", mask=ids(60, 64), crs="EPSG:32633", transform=UTM),
    Image(uri="/in/b.tif", mask=ids(50, 40, seed=1), crs="EPSG:32633", transform=UTM),
]


@pytest.fixture
def two(tmp_path) -> str:
    """The masks of two scenes."""
    return write_masks(str(tmp_path / "two"), IMAGES, archive="/in")


@pytest.fixture
def one(tmp_path) -> str:
    """The masks of the second scene alone."""
    return write_masks(str(tmp_path / "one"), IMAGES[1:], archive="/in")


def run(masks: str, output: object, fmt: str, **changes: object) -> dict:
    """An export; the content of its summary.json."""
    return export(ExportSettings(masks=masks, output=str(output), format=fmt, **changes))


def names(output: object) -> set[str]:
    """The files of an output without its records."""
    return set(contents(output)) - {"export.json", "summary.json", "collection.json"}


def test_fewer_scenes_and_formats_leave_none_of_the_former_files(local_ray, one, two, tmp_path):
    output = tmp_path / "out"
    run(two, output, "cog,png,polygons,pmtiles")
    mine = {"notes.txt", "d/mine.parquet", "d/a.tif.txt"}
    for name in mine:
        (output / name).write_text("mine")
    run(one, output, "cog", overwrite=True)
    assert names(output) == {"b.tif", "b.tif.aux.xml", *mine}


def test_formats_of_an_export_that_was_killed_are_removed_too(local_ray, two, tmp_path):
    output = tmp_path / "out"
    run(two, output, "cog,polygons")
    (output / "collection.json").unlink()  # it is written at the end
    run(two, output, "cog", overwrite=True)
    assert names(output) == {name + ending for name in ("d/a", "b") for ending in (".tif", ".tif.aux.xml")}


@pytest.mark.parametrize("killed", [False, True])
def test_tiles_that_hold_nothing_any_more_are_removed(local_ray, tmp_path, killed):
    size = 2 * EDGE / 256 / 2**4
    output, transform = tmp_path / "out", (size, 0.0, -EDGE, 0.0, -size, EDGE)
    mask = ids(512, 600)
    less = np.where(np.arange(600) < 256, mask, 255).astype(np.uint8)
    for name, held in (("all", mask), ("less", less)):
        image = Image(uri="xyz://4::/t", mask=held, crs="EPSG:3857", transform=transform)
        masks = write_masks(str(tmp_path / name), [image], archive="/t")
        run(masks, output, "png", overwrite=True)
        (output / "4" / "7").mkdir(exist_ok=True)
        (output / "4" / "7" / "mine.png").write_text("mine")
        if killed:
            (output / "collection.json").unlink()
            (output / "4" / "tiles.json").unlink()
    assert {name for name in names(output) if name.endswith(".png")} == {"4/0/0.png", "4/0/1.png", "4/7/mine.png"}


def test_a_removal_that_is_killed_can_be_done_again(local_ray, one, two, tmp_path):
    output = tmp_path / "out"
    run(two, output, "cog,polygons")
    record = json.loads((output / "export.json").read_text())
    settings = ExportSettings(masks=one, output=str(output), format="png")
    exporter, collection = Exporter(masks=open_masks(one), settings=settings, usual=".tif"), output / "collection.json"
    with pytest.raises(KeyboardInterrupt):
        remove_former(exporter, stopped(), former=record, collection=str(collection))
    assert collection.exists()
    (output / "b.parquet").write_text("as if it had not been reached")
    remove_former(exporter, [], former=record, collection=str(collection))
    assert set(contents(output)) == {"export.json", "summary.json"}


def stopped() -> Iterator[list[Scene]]:
    """Scenes whose listing stops before the first."""
    raise KeyboardInterrupt
    yield


def test_a_collection_of_others_removes_nothing(local_ray, one, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    files = [tmp_path / "beyond.tif", output / "kept.tif", output / "kept.json"]
    for file in files:
        file.write_text("mine")
    hrefs = {"cog": "../beyond.tif", "polygons": str(tmp_path / "beyond.tif"), "thumbnail": "./kept.json"}
    features = json.dumps({"assets": {name: {"href": href} for name, href in hrefs.items()}})
    (output / "collection.json").write_text(features)
    (output / "export.json").write_text(json.dumps({"masks_digest": "x", "format": "cog"}))
    run(one, output, "cog", overwrite=True)
    (output / "collection.json").write_text(json.dumps({"assets": {"cog": {"href": "./kept.tif"}}}))
    (output / "export.json").write_text("{}")
    run(one, output, "cog", overwrite=True)
    assert [file.read_text() for file in files] == ["mine"] * 3
