"""What an export task does besides writing a scene: it publishes its files and leaves no others."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mask_shards import UTM, Image, ids, scenes_of, write_masks
from running import contents

from segray.export_tasks import Exporter
from segray.scenes import open_masks
from segray.settings import ExportSettings
from segray.storage import publish_file


def test_tiles_are_put_several_at_once_and_their_marker_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, put = threading.Barrier(2, timeout=20), []

    def publish(uri: str, source: str) -> None:
        if uri.endswith(("0/5.png", "0/6.png")):
            at_once.wait()  # until both are being published
        publish_file(uri, source)
        put.append(os.path.relpath(uri, tmp_path))

    def write(path: str) -> dict:
        for name in ("0/5.png", "0/6.png", "1/5.png", "1/6.png", "tiles.json"):
            file = Path(path).parent / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(name)
        return {"tiles": 4}

    monkeypatch.setattr("segray.export_tasks.publish_file", publish)
    settings = ExportSettings(masks="masks", output=str(tmp_path), format="png")
    facts = Exporter(masks=None, settings=settings, usual=".tif")._publish("a/17/tiles.json", write)
    assert facts == {"tiles": 4, "files": 5, "bytes": 4 * 7 + 10}
    assert put[-1] == "a/17/tiles.json"
    assert contents(tmp_path) == {name: name.removeprefix("a/17/").encode() for name in put}
    assert len(put) == 5


@pytest.mark.parametrize("names", [("a.tif/b.png", "a.png"), ("a.png", "a.tif/b.png")])
def test_a_file_named_like_a_folder_is_wrong_with_one_scene_and_never_taken_for_done(
    tmp_path: Path, store: str, names: tuple[str, str]
) -> None:
    images = [Image(uri=f"/a/{name}", mask=ids(50, 40), crs="EPSG:32633", transform=UTM) for name in names]
    masks = open_masks(write_masks(str(tmp_path / "masks"), images, archive="/a"))
    settings = ExportSettings(masks=masks.output, output=f"{store}/out", format="cog")
    first, second = Exporter(masks=masks, settings=settings, usual=".png").outcomes(scenes_of(masks))
    assert (first.written, first.error, second.there) == (True, None, False)
    if store.startswith("s3:"):  # there a file and a folder may have the same name
        assert second.written
    else:
        assert "would have the same name; rename the image or its folder" in second.error


def test_the_pixels_of_a_scene_count_once_and_its_files_by_format(tmp_path: Path) -> None:
    image = Image(uri="/a/x.tif", mask=ids(50, 40), crs="EPSG:32633", transform=UTM)
    masks = open_masks(write_masks(str(tmp_path / "masks"), [image], archive="/a"))
    settings = ExportSettings(masks=masks.output, output=str(tmp_path / "out"), format="cog,png")
    (outcome,) = Exporter(masks=masks, settings=settings, usual=".tif").outcomes(scenes_of(masks))
    assert (outcome.facts["pixels"], outcome.facts["files"]) == (50 * 40, 3)  # class names lie beside the COG


def test_the_key_of_a_signed_address_is_in_no_file(tmp_path: Path) -> None:
    image = Image(uri="https://u:secret@h/x.tif?sig=secret", mask=ids(50, 40), crs="EPSG:32633", transform=UTM)
    masks = open_masks(write_masks(str(tmp_path / "masks"), [image], archive="https://h/list.txt"))
    out = tmp_path / "out"
    settings = ExportSettings(masks=masks.output, output=str(out), format="cog,polygons,png")
    (outcome,) = Exporter(masks=masks, settings=settings, usual=".tif").outcomes(scenes_of(masks))
    assert outcome.written and outcome.item["properties"]["title"] == "https://h/x.tif"
    assert "secret" not in str(outcome.item)
    assert not any(b"secret" in data for data in contents(out).values())
    (polygons,) = out.rglob("*.parquet")
    assert set(pq.read_table(polygons)["image"].to_pylist()) == {"https://h/x.tif"}
