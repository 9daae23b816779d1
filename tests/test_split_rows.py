"""The rows of an evaluation: few on a large split, several per actor, and what an actor needs for them."""

from __future__ import annotations

import json
import pickle

import pytest
from conftest import png
from scene_sets import raster

from segray.datasets import open_dataset
from segray.masks import encode_png
from segray.split_rows import BLOCK_BYTES, PICTURES, SCENE_BYTES, WHOLE_BYTES, Split, images_a_row, ranges_of
from segray.storage import publish
from segray.synthetic import CLASSES, scene
from segray.uris import join


def test_large_samples_are_rows_of_their_own():
    assert list(ranges_of(9, {3, 4}, 4)) == [(0, 3), (3, 4), (4, 5), (5, 9)]
    assert list(ranges_of(9, set(), 4)) == [(0, 4), (4, 8), (8, 9)]
    assert list(ranges_of(2, {0, 1}, 4)) == [(0, 1), (1, 2)]
    assert list(ranges_of(0, set(), 4)) == []
    assert list(ranges_of(9, set(), 256)) == [(0, 9)]


@pytest.mark.parametrize(
    ("samples", "pixels", "batch", "actors", "images"),
    [
        (9, 0, 1, 1, 4),
        (2_000, 2**16, 1, 8, 4),
        (1_000_000, 2**16, 1, 64, 256),  # not 250,000 blocks
        (1_000_000, 2**16, 1, 5_000, 50),  # every actor gets some
        (500, 2**16, 16, 1, 64),  # a GPU's batches are full
        (500, 2**16, 16, 8, 15),
        (100, 2**16, 16, 8, 4),
        (500, 2**21, 16, 1, 32),  # a row holds no more pixels than a shard
        (1_000_000, 2**25, 16, 8, 4),
    ],
)
def test_rows_are_few_and_full_and_go_round(samples, pixels, batch, actors, images):
    assert images_a_row(samples, pixels=pixels, batch=batch, actors=actors) == images


SIZES = [(150, 131), (97, 180), (40, 30)]


def split_of(uri: str, ending: str) -> str:
    """Labelled images of those sizes, as GeoTIFFs or as pictures."""
    publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES.to_json()}).encode())
    for number, size in enumerate(SIZES):
        image, mask = scene(number, *size)
        content = png(image) if ending == "png" else raster(image.transpose(2, 0, 1))
        publish(join(uri, "val", "images", f"s{number}.{ending}"), content)
        publish(join(uri, "val", "masks", f"s{number}.png"), encode_png(mask, CLASSES))
    return uri


def test_a_large_scene_is_measured_and_reckoned_with(tmp_path, monkeypatch):
    dataset = open_dataset(split_of(str(tmp_path), "tif"))
    samples = dataset.samples("val")
    assert Split.of(dataset, samples, map).large == frozenset()
    monkeypatch.setattr("segray.datasets.large.LARGE_PIXELS", 150 * 131 - 1)
    split = Split.of(dataset, samples, map)
    assert (split.large, split.ranges(batch=1, actors=1)) == ({0}, [(0, 1), (1, 3)])
    assert split.pixels == (97 * 180 + 40 * 30) // 2
    assert split.actor_bytes == 150 * 131 * SCENE_BYTES + BLOCK_BYTES
    rows = [split.row(*samples) for samples in split.ranges(batch=1, actors=1)]
    assert [row["large"] for row in rows] == [True, False]
    assert [pickle.loads(row["samples"]) for row in rows] == [samples[:1], samples[1:]]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_an_actor_needs_memory_for_the_largest_image_that_it_holds_whole(ending, tmp_path):
    dataset = open_dataset(split_of(str(tmp_path), ending))
    split = Split.of(dataset, dataset.samples("val"), map)
    assert (split.large, split.actor_bytes) == (frozenset(), 150 * 131 * WHOLE_BYTES)
    assert split.pixels == sum(height * width for height, width in SIZES) // len(SIZES)


def test_some_pictures_stand_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.split_rows.PICTURES", 2)
    dataset, looked = open_dataset(split_of(str(tmp_path), "png")), []
    split = Split.of(dataset, dataset.samples("val"), lambda size_of, some: map(size_of, looked.extend(some) or looked))
    assert PICTURES > 2 == len(looked)
    assert split.actor_bytes == 150 * 131 * WHOLE_BYTES


def test_a_picture_of_any_size_is_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.datasets.large.LARGE_PIXELS", 100)
    dataset = open_dataset(split_of(str(tmp_path), "png"))
    split = Split.of(dataset, dataset.samples("val"), map)
    assert split.large == frozenset() and split.ranges(batch=1, actors=1) == [(0, 3)]
