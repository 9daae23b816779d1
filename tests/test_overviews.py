"""Overviews of the largest scenes of a segmentation, gathered by Ray tasks from a real output."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio
import ray
from mask_shards import scenes_of
from models import write_small_model
from PIL import Image
from rasterio.transform import from_origin
from scene_sets import raster

from segray import overviews as module
from segray.grid import Window
from segray.model_dir import read_description
from segray.overviews import overviews
from segray.plan import load
from segray.reduction import majority
from segray.report.overview import factor_of
from segray.scenes import SceneReader, open_masks
from segray.segmentation import segment
from segray.settings import SegmentSettings
from segray.synthetic import scene

TRANSFORM = from_origin(101985.25, 2826915.75, 0.3, 0.3)


@pytest.fixture(scope="module")
def segmented(local_ray, tmp_path_factory) -> Path:
    """Three scenes of which two are larger than a page's pictures, in many shards, and small pictures."""
    folder = tmp_path_factory.mktemp("overviews")
    (folder / "images").mkdir()
    for name, (height, width) in {"long.tif": (300, 2200), "high.tif": (900, 400), "small.tif": (80, 90)}.items():
        image, _ = scene(len(name), height, width)
        data = raster(image.transpose(2, 0, 1), crs="EPSG:32618", transform=TRANSFORM)
        (folder / "images" / name).write_bytes(data)
    for number in range(3):
        Image.fromarray(scene(number, 64, 64)[0]).save(folder / "images" / f"t{number}.png")
    model = write_small_model(str(folder / "model"))
    segment(SegmentSettings(
        model=model, archive=str(folder / "images"), output=str(folder / "out"), window=150, shard_mpx=0.1, actors="1",
    ))  # fmt: skip
    return folder


def gather(folder: Path) -> list:
    output = str(folder / "out")
    return overviews(output, "parquet", load(f"{output}/plan"), spec=read_description(f"{output}/../model").spec)


def test_the_large_scenes_are_there_the_largest_first(segmented):
    found = gather(segmented)
    assert [Path(each.title).name for each in found] == ["long.tif", "high.tif"]
    assert [each.mask.shape for each in found] == [(150, 1100), (900, 400)]
    assert all(each.crs == "EPSG:32618" and each.image is not None and not each.note for each in found)
    assert all(each.transform == pytest.approx(list(TRANSFORM)[:6], abs=1e-9) for each in found)


def test_the_mask_is_the_most_frequent_class_of_the_scenes_own(segmented):
    masks = open_masks(str(segmented / "out"))
    scenes = {scene.image: scene for scene in scenes_of(masks)}
    assert masks.shards > 8
    for each in gather(segmented):
        mask = SceneReader(masks, scenes[each.title]).read(Window(0, 0, each.height, each.width))
        assert each.factor == factor_of(*mask.shape)
        expected = majority(mask, each.factor)
        # where a window's edge cuts a square, only the window that holds its first pixel votes
        assert (each.mask != expected).mean() < 0.02 and len(np.unique(each.mask)) > 1
        if each.factor == 1:
            np.testing.assert_array_equal(each.mask, mask)


def test_the_image_is_that_of_the_scene(segmented):
    for each in gather(segmented):
        with rasterio.open(each.title) as source:
            pixels = source.read(out_shape=(3, *each.image.shape[:2])).transpose(1, 2, 0)
        assert abs(each.image.astype(int) - pixels).mean() < 12
        assert max(each.image.shape) <= 2048


def test_of_a_very_large_scene_some_shards_are_shown_by_their_windows(segmented, monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 300 * 2200 // 3)
    sampled = next(each for each in gather(segmented) if each.note)
    assert Path(sampled.title).name == "long.tif" and "one shard in 3" in sampled.note
    monkeypatch.undo()
    exact = next(each for each in gather(segmented) if each.title == sampled.title)
    same = (sampled.mask == exact.mask).mean()
    assert 0.3 < same < 1 and not (sampled.mask == 255).any()


def test_the_report_holds_them(segmented):
    text = (segmented / "out" / "report.html").read_text()
    assert 'id="viewer"' in text and "long.tif" in text
    assert len(text) < 6_000_000


def test_an_image_that_is_gone_leaves_its_mask(segmented):
    (segmented / "images" / "high.tif").rename(segmented / "high.tif")
    try:
        gone = next(each for each in gather(segmented) if each.title.endswith("high.tif"))
        assert gone.image is None and gone.mask.shape == (900, 400)
    finally:
        (segmented / "high.tif").rename(segmented / "images" / "high.tif")


def test_an_image_of_whose_reading_a_process_dies_leaves_its_mask(segmented, monkeypatch, caplog):
    @ray.remote(max_retries=0)
    def die(*of: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "_image", die)
    with caplog.at_level(logging.INFO, logger="segray"):
        found = gather(segmented)
    assert [(Path(each.title).name, each.image) for each in found] == [("long.tif", None), ("high.tif", None)]
    told = "a scene has no image on the page: the process that read it died (WorkerCrashedError)"
    assert caplog.messages == [told] * 2


def test_an_image_whose_store_fails_is_not_shown(segmented, no_credentials):
    spec = read_description(str(segmented / "model")).spec
    assert module._image._function("s3://bucket/high.tif", "", spec) is None
