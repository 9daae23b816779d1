"""Reports: well-formed pages that load nothing from outside, escape their data and show the right pixels."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segray.masks import Classes, decode_png
from segray.report import Picture, evaluation_page, segmentation_page, stage_shares, training_page
from segray.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    SIDE,
    TOP,
    WIDTH,
    labels,
    line_chart,
    reliability_chart,
    ticks,
)
from segray.report.pictures import color_of_right
from segray.report.progress import stage_plot
from segray.report.sections import matrix_table
from segray.report.wording import duration, number, percent, pixels, score, text

VOID = {"meta", "img", "br"}
NASTY = "<script>alert(1)</script>\" onload='x' &amp;.tif"


class Page(HTMLParser):
    """A parsed page; parsing raises AssertionError on a tag that is not closed in order."""

    def __init__(self, data: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.pieces, self.open = [], [], []
        self.source = data.decode("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]

    def images(self) -> list[bytes]:
        return [base64.b64decode(attrs["src"].partition("base64,")[2], validate=True) for attrs in self.all("img")]


def legend(count: int) -> Classes:
    return Classes(
        names=tuple(f"class {i} <i>&" for i in range(count)),
        colors=tuple((i * 37 % 256, i * 91 % 256, i * 53 % 256) for i in range(count)),
    )


def picture(height: int = 8, width: int = 12, *, truth: bool = False, title: str = NASTY) -> Picture:
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2], labels[-1] = 1, 255
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    return Picture(title=title, image=image, mask=mask, truth=labels if truth else None, note="worst <b>")


def summary(count: int, **more: object) -> dict:
    per_class = [1_000_000 * (i + 1) for i in range(count)]
    return {
        "images": {"ok": 1234, "failed": 0, "nodata": 5},
        "windows": 98765,
        "pixels": {"valid": sum(per_class), "total": 2 * sum(per_class), "per_class": per_class},
        **more,
    }


def bins(shares: tuple[int, ...] = (0, 30, 10)) -> list[dict]:
    """Bins of confidence of which the first has no pixel."""
    return [
        {
            "low": number / len(shares),
            "high": (number + 1) / len(shares),
            "pixels": count,
            "accuracy": 0.25 * number if count else None,
            "confidence": (number + 0.5) / len(shares) if count else None,
        }
        for number, count in enumerate(shares)
    ]


def metrics(count: int, *, calibrated: bool = False) -> dict:
    """What metrics.json holds, after a calibration too."""
    ratios = [None, *(0.5 for _ in range(count - 1))]
    matrix = [[100 * (t == p) + (p == t + 1) for p in range(count + 1)] for t in range(count)]
    before = {"temperature_before": 1.0, "ece_before": 0.123, "nll_before": 0.9}
    before["reliability_before"] = bins((0, 40, 0))
    return {
        **{name: ratios for name in ("iou", "precision", "recall", "dice")},
        "miou": 0.51234,
        "classes_in_mean": count - 1,
        "pixel_accuracy": 0.9876,
        "boundary_iou": [None, *(0.25 for _ in range(count - 1))],
        "boundary_miou": 0.2512,
        "boundary_share": 0.02,
        "frequency_weighted_iou": 0.611,
        "mean_confidence": 0.871,
        "ece": 0.0456,
        "nll": 0.7,
        "reliability": bins(),
        "confusion_matrix": matrix,
        "images": 24,
        "split": NASTY,
        "tta": "none",
        "model": {"digest": "9f86d0", "network": NASTY, "temperature": 1.31},
        "seconds": 75.0,
        **({"calibration": before} if calibrated else {}),
    }


def history(count: int) -> list[dict]:
    return [
        {
            "epoch": epoch,
            "step": 1000 * (epoch + 1),
            "loss": 1 / (epoch + 1),
            "lr": 1e-4,
            "val_miou": 0.25 + 0.1 * (epoch == 1),
            "val_iou": [None, 0.4321 if epoch == 1 else 0.1111],
            "seconds": 40.0,
            "samples_per_s": 51.2,
        }
        for epoch in range(count)
    ]


FAILURES = [{"image": f"s3://b/{i}.tif", "error": f"s3://b/{i}.tif is truncated"} for i in range(30)]
EVERYTHING = {
    "seconds": 7980.0,
    "mpx_per_s": 163.42,
    "km2": 1312.2,
    "km2_per_h": 592.1,
    "gpu_hours": 8.87,
    "failures": [*FAILURES, {"image": NASTY, "error": NASTY}],
    "failed_share": 0.0123,
    "skipped_files": 17,
    "shards": {"total": 820, "this_run": 300},
    "model": {"digest": "9f86d0", "network": "unet"},
    "settings": {"url": "https://example.org/" + "long/" * 99, "bands": [0, 1, 2], "resolution": None, "seed": 123456},
    "archive": NASTY,
    "confidence": 0.9123,
    "seam_disagreement": None,
    "versions": {"ray": "2.60.0"},
}
ALL_FAILED = {"images": {"ok": 0, "failed": 31, "nodata": 0}, "pixels": {"valid": 0, "total": 0, "per_class": []}}
SETTINGS = {"network": NASTY}
BLOWN_UP = [{"epoch": 3, "step": 1, "loss": float("nan"), "lr": 0.0, "val_miou": None, "val_iou": []}]
PAGES = {
    "segmentation": (3, lambda c: segmentation_page(classes=c, summary=summary(3), pictures=[])),
    "everything": (3, lambda c: segmentation_page(classes=c, summary=summary(3, **EVERYTHING), pictures=[picture()])),
    "all failed": (
        2,
        lambda c: segmentation_page(classes=c, summary=summary(2, **EVERYTHING, **ALL_FAILED), pictures=[]),
    ),
    "one class": (1, lambda c: segmentation_page(classes=c, summary=summary(1), pictures=[picture()])),
    "many classes": (254, lambda c: segmentation_page(classes=c, summary=summary(254), pictures=[picture()])),
    "evaluation": (3, lambda c: evaluation_page(classes=c, metrics=metrics(3), pictures=[picture(truth=True)])),
    "calibrated": (3, lambda c: evaluation_page(classes=c, metrics=metrics(3, calibrated=True), pictures=[])),
    "evaluation of 30": (30, lambda c: evaluation_page(classes=c, metrics=metrics(30), pictures=[])),
    "evaluation of 254": (254, lambda c: evaluation_page(classes=c, metrics=metrics(254), pictures=[])),
    "training": (2, lambda c: training(c, history(4), [picture(truth=True)])),
    "training of one epoch": (2, lambda c: training(c, history(1), [])),
    "training by epoch": (2, lambda c: training(c, staged(5), [picture(truth=True)], earlier={1: masks(), 3: masks()})),
    "training of 254 classes": (254, lambda c: training(c, wide(254), [])),
    "blown up": (2, lambda c: training(c, BLOWN_UP, [])),
}


def training(classes: Classes, rows: list[dict], pictures: list[Picture], **more: object) -> bytes:
    given = {"history": rows, "settings": SETTINGS, "pictures": pictures, "title": "Run " + NASTY}
    return training_page(classes=classes, **{**given, "about": {}, "earlier": {}, **more})


def staged(count: int) -> list[dict]:
    """A history of where the time went: three times as long in steps as in validation."""
    stages = {"waiting for data": 1.0, "steps": 6.0, "validation": 2.0, "publishing": 1.0}
    return [{**row, "epoch": row["epoch"] + 1, "stage_seconds": stages} for row in history(count)]


def wide(classes: int, count: int = 3) -> list[dict]:
    return [{**row, "val_iou": [0.123 + row["epoch"] / 1000] * classes} for row in staged(count)]


def masks() -> dict[str, np.ndarray]:
    return {NASTY: np.full((8, 12), 1, np.uint8)}


@pytest.fixture(params=PAGES, scope="module")
def made(request: pytest.FixtureRequest) -> tuple[Classes, Page]:
    count, make = PAGES[request.param]
    return legend(count), Page(make(legend(count)))


def test_a_page_asks_nothing_of_the_outside(made):
    _, page = made
    links = [(name, attrs[key]) for name, attrs in page.tags for key in ("src", "href", "srcset") if key in attrs]
    assert all(name == "img" and value.startswith("data:image/") for name, value in links)
    assert not {"script", "link", "iframe", "object", "base"} & {name for name, _ in page.tags}
    assert not re.search(r"@import|url\(", page.source)
    assert "default-src 'none'" in page.all("meta")[1]["content"]


def test_data_never_becomes_markup(made):
    _, page = made
    known = {"class", "style", "title", "alt", "src", "width", "height", "charset", "http-equiv", "content", "name"}
    known |= {"lang", "open", "role", "aria-label", "points", "text-anchor", "viewbox"}
    known |= {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r"}
    assert {key for _, attrs in page.tags for key in attrs} <= known
    assert "<script" not in page.source and "<i>&" not in page.source


def test_every_class_is_named_with_its_colour(made):
    classes, page = made
    styles = " ".join(attrs.get("style", "") for attrs in page.all("i"))
    for name, color in zip(classes.names, classes.colors):
        assert name in page.text
        assert f"rgb({', '.join(map(str, color))})" in styles


def test_every_picture_has_a_description(made):
    _, page = made
    assert all(attrs["alt"].endswith(NASTY) for attrs in page.all("img"))


def test_the_numbers_of_a_segmentation():
    page = Page(segmentation_page(classes=legend(3), summary=summary(3, **EVERYTHING), pictures=[]))
    for said in ("1,234 of 1,239, 5 without data", "6 Mpx 50.0% of 12 Mpx", "163 Mpx/s", "1,310 km²", "592 km²/h"):
        assert said in page.text
    for said in ("2 h 13 min", "8.87 GPU h", "91.2%", "skipped files 17", "shards 820", "bands 0, 1, 2", "seed 123456"):
        assert said in page.text
    assert "Seam disagreement" not in page.text  # None is left out
    assert page.text.index("class 2") < page.text.index("class 0")  # the largest class comes first


def test_failures_are_grouped_by_reason():
    failed = summary(2, **EVERYTHING) | ALL_FAILED
    page = Page(segmentation_page(classes=legend(2), summary=failed, pictures=[]))
    assert "Failed images: 31 (1.23%)" in page.text and "30 … is truncated" in page.text
    assert len(page.all("details")) == 2
    assert "s3://b/19.tif" in page.text and "s3://b/20.tif" not in page.text


def test_of_more_failures_than_are_listed_the_page_says_so():
    reasons = [f"s3://b/{i}.tif cannot be read: {i}.tif, band 1: short at offset {i}00" for i in range(30)]
    failures = [{"image": f"s3://b/{i}.tif", "error": reason} for i, reason in enumerate(reasons)]
    more = {"failures": failures, "images": {"ok": 5, "nodata": 0, "failed": 150}}
    text = Page(segmentation_page(classes=legend(3), summary=summary(3, **more), pictures=[])).text
    assert "Failed images: 150" in text and "Only the first 30 by name" in text
    assert "30 … cannot be read: …, band 1: short at offset …" in text and "and 10 more" in text


def test_a_page_tells_what_is_of_the_last_run_alone_and_when_it_was_written():
    of_all = summary(3, **{**EVERYTHING, "shards": {"total": 820, "this_run": 820}})
    of_some = summary(3, **EVERYTHING)
    pages = [Page(segmentation_page(classes=legend(3), summary=each, pictures=[])) for each in (of_some, of_all)]
    assert [page.text.count("of the last run, 300 of 820 shards") for page in pages] == [4, 0]
    assert all(re.search(r"Written by segray, \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", page.text) for page in pages)


def test_a_training_that_is_not_at_its_end_and_a_mean_of_fewer_classes_say_so():
    rows = [{**row, "classes_in_mean": 1} for row in history(4)]
    text = Page(training(legend(2), rows, [], settings={"epochs": 40})).text
    assert "of 40, 4,000 steps" in text and "epoch 1, over 1 of 2 classes" in text


def test_names_that_a_matrix_cuts_off_have_their_ids():
    names = ["Discontinuous urban fabric", "Discontinuous urban green", "water"]
    classes, counts = Classes(names=tuple(names), colors=legend(3).colors), metrics(3)["confusion_matrix"]
    assert matrix_table(classes, counts)["columns"][:3] == [f"{index} {name}" for index, name in enumerate(names)]
    assert matrix_table(legend(3), counts)["columns"][0] == legend(3).names[0]


def test_what_is_not_quite_nothing_or_all_is_neither_in_a_matrix():
    rows = matrix_table(legend(2), [[199, 1, 0], [0, 200, 0]])["rows"]
    assert [[cell["text"] for cell in row["cells"]] for row in rows] == [[">99", "<1", ""], ["", "100", ""]]


def test_what_is_right_is_a_grey_that_no_class_is_like():
    light, dark = (Classes(names=("x",), colors=(color,)) for color in ((226, 214, 160), (40, 50, 60)))
    assert color_of_right(light) == (62, 66, 72) and color_of_right(dark) == (203, 208, 214)


@pytest.mark.parametrize("values", [[0.12501, 0.12502, 0.12503], [1.0001, 1.0002], [0.5, 1.0], [0.1]])
def test_labels_of_an_axis_differ_and_are_short(values):
    said = labels(values)
    assert len(set(said)) == len(said) and [float(text) for text in said] == values


def test_every_score_of_an_evaluation():
    page = Page(evaluation_page(classes=legend(3), metrics=metrics(3), pictures=[]))
    for said in (
        "51.2% over 2 of 3 classes",
        "98.8% of 303 px",
        "1 min 15 s",
        "– – – – – 101",
        "Mean boundary IoU 25.1% within 2.00% of the diagonal",
        "Frequency-weighted IoU 61.1%",
        "Calibration error (ECE) 4.56% at a mean confidence of 87.1%",
        "IoU Boundary IoU Dice Precision Recall Truth pixels",
        "50.0% 25.0% 50.0% 50.0% 50.0%",
        "T = 1.31, ECE 4.56%, NLL 0.7",
        "33 to 67% 50.0% 25.0% 30",
        "temperature 1.31",
    ):
        assert said in page.text
    assert "0 to 33%" not in page.text and "Before" not in page.text
    hints = [attrs["title"] for attrs in page.all("td") if "title" in attrs]
    assert len(hints) == 3 * 4 and hints[0] == "truth class 0 <i>&, predicted class 0 <i>&: 100 px"
    assert len(page.all("rect")) == 2 * 2


def test_a_calibration_shows_before_and_after():
    page = Page(evaluation_page(classes=legend(3), metrics=metrics(3, calibrated=True), pictures=[]))
    assert "Before: T = 1, ECE 12.3%, NLL 0.9" in page.text
    assert "After: T = 1.31, ECE 4.56%, NLL 0.7" in page.text
    assert len(page.all("rect")) == 2 * 1 + 2 * 2


def test_a_reliability_diagram_has_the_accuracy_of_each_bin():
    chart = reliability_chart("x", bins())
    (x, y, width, height, hint), last = chart.bars
    assert (x, y + height) == (LEFT + SIDE / 3 + 1, TOP + SIDE) and width == SIDE / 3 - 2
    assert height == SIDE / 4 and last[3] == SIDE / 2
    assert hint == "confidence 50.0%, accuracy 25.0%: 75.0% of the pixels, 30 px"
    assert [round(share[3]) for share in chart.shares] == [56, 19]
    assert chart.dots[0] == (LEFT + SIDE / 2, TOP + 0.75 * SIDE)
    assert chart.y_ticks[0] == (TOP + SIDE, "0%") and chart.x_ticks[-1] == (WIDTH - RIGHT, "100%")
    assert reliability_chart("x", bins((0, 0))).bars == []


def test_many_classes_list_their_largest_confusions():
    values = metrics(40)
    values["confusion_matrix"][7][9] = 5000
    page = Page(evaluation_page(classes=legend(40), metrics=values, pictures=[]))
    assert "Confusion matrix" not in page.text
    assert "Of the truth class 7 <i>& class 9 <i>& 5,000 98.0%" in page.text


def test_the_numbers_of_a_training():
    page = Page(training(legend(2), history(4), []))
    for said in (
        "35.0% epoch 1",
        "4 4,000 steps",
        "Last loss 0.25",
        "2 min 40 s",
        "Classes at the best epoch, 1",
        "43.2%",
    ):
        assert said in page.text
    assert "class 1 <i>& 11.1%" in page.text  # the last epoch's, beside the curves
    assert len(page.all("polyline")) == 3 + 2  # class 0 never occurred


def test_a_training_tells_its_stages_and_pictures_by_epoch():
    page = Page(training(legend(2), staged(5), [picture(truth=True)], earlier={3: masks(), 1: masks(), 2: {}}))
    assert "steps 60.0%, 30 s" in page.text and "waiting for data 10.0%, 5 s" in page.text
    assert len(page.all("polygon")) == 4
    labels = ("Image", "Truth", "Epoch 1", "Epoch 3", "Epoch 5", "Errors, epoch 5")
    assert [page.text.count(f"{label} ") >= 1 for label in labels] == [True] * 6 and "Epoch 2 " not in page.text
    _, truth, first, third, last, _ = page.images()
    assert decode_png(first).max() == decode_png(third).max() == 1 and decode_png(truth)[0, 0] == 1
    assert decode_png(last)[0].tolist() == [0] * 6 + [255] * 6


def test_the_stages_lie_on_each_other_from_0():
    span, up = HEIGHT - BOTTOM - TOP, {}
    for points, _, hint in stage_plot(staged(2)).areas:
        heights = [HEIGHT - BOTTOM - float(point.partition(",")[2]) for point in points.split()]
        assert heights[0] == heights[-1] == 0 and len(set(heights[1:-1])) == 1
        up[hint.partition(" ")[0]] = round(heights[1] / span, 2)
    assert up == {"publishing": 1.0, "waiting": 0.9, "validation": 0.8, "steps": 0.6}
    assert list(up)[-1] == "steps"  # drawn last, over the others


def test_a_page_of_hundreds_of_epochs_stays_small():
    sizes = [len(training(legend(12), wide(12, count), [])) for count in (5, 500)]
    assert sizes[1] - sizes[0] < 400_000


def test_pictures_keep_sizes_and_colours():
    classes = Classes(names=("a", "b"), colors=((0, 0, 255), (0, 255, 0)))
    page = Page(segmentation_page(classes=classes, summary=summary(2), pictures=[picture(1000, 1500)]))
    image, overlay, mask = (np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")) for data in page.images())
    assert image.shape == overlay.shape == mask.shape == (427, 640, 4)
    assert [(a["width"], a["height"]) for a in page.all("img")] == [("640", "427")] * 3
    np.testing.assert_allclose(image[..., :3], np.broadcast_to((200, 100, 50), (427, 640, 3)), atol=3)
    np.testing.assert_allclose(overlay[100, 100, :3], (100, 50, 153), atol=3)
    np.testing.assert_allclose(overlay[100, 500, :3], (200, 100, 50), atol=3)
    assert mask[100, 100].tolist() == [0, 0, 255, 255] and mask[100, 500, 3] == 0


def test_a_shrunk_picture_keeps_its_words_and_shape():
    small = picture(40, 100, truth=True).shrunk(50)
    assert small.image.shape == (20, 50, 3) and small.mask.shape == small.truth.shape == (20, 50)
    assert (small.title, small.note) == (NASTY, "worst <b>") and set(np.unique(small.truth)) <= {0, 1, 255}
    assert picture(8, 12).shrunk(50).truth is None


def test_shrinking_invents_no_class():
    ids = np.random.default_rng(0).choice(np.array([0, 2], np.uint8), (700, 900))
    shown = Picture(title="x", image=np.zeros((700, 900, 3), np.uint8), mask=ids, truth=ids)
    page = Page(evaluation_page(classes=legend(3), metrics=metrics(3), pictures=[shown]))
    _, truth, prediction, errors = page.images()
    assert np.unique(decode_png(truth)).tolist() == np.unique(decode_png(prediction)).tolist() == [0, 2]
    assert Image.open(io.BytesIO(errors)).getcolors() == [(498 * 640, (203, 208, 214, 255))]


def test_errors_have_the_colour_of_what_was_predicted_and_none_where_there_is_no_truth():
    shown = picture(truth=True)
    shown.mask[2, :3] = 2
    page = Page(evaluation_page(classes=legend(3), metrics=metrics(3), pictures=[shown]))
    _, truth, prediction, errors = page.images()
    assert decode_png(truth)[0, 0] == 1 and decode_png(prediction)[0].tolist() == [0] * 6 + [255] * 6
    colors = np.asarray(Image.open(io.BytesIO(errors)).convert("RGBA"))
    red, grey, first, third = (200, 30, 30, 255), (203, 208, 214, 255), (0, 0, 0, 255), (74, 182, 106, 255)
    assert tuple(colors[0, 0]) == first and tuple(colors[5, 0]) == grey and tuple(colors[2, 0]) == third
    assert tuple(colors[5, 8]) == red  # predicted nothing
    assert "Errors have the colour of the class that was predicted" in page.text
    assert (colors[-1, :, 3] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (640, 640)])
def test_pictures_of_any_shape(height, width):
    page = Page(segmentation_page(classes=legend(2), summary=summary(2), pictures=[picture(height, width)]))
    sizes = {Image.open(io.BytesIO(data)).size for data in page.images()}
    assert sizes == {(min(width, 640), min(height, 640))}


def test_a_name_that_is_no_unicode_is_written():
    page = segmentation_page(classes=legend(2), summary=summary(2), pictures=[picture(title="\udcff.tif")])
    assert b"\\udcff.tif" in page


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": np.zeros((4, 4), np.uint8)},
        {"image": np.zeros((4, 5, 3), np.uint8)},
        {"image": np.zeros((4, 4, 3), np.float32)},
        {"mask": np.zeros((4, 4), np.int64)},
        {"truth": np.zeros((3, 4), np.uint8)},
        {"image": np.zeros((0, 4, 3), np.uint8), "mask": np.zeros((0, 4), np.uint8)},
    ],
)
def test_a_picture_that_does_not_fit_is_refused(wrong):
    right = {"image": np.zeros((4, 4, 3), np.uint8), "mask": np.zeros((4, 4), np.uint8)}
    with pytest.raises(ValueError, match="of picture 'x' is"):
        Picture(title="x", **(right | wrong))


WORDING = [
    (number, [(None, "–"), (float("nan"), "–"), (12345, "12,345"), (np.int64(7), "7"), (1234.5, "1,230")]),
    (number, [(999.9, "1,000"), (0.5, "0.5"), (0.000012, "1.2e-5"), (1e15, "1e15"), (-2500.0, "-2,500")]),
    (percent, [(None, "–"), (0, "0%"), (1, "100%"), (0.99996, ">99.9%"), (0.00001, "<0.01%"), (0.9, "90.0%")]),
    (score, [(None, "none"), (0.12345678, "0.1235"), (0.0, "0.0000")]),
    (pixels, [(None, "–"), (0, "0 px"), (999, "999 px"), (1234567, "1.23 Mpx"), (5 * 10**12, "5 Tpx")]),
    (duration, [(None, "–"), (4.25, "4.25 s"), (75, "1 min 15 s"), (7980, "2 h 13 min"), (10**7, "2,777 h 46 min")]),
    (text, [(None, "–"), (True, "yes"), ([1, None], "1, –"), ({"a": 1}, "a 1"), (0.00012345, "0.00012345")]),
]


@pytest.mark.parametrize(
    ("form", "value", "said"), [(form, value, said) for form, table in WORDING for value, said in table]
)
def test_wording(form, value, said):
    assert form(value) == said


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.booleans())
def test_ticks_enclose_the_values_evenly(low, span, whole):
    low, span = (round(low), round(span)) if whole else (low, span)
    high = low + span
    places = ticks(low, high, count=4, whole=whole)
    steps = np.diff(places)
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert 2 <= len(places) <= 12
    assert places[0] <= low + slack and places[-1] >= high - slack
    assert steps.min() > 0 and np.ptp(steps) <= slack + 1e-9
    assert not whole or all(isinstance(place, int) for place in places)


def test_a_chart_marks_the_best_epoch_and_leaves_out_what_is_missing():
    chart = line_chart("x", [(0, 1.0), (1, None), (2, float("nan")), (3, 3.0), (4, 2.0)], best=3)
    assert [hint for _, _, hint in chart.dots] == ["epoch 0: 1", "epoch 3: 3", "epoch 4: 2"]
    assert chart.best == chart.dots[1]
    assert chart.dots[0][0] == LEFT and chart.dots[-1][0] == WIDTH - RIGHT
    assert chart.dots[1][1] < chart.dots[2][1] < chart.dots[0][1]  # SVG's y points down
    assert line_chart("x", [(0, None)], best=None) is None


@pytest.mark.parametrize("value", [0.0, 5e-324, -3.0, 1e300])
def test_a_flat_curve_lies_in_the_middle(value):
    chart = line_chart("x", [(0, value), (1, value)], best=None)
    assert len({y for _, y, _ in chart.dots}) == 1
    assert chart.y_ticks[-1][0] < chart.dots[0][1] < chart.y_ticks[0][0]


def test_the_shares_of_the_stages_leave_out_what_runs_beside_them():
    seconds = {"reading": 99.0, "segmenting": 9.0, "writing": 0.75, "waiting": 0.25}
    assert stage_shares(seconds) == "segmenting 90.0%, writing 7.50%, waiting 2.50%"
    assert stage_shares({}) == ""
