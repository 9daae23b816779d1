"""What an evaluation counts: the same whichever actor counted which images."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from segray.datasets import Sample
from segray.grid import Window, windows
from segray.masks import Classes
from segray.regions import Sampled, WindowMask
from segray.tally import ImageCounter, Measures, Tally, image_row, image_table

K = 6
CLASSES = Classes(names=tuple("abcdef"), colors=((0, 0, 0),) * K)
MEASURES = Measures(num_classes=K, temperatures=(1.0, 2.0))


def labelled(seed: int, classes: int = K - 1) -> tuple[np.ndarray, WindowMask]:
    """A truth and a result of an image of its own size; the last class occurs nowhere."""
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(5, 40, size=2))
    truth, mask = rng.integers(classes, size=(2, *size), dtype=np.uint8)
    mask = np.where(rng.random(size) < 0.6, truth, mask)
    truth[rng.random(size) < 0.2] = 255
    mask[rng.random(size) < 0.1] = 255
    rows, cols = np.nonzero(rng.random(size) < 0.2)
    sampled = Sampled(rows=rows, cols=cols, logits=rng.normal(size=(len(rows), K)).astype(np.float32))
    counts = np.bincount(mask[mask != 255], minlength=K)
    result = WindowMask(
        window=Window(0, 0, *size), mask=mask, pixel_counts=counts, valid_pixels=int(counts.sum()), confidence=0.5,
        seam_disagreement=None, confidences=rng.integers(65536, size=size).astype(np.uint16), sampled=sampled,
    )  # fmt: skip
    return truth, result


def count_image(truth: np.ndarray, result: WindowMask, measures: Measures) -> Tally:
    counter = ImageCounter(*truth.shape, measures)
    counter.add(truth, result)
    return counter.tally()


def total(tallies: list[Tally]) -> Tally:
    found = Tally.empty(MEASURES)
    for tally in tallies:
        found.add(tally)
    return found


def test_scores_do_not_depend_on_who_counted_what() -> None:
    tallies = [replace(count_image(*labelled(seed), MEASURES), images=[(seed, {})]) for seed in range(12)]
    counts = ("matrix", "boundary", "bins", "nll")
    assert all(getattr(tally, name).any() for tally in tallies for name in counts)
    expected = Tally(**{name: sum(getattr(tally, name) for tally in tallies) for name in counts}).scores()
    order = np.random.default_rng(0).permutation(12)
    for workers in (1, 2, 3, 5, 12):
        parts = [total([tallies[image] for image in order[worker::workers]]) for worker in range(workers)]
        found = total(parts)
        assert found.scores() == expected
        assert sorted(number for number, _ in found.images) == list(range(12))
    assert json.loads(json.dumps(expected, allow_nan=False)) == expected


def test_what_has_no_data_or_no_label_counts_nowhere() -> None:
    truth, result = labelled(1)
    for hidden in (np.full_like(truth, 255), np.where(result.mask == 255, truth, np.uint8(255))):
        tally = count_image(hidden, result, MEASURES)
        assert not any(getattr(tally, name).any() for name in ("matrix", "boundary", "bins", "nll"))
        assert tally.scores()["nll"] is None


def test_the_nll_is_taken_at_the_sampled_pixels() -> None:
    truth, result = labelled(2)
    of_sampled = np.where(result.mask == 255, 255, truth)[result.sampled.rows, result.sampled.cols]
    scores = count_image(truth, result, MEASURES).scores()
    assert scores["nll_pixels"] == (of_sampled != 255).sum()
    logits = torch.from_numpy(result.sampled.logits)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(of_sampled).long(), ignore_index=255)
    assert scores["nll"] == pytest.approx(expected.item(), abs=1e-5)


def test_the_table_has_a_row_an_image_with_its_own_scores() -> None:
    rows, cases = [], [labelled(0), labelled(1), labelled(2)]
    cases.append((np.full_like(cases[0][0], 255), cases[0][1]))  # nothing labelled
    for number, (truth, result) in enumerate(cases):
        sample = Sample(key=f"s{number}", image=f"s3://b/{number}.tif", mask=f"s3://b/{number}.png")
        rows.append(image_row(sample, count_image(truth, result, MEASURES).scores(), CLASSES))
    table = pq.read_table(io.BytesIO(image_table(rows, {"split": "val"})))
    assert json.loads(table.schema.metadata[b"segray"]) == {"split": "val"}
    found = table.to_pylist()
    assert [row["key"] for row in found] == ["s0", "s1", "s2", "s3"]
    for row, (truth, result) in zip(found, cases[:3]):
        counted = (truth != 255) & (result.mask != 255)
        assert row["labelled_pixels"] == counted.sum()
        assert row["pixel_accuracy"] == pytest.approx((truth == result.mask)[counted].mean())
        ious = [
            ((truth == k) & (result.mask == k)).sum() / (((truth == k) | (result.mask == k)) & counted).sum()
            for k in range(K - 1)
        ]
        assert [row[f"iou_{name}"] for name in "abcde"] == pytest.approx(ious)
        assert row["miou"] == pytest.approx(np.mean(ious))
        assert row["mean_confidence"] == pytest.approx(result.confidences[counted].mean() / 65535)
        assert row["iou_f"] is None
    empty = {name: value for name, value in found[3].items() if name not in ("key", "image", "mask")}
    assert set(empty.values()) == {0, None}
    assert str(table.schema.field("iou_f").type) == "double"


def test_a_name_that_is_no_unicode_is_written() -> None:
    row = image_row(Sample(key="\udcff", image="/b/\udcff.png", mask="m"), Tally.empty(MEASURES).scores(), CLASSES)
    (found,) = pq.read_table(io.BytesIO(image_table([row], {}))).to_pylist()
    assert (found["key"], found["image"], found["labelled_pixels"]) == ("\\udcff", "/b/\\udcff.png", 0)


def part_of(result: WindowMask, window: Window) -> WindowMask:
    """The result for a window, cut from that of an image that was one window."""
    sampled = result.sampled
    inside = (sampled.rows >= window.row_off) & (sampled.rows < window.row_off + window.height)
    inside &= (sampled.cols >= window.col_off) & (sampled.cols < window.col_off + window.width)
    there = Sampled(rows=sampled.rows[inside], cols=sampled.cols[inside], logits=sampled.logits[inside])
    part = window.rows, window.cols
    return replace(result, window=window, mask=result.mask[part], confidences=result.confidences[part], sampled=there)


@pytest.mark.parametrize("size", [3, 7, 16])
def test_windows_of_an_image_count_as_the_whole(size: int) -> None:
    for seed in range(4):
        truth, result = labelled(seed)
        counter = ImageCounter(*truth.shape, MEASURES)
        for window in reversed(windows(*truth.shape, size)):
            counter.add(truth[window.rows, window.cols], part_of(result, window))
        assert counter.tally().scores() == count_image(truth, result, MEASURES).scores()
