"""The evaluation job on a local Ray: the scores of its masks whoever counted them, and a temperature that fits."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from conftest import png
from containers import listed, parquet_of, put
from mask_shards import Image, ids
from scene_sets import raster
from test_dataset_mask_shards import segmented
from torchmetrics.classification import MulticlassJaccardIndex

from segray import evaluation, evaluators, pipeline
from segray.calibration import TEMPERATURES
from segray.datasets import Dataset, Labelled, open_dataset, read
from segray.datasets.labels import size_error
from segray.errors import SegrayError
from segray.evaluation import evaluate
from segray.evaluators import EvaluateActor, Part, items_of
from segray.inputs import InputSpec
from segray.masks import encode_png
from segray.model_dir import Description, load_network, read_description, save_model
from segray.networks import build_network
from segray.segmentation import make_work
from segray.segmenter import Segmenter
from segray.settings import EvaluateSettings
from segray.showcase import Showcase
from segray.split_rows import Split, ranges_of
from segray.storage import exists, publish, read_bytes
from segray.synthetic import CLASSES, scene
from segray.tally import Measures, Tally, image_row
from segray.uris import join
from segray.work import Work

IMAGES = 9  # in three ranges
SIZES = [(48, 48), (70, 41), (32, 32)]
OPTIONS = {"split": "val", "device": "cpu", "precision": "fp32"}


def labelled_split(uri: str) -> str:
    publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES.to_json()}).encode())
    for number in range(IMAGES):
        image, mask = scene(number, *SIZES[number % len(SIZES)])
        mask[:5] = 255
        publish(join(uri, "val", "images", f"s{number}.png"), png(image))
        publish(join(uri, "val", "masks", f"s{number}.png"), encode_png(mask, CLASSES))
    return uri


def overconfident_model(uri: str) -> str:
    torch.manual_seed(0)
    network = build_network("encoder_decoder", {"width": 8}, num_classes=len(CLASSES), in_channels=3)
    with torch.no_grad():
        for parameter in [*network.parameters()][-2:]:
            parameter.mul_(40)
    spec = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=32, overlap=4)
    described = {"name": "encoder_decoder", "options": {"width": 8}}
    save_model(Description(uri=uri, network=described, classes=CLASSES, spec=spec), network)
    return uri


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("evaluation")
    return {"data": labelled_split(str(folder / "labelled")), "model": overconfident_model(str(folder / "model"))}


@pytest.fixture(scope="module")
def alone(local_ray: None, given: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """The metrics that one actor comes to, and where they lie."""
    output = str(tmp_path_factory.mktemp("alone"))
    return evaluate(EvaluateSettings(**given, output=output, actors="1", **OPTIONS)), output


def without(metrics: dict, *names: str) -> dict:
    return {name: value for name, value in metrics.items() if name not in ("seconds", *names)}


def masks_of(given: dict[str, str]) -> list[tuple[Labelled, np.ndarray]]:
    """Each image with its mask, without Ray."""
    described, dataset = read_description(given["model"]), open_dataset(given["data"])
    segmenter = Segmenter(load_network(described), described.spec, num_classes=len(CLASSES))
    images = [read(dataset, sample) for sample in dataset.samples("val")]
    return [(image, segmenter.mask_image(image.pixels, image.valid)) for image in images]


def test_scores_are_those_of_the_masks_of_the_segmenter(alone, given):
    metrics, output = alone
    pairs = masks_of(given)
    truth, mask = (
        np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*((i.mask, m) for i, m in pairs))
    )
    oracle = MulticlassJaccardIndex(len(CLASSES), ignore_index=255, average="macro")
    assert metrics["miou"] == pytest.approx(
        oracle(torch.from_numpy(mask), torch.from_numpy(truth).long()).item(), abs=1e-6
    )
    assert metrics["pixel_accuracy"] == pytest.approx((truth == mask)[truth != 255].mean())
    assert (
        np.sum(metrics["confusion_matrix"])
        == sum(row["pixels"] for row in metrics["reliability"])
        == (truth != 255).sum()
    )
    assert 0 < metrics["nll_pixels"] < len(truth) / 8
    assert json.loads(read_bytes(join(output, "metrics.json"))) == metrics
    assert metrics["settings"]["scale"] == read_description(given["model"]).spec.scale
    table = pq.read_table(io.BytesIO(read_bytes(join(output, "images.parquet"))))
    assert table["key"].to_pylist() == [f"s{number}" for number in range(IMAGES)]
    for row, (image, mask) in zip(table.to_pylist(), pairs, strict=True):
        labelled = image.mask != 255
        assert row["labelled_pixels"] == labelled.sum()
        assert row["pixel_accuracy"] == pytest.approx((image.mask == mask)[labelled].mean())
    ranked = sorted(table.to_pylist(), key=lambda row: (row["miou"], row["key"]))
    page = read_bytes(join(output, "report.html")).decode()
    assert f"worst: mIoU {ranked[0]['miou']:.3f}" in page and f"best: mIoU {ranked[-1]['miou']:.3f}" in page
    assert page.count(">Confidence (white is certain)<") == page.count(">Errors<") - page.count(">Evidence<") > 0
    assert "<h2>Why</h2>" in page and page.count(">Evidence<") == 6


def test_errors_that_cannot_be_explained_cost_no_scores(local_ray, given, tmp_path, monkeypatch, caplog):
    def explain(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(evaluation, "explain", explain)
    caplog.set_level("INFO", "segray")
    metrics = evaluate(EvaluateSettings(**given, output=str(tmp_path), actors="1", **OPTIONS))
    assert metrics["images"] == IMAGES
    assert "the page does not explain errors: " in caplog.text
    assert "<h2>Why</h2>" not in (tmp_path / "report.html").read_text()


def test_two_actors_come_to_the_same_scores_and_the_same_table(alone, given, tmp_path):
    metrics, output = alone
    found = evaluate(EvaluateSettings(**given, output=str(tmp_path), actors="2", **OPTIONS))
    assert without(found) == without(metrics)
    assert read_bytes(str(tmp_path / "images.parquet")) == read_bytes(join(output, "images.parquet"))


def test_a_calibration_lowers_the_nll_and_changes_no_mask(alone, given, tmp_path):
    before, _ = alone
    model = shutil.copytree(given["model"], tmp_path / "model").as_posix()
    settings = {"data": given["data"], "model": model, "output": str(tmp_path / "scores"), "actors": "1", **OPTIONS}
    after = evaluate(EvaluateSettings(**settings, calibrate=True))
    found = after["calibration"]
    assert found["temperature_before"] == 1 < found["temperature"] < 10
    assert (found["nll_before"], found["ece_before"]) == (before["nll"], before["ece"])
    assert (found["nll_after"], found["ece_after"]) == (after["nll"], after["ece"])
    assert found["nll_after"] < found["nll_before"] and found["ece_after"] < found["ece_before"]
    assert found["reliability_before"] == before["reliability"]
    confidence = ("mean_confidence", "ece", "nll", "reliability", "calibration", "model")
    assert without(after, *confidence) == without(before, *confidence)
    assert after["model"]["temperature"] == found["temperature"] == read_description(model).temperature
    assert after["model"]["digest"] == read_description(model).digest != before["model"]["digest"]


def test_a_model_that_changes_meanwhile_ends_the_evaluation(given, tmp_path, monkeypatch):
    plain = evaluation.with_devices
    monkeypatch.setattr(evaluation, "with_devices", lambda *parts: replace(plain(*parts), digest="of before"))
    settings = {"data": given["data"], "model": given["model"], "output": str(tmp_path / "scores"), **OPTIONS}
    with pytest.raises(SegrayError, match="model has changed since the job began"):
        evaluate(EvaluateSettings(**settings))
    assert not (tmp_path / "scores").exists()


def test_an_image_that_kills_the_actors_is_one_sentence_and_no_image_may_be_left_out(given, tmp_path, monkeypatch):
    contexts = []

    def lost(rows: ray.data.Dataset) -> None:
        contexts.append(rows.context)
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray.data.Dataset, "iter_rows", lost)
    with pytest.raises(SegrayError, match="actors are killed again and again at the same images .*; give the workers"):
        evaluate(EvaluateSettings(**given, output=str(tmp_path / "scores"), **OPTIONS))
    context, _ = contexts
    assert context.max_errored_blocks == 0
    assert context.execution_no_progress_timeout_s == pipeline.NO_PROGRESS_S
    assert not context.enable_progress_bars


def test_images_lost_with_a_node_are_counted_again_and_once(given, tmp_path, monkeypatch):
    undisturbed = evaluate(EvaluateSettings(**given, output=str(tmp_path / "whole"), **OPTIONS))
    plain, lost = ray.data.Dataset.iter_rows, []

    def losing(rows: ray.data.Dataset) -> Iterator[dict]:
        for number, row in enumerate(plain(rows)):
            if len(lost) < 2 and number == len(lost):  # before the first result, then after one
                lost.append(row["start"])
                raise ray.exceptions.ActorDiedError
            yield row

    monkeypatch.setattr(ray.data.Dataset, "iter_rows", losing)
    found = evaluate(EvaluateSettings(**given, output=str(tmp_path / "scores"), **OPTIONS))
    assert len(lost) == 2
    assert without(found) == without(undisturbed)


def test_nothing_labelled_is_nothing_to_calibrate_on(local_ray, given, tmp_path, monkeypatch):
    empty = Tally.empty(Measures(num_classes=len(CLASSES), temperatures=(1.0, *TEMPERATURES)))
    (sample, *_) = open_dataset(given["data"]).samples("val")
    empty.images.append((0, image_row(sample, empty.scores(), CLASSES)))
    monkeypatch.setattr(evaluation, "_count", lambda *arguments: (empty, Showcase(0)))
    monkeypatch.setattr(evaluation, "with_devices", lambda work, settings: work)
    monkeypatch.setattr(evaluation.cluster, "start", lambda: None)
    settings = EvaluateSettings(**given, output=str(tmp_path), calibrate=True, **OPTIONS)
    with pytest.raises(SegrayError, match="labelled has no labelled pixel in val to calibrate on"):
        evaluate(settings)
    metrics = evaluate(replace(settings, calibrate=False))
    assert (metrics["miou"], metrics["ece"], metrics["nll"], metrics["images"]) == (None, None, None, 1)
    assert b"Evaluation report" in read_bytes(str(tmp_path / "report.html"))


@pytest.mark.parametrize("flag", ["data", "model"])
def test_scores_go_neither_into_the_data_nor_into_the_model(flag, given, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.cluster, "start", lambda: pytest.fail("it is refused before anything starts"))
    link = tmp_path / "link"
    link.symlink_to(given[flag])
    for output in (given[flag], str(link)):
        with pytest.raises(SegrayError, match=f"--output {output} is --{flag}; give a folder of its own"):
            evaluate(EvaluateSettings(**given, output=output, **OPTIONS))
    assert not exists(join(given[flag], "report.html"))


def work_on(model: str, data: str, **options: object) -> tuple[Work, Dataset]:
    """An evaluation's work, and the labelled data."""
    settings = EvaluateSettings(model=model, data=data, output="none", **OPTIONS, **options)
    return replace(make_work(settings, read_description(model)), detailed=True, sampled=True), open_dataset(data)


