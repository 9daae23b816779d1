"""What the inspection of labelled data finds: bands, range, moments over valid pixels, classes; and its fingerprint."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import png
from scene_sets import raster, write_scenes
from torch import nn

from segray import inspection
from segray.datasets import Labelled, large, open_dataset
from segray.errors import SegrayError
from segray.first_weights import IMAGENET_MEAN, IMAGENET_STD
from segray.inputs import InputSpec
from segray.inspection import Inspection, fingerprint, inspect, spread
from segray.masks import Classes
from segray.model_dir import Description, save_model
from segray.settings import TrainSettings

CLASSES = [{"id": 0, "name": "land", "color": [0, 99, 0]}, {"id": 1, "name": "water", "color": [0, 0, 255]}]


def write_raster(path: Path, pixels: np.ndarray, **options: object) -> None:
    """A GeoTIFF of (C, H, W) pixels; by default the fourth of four bands of bytes would be written as alpha."""
    path.write_bytes(raster(pixels, **{"alpha": "NO", **options}))


def write_data(root: Path, images: list[np.ndarray], masks: list[np.ndarray] | None = None, **options: object) -> str:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    masks = masks or [np.zeros(image.shape[1:], np.uint8) for image in images]
    for number, (image, mask) in enumerate(zip(images, masks)):
        write_raster(root / "train" / "images" / f"{number}.tif", image, **options)
        (root / "train" / "masks" / f"{number}.png").write_bytes(png(mask))
    return str(root)


def look(data: str, **changes: object) -> Inspection:
    settings = TrainSettings(**{"data": data, "output": "none", "crop": 16, **changes})
    dataset = open_dataset(data)
    return inspect(dataset, dataset.samples("train"), settings)


@pytest.mark.parametrize(
    ("dtype", "top", "scale"), [("uint8", 255, 1 / 255), ("uint16", 10_000, 1 / 65535), ("float32", 1, 1.0)]
)
def test_moments_are_those_of_the_valid_pixels(tmp_path: Path, dtype: str, top: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    images = [(rng.random((4, 30, 20 + k)) * top + 1).astype(dtype) for k in range(3)]
    for image in images:
        image[:, :10] = 0  # nodata
    found = look(write_data(tmp_path, images, nodata=0))
    values = np.concatenate([image[:, 10:].reshape(4, -1) for image in images], axis=1).astype(np.float64) * scale
    assert (found.bands, found.source_bands) == ((0, 1, 2, 3), None)
    assert found.scale == pytest.approx(scale)
    assert found.mean == pytest.approx(values.mean(axis=1), rel=1e-6)
    assert found.std == pytest.approx(values.std(axis=1), rel=1e-6)
    assert found.class_pixels == (values.shape[1], 0)
    assert found.images == 3


def test_bands_are_chosen_in_their_order(tmp_path: Path) -> None:
    image = np.stack([np.full((20, 20), value, np.uint8) for value in (10, 20, 30, 40)])
    image[:, 0, 0] += 1
    found = look(write_data(tmp_path, [image]), bands=(3, 0))
    assert (found.bands, found.spec(16).source_bands) == ((3, 0), 4)
    assert [round(255 * value) for value in found.mean] == [40, 10]


def test_infrared_that_is_marked_as_alpha_is_trained_on_where_it_is_chosen(tmp_path: Path) -> None:
    image = np.stack([np.full((20, 20), value, np.uint8) for value in (10, 20, 30, 40)])
    image[3, :10] = 0
    marked = {"photometric": "RGB", "alpha": "YES"}
    data = write_data(tmp_path, [image], **marked)
    found = look(data, bands=(0, 1, 2, 3))
    assert [round(255 * value) for value in found.mean] == [10, 20, 30, 20]
    assert found.class_pixels == (400, 0)
    assert look(data).bands == (0, 1, 2)
    with pytest.raises(SegrayError, match="4 band.*, so --bands 0,4 cannot be read; bands are numbered 0 to 3"):
        look(data, bands=(0, 4))


def test_a_constant_band_has_a_deviation_of_1(tmp_path: Path) -> None:
    assert look(write_data(tmp_path, [np.full((1, 20, 20), 7, np.uint8)])).std == (1.0,)


@pytest.mark.parametrize(("dtype", "value"), [("float64", -1.7e308), ("float32", np.finfo("float32").min)])
def test_no_data_values_that_are_not_declared_are_a_sentence(tmp_path: Path, dtype: str, value: float) -> None:
    image = np.linspace(0, 1, 3 * 20 * 20).reshape(3, 20, 20).astype(dtype)
    image[1, 0] = value
    with pytest.raises(SegrayError, match=r"band 1 of 1 training images of .* deviation of .*; declare its no-data"):
        look(write_data(tmp_path, [image]))


def test_grey_among_colour_counts_as_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 255, (bands, 20, 20), np.uint8) for bands in (1, 3))
    data = write_data(tmp_path, [grey, colour])
    assert look(data).bands == (0, 1, 2)
    assert look(data, bands=(0,)).source_bands is None
    with pytest.raises(SegrayError, match=r"1\.tif has 3 band.*, so --bands 3 cannot be read"):
        look(data, bands=(3,))


def test_grey_images_in_front_of_coloured_ones_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "HEADERS", 3)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (1 if number < 5 else 3, 20, 20), np.uint8) for number in range(9)]
    assert look(write_data(tmp_path, images)).bands == (0, 1, 2)


@pytest.mark.parametrize(
    ("shape", "dtype", "ids", "sentence"),
    [
        ((3, 20, 20), "uint8", 77, "0.png .*77"),
        (
            (3, 20, 20),
            "uint16",
            0,
            r"0.tif holds uint16 values, but others of the labelled images values of 0 to 255;",
        ),
        ((4, 20, 20), "uint8", 0, "0.tif has 4 bands, but the model was trained on 3"),
        ((3, 20, 30), "uint8", 0, "0.png has 20 x 20 pixels"),
    ],
)
def test_what_is_to_be_validated_is_looked_at_before_anything_is_trained(
    tmp_path: Path, shape: tuple[int, int, int], dtype: str, ids: int, sentence: str
) -> None:
    data = write_data(tmp_path / "data", [np.ones((3, 20, 20), np.uint8)])
    write_raster(tmp_path / "data" / "val" / "images" / "0.tif", np.ones(shape, dtype))
    (tmp_path / "data" / "val" / "masks" / "0.png").write_bytes(png(np.full((20, 20), ids, np.uint8)))
    dataset, settings = open_dataset(data), TrainSettings(data=data, output="none", crop=16)
    with pytest.raises(SegrayError, match=sentence):
        inspect(dataset, dataset.samples("train"), settings, val=dataset.samples("val"))


def test_pretrained_weights_come_with_their_own_moments(tmp_path: Path) -> None:
    data = write_data(tmp_path, [np.random.default_rng(0).integers(0, 255, (3, 20, 20), np.uint8)])
    found = look(data, weights="some.safetensors")
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_an_earlier_model_comes_with_its_own_moments(tmp_path: Path) -> None:
    spec = InputSpec(bands=(0, 1, 2, 3), scale=1 / 255, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))
    classes = Classes(names=("land",), colors=((0, 99, 0),))
    network = {"name": "unet", "options": {"width": 8}}
    uri = str(tmp_path / "model")
    save_model(Description(uri=uri, network=network, classes=classes, spec=spec), nn.Conv2d(4, 1, 1))
    same, others = {}, {}
    for dtype, bands in (("uint8", 4), ("uint16", 4), ("uint8", 3)):
        image = np.random.default_rng(0).integers(0, 255, (bands, 20, 20)).astype(dtype)
        data = write_data(tmp_path / f"{dtype}{bands}", [image])
        found, measured = look(data, weights=f"{uri}/weights.safetensors"), look(data)
        (same if (found.mean, found.std) == (spec.mean, spec.std) else others)[dtype, bands] = found == measured
    assert (same, others) == ({("uint8", 4): False}, {("uint16", 4): True, ("uint8", 3): True})


@pytest.mark.parametrize(("size", "crops"), [(8, 1), (16, 1), (32, 4), (80, 25)])
def test_crops_cover_a_mean_image_once(tmp_path: Path, size: int, crops: int) -> None:
    assert look(write_data(tmp_path, [np.ones((1, size, size), np.uint8)])).crops_per_image == crops


@pytest.mark.parametrize(
    ("mask_value", "sentence"), [(255, "none of 1 training masks .* has a labelled pixel"), (9, "holds the id 9")]
)
def test_masks_that_cannot_be_used_are_refused(tmp_path: Path, mask_value: int, sentence: str) -> None:
    mask = np.full((20, 20), mask_value, np.uint8)
    with pytest.raises(SegrayError, match=sentence):
        look(write_data(tmp_path, [np.ones((3, 20, 20), np.uint8)], [mask]))


@pytest.mark.parametrize("dtypes", [("uint8", "float32"), ("float32", "uint8")])
def test_bytes_and_real_numbers_are_not_mixed(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    data = write_data(tmp_path, [np.ones((3, 20, 20), dtype) for dtype in dtypes])
    with pytest.raises(SegrayError, match=r"1.tif holds \w+ values, but others .*; convert one or the other"):
        look(data)


def test_an_inspection_survives_json(tmp_path: Path) -> None:
    found = look(write_data(tmp_path, [np.random.default_rng(0).integers(0, 255, (3, 20, 20), np.uint8)]))
    assert Inspection.from_json(json.loads(json.dumps(vars(found)))) == found


def test_the_number_of_parts_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [(rng.random((3, 20 + k, 20)) * 1e4).astype(np.float32) for k in range(7)]
    masks = [rng.integers(0, 2, image.shape[1:]).astype(np.uint8) for image in images]
    data = write_data(tmp_path, images, masks)
    found = []
    for part in (1, 3, 100):
        monkeypatch.setattr(inspection, "PART", part)
        found.append(look(data, balance=0.5))
    assert found[0] == found[1] == found[2]
    assert found[0].class_counts == tuple(tuple(np.bincount(mask.ravel(), minlength=2)) for mask in masks)
    assert found[0].class_pixels == tuple(np.sum(found[0].class_counts, axis=0))


def test_masks_are_counted_where_images_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [np.full((1, 10, 10), 1 + k, np.uint8) for k in range(9)]
    masks = [np.full((10, 10), k % 2, np.uint8) for k in range(9)]
    data = write_data(tmp_path, images, masks)
    for number in (1, 2, 4, 5, 7, 8):  # the images whose pixels are not needed
        (tmp_path / "train" / "images" / f"{number}.tif").write_bytes(b"")
    monkeypatch.setattr(inspection, "IMAGES", 3)
    monkeypatch.setattr(inspection, "HEADERS", 1)
    monkeypatch.setattr(inspection, "measured", lambda samples, run: {})
    found = look(data, balance=0.5)
    assert found.images == 3
    assert found.mean == pytest.approx([(1 + 4 + 7) / 3 / 255])
    assert found.class_counts == tuple((100, 0) if k % 2 == 0 else (0, 100) for k in range(9))
    monkeypatch.setattr(inspection, "COUNTED", 4)
    assert look(data).class_pixels == (400, 0)  # from 0, 2, 4, 6, evenly spread
    assert look(data).class_counts == ()  # nobody needs them
    assert look(data, balance=0.5) == found  # crops are drawn from all of them
    assert inspection.counted_units(9, balance=0) == [0, 2, 4, 6]


def test_what_is_counted_and_summed_does_not_depend_on_the_pixels_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    image = (rng.random((3, 50, 30)) * 1e4).astype(np.float32)
    image[:, 20:30, :9] = 0  # nodata
    data = write_data(tmp_path, [image], [rng.integers(0, 2, (50, 30)).astype(np.uint8)], nodata=0)
    whole = look(data, balance=0.5)
    for chunk in (7, 100, 1499):
        monkeypatch.setattr(inspection, "CHUNK", chunk)
        found = look(data, balance=0.5)
        assert found.class_counts == whole.class_counts
        assert found.mean == pytest.approx(whole.mean, rel=1e-12)
        assert found.std == pytest.approx(whole.std, rel=1e-12)


def test_a_large_picture_is_counted_and_summed_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 2048
    labelled = Labelled(
        pixels=np.ones((3, side, side), np.uint8),
        valid=np.ones((side, side), bool),
        mask=np.zeros((side, side), np.uint8),
    )
    monkeypatch.setattr(inspection, "read_labelled", lambda *given, **named: labelled)
    dataset = SimpleNamespace(classes=CLASSES)
    spec = InputSpec(bands=(0, 1, 2), scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    tracemalloc.start()
    (seen,) = inspection.look_at([(None, True)], dataset=dataset, spec=spec, explicit_bands=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.class_pixels.tolist() == [side * side, 0]
    assert seen.first.tolist() == seen.second.tolist() == [side * side] * 3
    assert peak < 5 * side * side  # at once it would take 8 bytes a pixel


@pytest.mark.parametrize(("pixels", "ahead"), [(16, 1), (400, 1), (1500, 3), (2**26, 8)])
def test_fewer_pictures_are_read_at_a_time_if_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, ahead: int
) -> None:
    data = write_data(tmp_path, [np.ones((3, 20, 20), np.uint8)] * 3)
    given, in_order = [], inspection.in_order
    monkeypatch.setattr(inspection, "measured", lambda samples, run: {})
    monkeypatch.setattr(inspection, "PIXELS_AT_A_TIME", pixels)
    monkeypatch.setattr(inspection, "in_order", lambda *call, **named: given.append(named) or in_order(*call, **named))
    assert look(data, balance=0.5).class_counts == ((400, 0),) * 3
    assert [named["ahead"] for named in given] == [ahead]


def test_large_scenes_are_looked_at_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 255, (3, *size), np.uint8) for size in ((20, 30), (64, 90), (50, 10))]
    masks = [rng.integers(0, 2, image.shape[1:]).astype(np.uint8) for image in images]
    data = write_data(tmp_path, images, masks)
    whole = look(data)
    monkeypatch.setattr(large, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(large, "PIECE_SIDE", 32)
    monkeypatch.setattr(large, "CROPS_A_SIDE", 1)
    monkeypatch.setattr(large, "ALIGNED", 16)
    samples = open_dataset(data).samples("train")
    settings = TrainSettings(data=data, output="none", crop=16, balance=0.5)
    found = inspect(open_dataset(data), samples, settings, val=samples[1:])
    assert (found.large, found.large_val) == (((1, 64, 90),), ((0, 64, 90),))
    assert (found.class_pixels, found.images) == (whole.class_pixels, 8)
    assert found.mean == pytest.approx(whole.mean, rel=1e-12)
    units = found.train(samples, settings.reach)
    assert [unit.key for unit in units] == ["0", *["1"] * 6, "2"]
    counts = [
        masks[int(unit.key)][unit.window.rows, unit.window.cols] if unit.window else masks[int(unit.key)]
        for unit in units
    ]
    assert found.class_counts == tuple(tuple(np.bincount(count.ravel(), minlength=2)) for count in counts)
    assert found.crops_per_image == max(1, round(sum(mask.size for mask in masks) / 8 / 16**2))
    blocks = found.val(samples[1:], 16)
    assert sum(block.window.pixels for block in blocks[:-1]) == 64 * 90
    assert blocks[-1] == samples[2]


def test_the_fingerprint_notices_every_change(tmp_path: Path) -> None:
    image = np.ones((3, 20, 20), np.uint8)
    data = write_data(tmp_path, [image, image])

    def mark() -> str:
        dataset = open_dataset(data)
        return fingerprint(dataset, dataset.samples("train"))

    marks = [mark(), mark()]
    assert marks[0] == marks[1]
    (tmp_path / "train" / "masks" / "0.png").write_bytes(png(np.ones((20, 20), np.uint8)))
    marks.append(mark())
    write_raster(tmp_path / "train" / "images" / "2.tif", image)
    (tmp_path / "train" / "masks" / "2.png").write_bytes(png(np.ones((20, 20), np.uint8)))
    marks.append(mark())
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES, "ignore_index": 99}))
    marks.append(mark())
    assert len(set(marks)) == 4


def test_the_fingerprint_notices_what_the_legend_says_of_features(tmp_path: Path) -> None:
    files, marks = {"train/images/a.tif": b"image", "train/labels/a.geojson": b"label"}, set()
    for legend in ({}, {"background": "land"}, {"attribute": "use"}):
        dataset = open_dataset(write_scenes(str(tmp_path), files, **legend))
        marks.add(fingerprint(dataset, dataset.samples("train")))
        files = {}  # they stay as they are
    assert len(marks) == 3


@pytest.mark.parametrize(("length", "count"), [(1, 5), (5, 5), (7, 5), (1000, 200), (0, 5)])
def test_samples_are_spread_evenly(length: int, count: int) -> None:
    chosen = spread(range(length), count)
    gaps = np.diff(chosen)
    assert len(chosen) == min(length, count)
    assert length == 0 or chosen[0] == 0
    assert len(chosen) < 2 or gaps.max() - gaps.min() <= 1
