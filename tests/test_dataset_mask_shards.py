"""The output of a segmentation as labelled data: every image with a mask once, in a split that it keeps."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import numpy as np
import pytest
from conftest import png
from containers import listed, put, tar_of
from mask_shards import CLASSES, UTM, Image, ids, write_masks
from scene_sets import raster

from segray import plan as plans
from segray.datasets import Dataset, Sample, open_dataset, read
from segray.datasets.mask_shards import SHARES, place_of
from segray.errors import LabelError, SegrayError
from segray.grid import Window, windows
from segray.inspection import fingerprint
from segray.masks import IGNORE
from segray.plan import Item, Plan
from segray.shards import read_masks
from segray.storage import publish
from segray.uris import join


def segmented(uri: str, images: Sequence[Image], parts: dict[str, str] | None = None, **options: object) -> str:
    """The OUTPUT of a segmentation of images, which are made where they are not there. parts: see `storage.File`."""
    write_masks(join(uri, "out"), list(images), archive=uri, **options)
    items = [Item(image=image.uri, etag="e", part=(parts or {}).get(image.uri, "")) for image in images]
    files = plans.write_files(join(uri, "out/plan"), [items])
    plans.save(Plan(uri=join(uri, "out/plan"), fingerprint=FINGERPRINT, files=files, images=len(items), skipped=0))
    for image in images:
        if image.uri.endswith(".tif") and "::" not in image.uri:
            publish(image.uri, raster(np.ones((3, *image.mask.shape), np.uint8)))
    return join(uri, "out")


FINGERPRINT = plans.fingerprint(archive="", listing="", images=0, model="", settings={})


def images_at(uri: str, count: int) -> list[Image]:
    masks = [ids(20, 30, seed=k) for k in range(count)]
    for mask in masks:
        mask[0, 0] = 1  # or some would have no data at all
    return [Image(uri=join(uri, f"in/{k}.tif"), mask=mask) for k, mask in enumerate(masks)]


def split_samples(dataset: Dataset) -> dict[str, list[Sample]]:
    """Split -> samples, of the splits that there are."""
    found = {}
    for split in ("train", "val", "test"):
        with suppress(SegrayError):
            found[split] = dataset.samples(split)
    return found


def everything(uri: str) -> dict[str, tuple[str, Sample]]:
    """Image -> its split and sample."""
    found = split_samples(open_dataset(uri))
    return {sample.image: (split, sample) for split, samples in found.items() for sample in samples}


@pytest.mark.parametrize("formats", ["parquet", "parquet,png"])
def test_every_mask_arrives_exactly(store, formats):
    images = images_at(store, 12)
    images.append(Image(uri=join(store, "in/torn.tif"), mask=ids(20, 30), failed=(0,)))
    images.append(Image(uri=join(store, "in/dark.tif"), mask=np.full((20, 30), IGNORE, np.uint8)))
    uri = segmented(store, images, formats=formats)
    dataset, found = open_dataset(uri), everything(uri)
    assert (dataset.classes, dataset.nadir) == (CLASSES, True)
    assert found.keys() == {image.uri for image in images[:12]}  # those without labels are left out
    for image in images[:12]:
        sample = found[image.uri][1]
        assert np.array_equal(read(dataset, sample).mask, image.mask)
        assert sample.size == (20, 30)


def test_a_scene_of_many_shards_is_read_by_window(tmp_path):
    mask = ids(450, 330, seed=3)
    scene = Image(uri=str(tmp_path / "in/scene.tif"), mask=mask, failed=(2, 11), crs="EPSG:32633", transform=UTM)
    uri = segmented(str(tmp_path), [*images_at(str(tmp_path), 2), scene], window=100, rows_a_shard=3)
    expected = mask.copy()
    for number in scene.failed:
        window = windows(450, 330, 100)[number]
        expected[window.rows, window.cols] = IGNORE
    dataset = open_dataset(uri)
    sample = everything(uri)[scene.uri][1]
    assert np.array_equal(dataset.read_mask(sample), expected)
    for window in (Window(0, 0, 450, 330), Window(95, 95, 10, 10), Window(449, 329, 1, 1), Window(150, 0, 120, 330)):
        part = read(dataset, Sample(**{**vars(sample), "window": window}))
        assert np.array_equal(part.mask, expected[window.rows, window.cols])


def test_members_of_archives_are_read_by_their_place(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    file = put(str(tmp_path / "in.tar"), tar_of({"a.png": png(pixels)}))
    member = listed(file)["a.png"]
    uri = segmented(str(tmp_path), [Image(uri=member.uri, mask=ids(20, 30))], {member.uri: member.part})
    dataset = open_dataset(uri)
    (sample,) = dataset.samples("train")
    assert sample.part == member.part
    assert np.array_equal(read(dataset, sample).pixels, pixels.transpose(2, 0, 1))


def test_splits_are_shares_that_images_keep():
    place = "memory://splits-of-mask-shards"  # fixed, so that the hashes of the URIs are
    images = images_at(place, 60)
    before = {image: split for image, (split, _) in everything(segmented(place, images[:30])).items()}
    after = everything(segmented(place, images))
    assert before == {image: after[image][0] for image in before}
    assert len(after) == 2 * len(before) == 60
    counts = {split: sum(of == split for of, _ in after.values()) for split in SHARES}
    assert counts["train"] > 3 * counts["val"] > 0
    assert counts["test"] > 0
    for image, (split, _) in after.items():
        start = {"train": 0.0, "val": 0.8, "test": 0.9}[split]
        assert start <= place_of(image) < SHARES[split]


def test_places_are_spread_evenly():
    places = np.array([place_of(f"s3://bucket/{k}.tif") for k in range(4000)])
    counts, _ = np.histogram(places, bins=10, range=(0, 1))
    assert counts.min() > 330 and counts.max() < 470


@pytest.mark.parametrize("count", range(1, 6))
def test_two_images_are_enough_to_train_and_to_validate(tmp_path, count):
    found = everything(segmented(str(tmp_path), images_at(str(tmp_path), count)))
    splits = [split for split, _ in found.values()]
    assert len(found) == count
    assert "train" in splits
    assert ("val" in splits) == (count > 1)


def test_a_split_without_images_is_told(tmp_path):
    dataset = open_dataset(segmented(str(tmp_path), images_at(str(tmp_path), 1)))
    with pytest.raises(SegrayError, match="no image of the split 'val'.*1 in train, 0 in val, 0 in test: segment more"):
        dataset.samples("val")


def test_masks_of_another_grid_than_the_image_are_refused(tmp_path):
    images = images_at(str(tmp_path), 1)
    uri = segmented(str(tmp_path), images)
    publish(images[0].uri, raster(np.ones((3, 40, 60), np.uint8)))  # as if the masks were on a coarser grid
    dataset = open_dataset(uri)
    sample = dataset.samples("train")[0]
    for changes in ({}, {"window": Window(0, 0, 5, 5)}):
        with pytest.raises(
            LabelError, match=r"shard-00000000.parquet has 20 x 30 .*in/0.tif has 40 x 60; masks are never"
        ):
            read(dataset, Sample(**{**vars(sample), **changes}))


def test_an_image_whose_masks_are_gone_is_named(tmp_path):
    images = images_at(str(tmp_path), 4)
    uri = segmented(str(tmp_path), images[:3])
    dataset, (_, sample) = open_dataset(uri), everything(uri)[images[0].uri]
    segmented(str(tmp_path), images[1:])
    with pytest.raises(SegrayError, match=r"out holds no mask of .*in/0.tif any more; begin again"):
        dataset.read_mask(sample)


def test_the_masks_of_one_shard_are_asked_for_once(tmp_path, monkeypatch):
    dataset, asked = open_dataset(segmented(str(tmp_path), images_at(str(tmp_path), 3))), []
    samples = list(chain.from_iterable(split_samples(dataset).values()))
    monkeypatch.setattr("segray.scenes.read_statistics", None)
    monkeypatch.setattr("segray.scenes.read_masks", lambda *place, alone: asked.append(place) or read_masks(*place))
    for sample in samples:
        dataset.read_mask(sample)
    assert asked == [(dataset.uri, 0, "parquet", "mask")]


def test_the_fingerprint_follows_the_masks(tmp_path):
    images, marks = images_at(str(tmp_path), 3), []
    for seed in (0, 0, 5):
        changed = [*images[:2], Image(uri=images[2].uri, mask=ids(20, 30, seed=seed))]
        dataset = open_dataset(segmented(str(tmp_path), changed))
        marks.append(fingerprint(dataset, dataset.samples("train")))
    assert len(set(marks[1:])) == 2
    assert pickle.loads(pickle.dumps(dataset)) == dataset