def counted(actor: EvaluateActor, row: dict) -> Part:
    """What an actor counts in a row."""
    result = actor({name: np.array([value], object) for name, value in row.items()})
    assert result["error"].tolist() == [""]
    return pickle.loads(result["part"][0])


def test_rows_of_any_length_have_the_same_counts_and_actors_list_nothing(given, tmp_path):
    data = shutil.copytree(given["data"], tmp_path / "labelled")
    work, dataset = work_on(given["model"], str(data))
    split = Split.of(dataset, dataset.samples("val"), map)
    (data / "classes.json").unlink()
    found = []
    for images in (1, 4, IMAGES):
        actor = EvaluateActor(work, dataset, Measures(num_classes=len(CLASSES)), IMAGES)
        rows = [split.row(*samples) for samples in ranges_of(IMAGES, (), images)]
        parts = [counted(actor, pickle.loads(pickle.dumps(row))) for row in rows]
        total, showcase = Tally.empty(actor.measures), Showcase(IMAGES)
        for part in parts:
            total.add(part.tally)
            showcase.add(part.candidates)
        shown = showcase.shown([(row["miou"], row["key"]) for _, row in total.images])
        found.append(
            (total.scores(), total.images, [(one.picture.title, one.picture.note, one.errors) for one in shown])
        )
    assert len(found[0][1]) == IMAGES and found[0] == found[1] == found[2]


def test_a_mask_of_another_size_is_said_as_in_training(given, tmp_path):
    data = shutil.copytree(given["data"], tmp_path / "labelled")
    (data / "val" / "masks" / "s1.png").write_bytes(encode_png(np.zeros((41, 70), np.uint8), CLASSES))
    work, dataset = work_on(given["model"], str(data))
    split = Split.of(dataset, dataset.samples("val"), map)
    actor = EvaluateActor(work, dataset, Measures(num_classes=len(CLASSES)), IMAGES)
    (error,) = actor({name: np.array([value], object) for name, value in split.row(0, IMAGES).items()})["error"]
    assert error == size_error(
        f"{data}/val/masks/s1.png", have=(41, 70), want=(70, 41), image=f"{data}/val/images/s1.png"
    )


def test_members_of_archives_are_counted(given, tmp_path):
    truth, pixels = ids(20, 30), np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    (member,) = listed(put(str(tmp_path / "in.parquet"), parquet_of(image=[png(pixels)]))).values()
    data = segmented(str(tmp_path), [Image(uri=member.uri, mask=truth)], {member.uri: member.part})
    work, dataset = work_on(given["model"], data)
    split = Split.of(dataset, dataset.samples("train"), map)
    actor = EvaluateActor(work, dataset, Measures(num_classes=len(CLASSES)), 1)
    assert counted(actor, split.row(0, 1)).tally.matrix.sum() == (truth != 255).sum()


def test_an_actor_hands_over_only_what_the_page_may_show(given):
    """In a split of thousands, only a few are kept as candidates for the median."""
    work, dataset = work_on(given["model"], given["data"])
    split = Split.of(dataset, dataset.samples("val"), map)
    actor = EvaluateActor(work, dataset, Measures(num_classes=len(CLASSES)), 10_000)
    candidates = counted(actor, split.row(1, IMAGES)).candidates
    assert len(candidates) == 4


def geotiff_split(uri: str) -> str:
    """Two scenes, one of which has no data in a corner, as GeoTIFFs with masks that have ignored pixels."""
    publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES.to_json()}).encode())
    for number, (height, width) in enumerate([(150, 131), (97, 180)]):
        image, mask = scene(number, height, width)
        if number:
            image[60:, 70:] = 0
        mask[:9, 40:] = 255
        publish(join(uri, "val", "images", f"s{number}.tif"), raster(image.transpose(2, 0, 1), nodata=0))
        publish(join(uri, "val", "masks", f"s{number}.tif"), raster(mask, crs=None, transform=None))
    return uri


@pytest.mark.parametrize("options", [{}, {"blend": "taper"}, {"resolution": 23.0}, {"tta": "flip"}])
def test_a_scene_in_blocks_has_the_counts_of_the_whole(options, given, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "BLOCK_PIXELS", 64 * 50)
    data = geotiff_split(str(tmp_path / "scenes"))
    work, dataset = work_on(given["model"], data, **options)
    measures = Measures(num_classes=len(CLASSES), temperatures=(1.0, 2.0))
    samples, parts = dataset.samples("val"), []
    for large in (False, True):
        split = Split(dataset=dataset, samples=samples, large=frozenset([0, 1] * large), pixels=0, actor_bytes=0)
        counts = {len(items_of(sample, work, cut_up=large)) for sample in samples}
        assert min(counts) > 1 if large else counts == {1}
        parts.append(counted(EvaluateActor(work, dataset, measures, 2), split.row(0, 2)))
    whole, cut = (part.tally for part in parts)
    for name in ("matrix", "boundary", "bins", "nll"):
        assert getattr(whole, name).any() and np.array_equal(getattr(whole, name), getattr(cut, name)), name
    assert whole.images == cut.images
    for ours, theirs in zip(*(part.candidates for part in parts), strict=True):
        assert all(np.array_equal(getattr(ours.picture, n), getattr(theirs.picture, n)) for n in ("mask", "truth"))
