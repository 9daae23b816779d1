"""The three pages: what a segmentation, an evaluation and a training have to show, in the order it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jinja2 import Environment

from segray.masks import Classes
from segray.report.charts import Reliability, line_chart, reliability_chart
from segray.report.overview import Overview, viewer_data
from segray.report.pictures import Picture, color_of_right
from segray.report.progress import class_plot, stage_plot
from segray.report.script import SCRIPT, SCRIPT_HASH
from segray.report.sections import (
    bin_rows,
    failure_groups,
    largest_confusions,
    legend_entries,
    matrix_table,
    picture_rows,
    progress_rows,
    rows,
    run_rows,
    score_rows,
    share_rows,
)
from segray.report.template import PAGE
from segray.report.wording import duration, is_number, number, percent, pixels

MATRIX_CLASSES = 30  # with more classes a matrix has no readable labels: its largest confusions are listed instead
Card = tuple[str, str, str]  # label, value, small print


def segmentation_page(
    *, classes: Classes, summary: dict, pictures: list[Picture], overviews: Sequence[Overview] = ()
) -> bytes:
    """The page of a segmented archive, UTF-8 HTML.

    summary: what `summary.json` holds; `images`, `windows` and `pixels` must be there, anything else is shown if it is.
    overviews: whole scenes, to be panned and zoomed; only a page with some has a script.
    """
    images, counts = summary["images"], summary["pixels"]
    total, failed = sum(images.values()), images.get("failed", 0)
    data = counts["valid"] / counts["total"] if counts["total"] else None
    nodata = f", {number(images['nodata'])} without data" if images.get("nodata") else ""
    shards = summary.get("shards") or {}
    part = shards.get("this_run") != shards.get("total")
    run = f"of the last run, {number(shards['this_run'])} of {number(shards['total'])} shards" if part else ""
    cards = [
        ("Images segmented", number(images["ok"]), f"of {number(total)}{nodata}"),
        ("Pixels with data", pixels(counts["valid"]), f"{percent(data)} of {pixels(counts['total'])}"),
        *_cards(summary, "mpx_per_s", "Speed", lambda v: f"{number(v)} Mpx/s", run),
        *_cards(summary, "km2", "Area", lambda v: f"{number(v)} km²"),
        *_cards(summary, "km2_per_h", "Area per hour", lambda v: f"{number(v)} km²/h", run),
        *_cards(summary, "seconds", "Time", duration, run),
        *_cards(summary, "gpu_hours", "GPU time", lambda v: f"{number(v)} GPU h", run),
        *_cards(summary, "confidence", "Mean confidence", percent),
        *_cards(summary, "seam_disagreement", "Seam disagreement", percent, "of pixels where tiles overlap"),
    ]
    return _render(
        title="Segmentation report",
        lead=summary.get("archive"),
        cards=cards,
        viewer=viewer_data(overviews, classes) if overviews else None,
        viewer_hash=SCRIPT_HASH,
        viewer_script=SCRIPT,
        viewer_notes=[overview.note for overview in overviews if overview.note],
        shares=share_rows(classes, counts["per_class"]),
        pictures=picture_rows(pictures, classes, compare=False),
        legend=legend_entries(classes),
        failed=failed,
        failed_share=percent(summary.get("failed_share", failed / total if total else None)),
        failures=failure_groups(summary.get("failures") or []),
        tables=[("Run", run_rows(summary)), ("Settings", rows(summary.get("settings") or {}))],
    )


def evaluation_page(
    *, classes: Classes, metrics: dict, pictures: list[Picture], reasons: Sequence[Picture] = ()
) -> bytes:
    """The page of an evaluation, UTF-8 HTML.

    metrics: what `metrics.json` holds; `confusion_matrix`: K x K+1 nested lists of pixel counts, rows truth, last
    column predicted nothing. reasons: see `explaining.explain`.
    """
    matrix = metrics["confusion_matrix"]
    truth = [sum(row) for row in matrix]
    named = {"IoU": "iou", "Boundary IoU": "boundary_iou", "Dice": "dice", "Precision": "precision", "Recall": "recall"}
    columns = [metrics[key] for key in named.values()]
    width = f"within {percent(metrics['boundary_share'])} of the diagonal"
    confidence = f"at a mean confidence of {percent(metrics['mean_confidence'])}"
    cards = [
        ("Mean IoU", percent(metrics["miou"]), f"over {metrics['classes_in_mean']} of {len(classes)} classes"),
        *_cards(metrics, "boundary_miou", "Mean boundary IoU", percent, width),
        ("Pixel accuracy", percent(metrics["pixel_accuracy"]), f"of {pixels(sum(truth))} with truth"),
        *_cards(metrics, "frequency_weighted_iou", "Frequency-weighted IoU", percent),
        *_cards(metrics, "ece", "Calibration error (ECE)", percent, confidence),
        *_cards(metrics, "images", "Images", number),
        *_cards(metrics, "seconds", "Time", duration),
    ]
    augmented = "" if metrics["tta"] == "none" else f", with test-time augmentation ({metrics['tta']})"
    readable = len(classes) <= MATRIX_CLASSES
    return _render(
        title="Evaluation report",
        lead=f"Split {metrics['split']}{augmented}",
        cards=cards,
        scores=score_rows(classes, columns, extra=[[number(count)] for count in truth]),
        score_names=[*named, "Truth pixels"],
        matrix=matrix_table(classes, matrix) if readable else None,
        confusions=None if readable else largest_confusions(classes, matrix),
        reliability=_reliability(metrics),
        bins=bin_rows(metrics["reliability"]),
        pictures=picture_rows(pictures, classes, compare=True),
        reasons=picture_rows(reasons, classes, compare=True),
        legend=legend_entries(classes),
        error_legend=[("right", color_of_right(classes))],
        tables=[("Run", run_rows(metrics)), ("Settings", rows(metrics.get("settings") or {}))],
    )


def training_page(
    *,
    classes: Classes,
    history: list[dict],
    settings: dict,
    pictures: list[Picture],
    title: str,
    about: dict,
    earlier: Mapping[int, Mapping[str, np.ndarray]],
) -> bytes:
    """The page of a training, UTF-8 HTML.

    history: one row an epoch with `epoch`, `step`, `loss`, `lr`, `val_miou` (None if not validated), `val_iou` (one
    per class or empty), `seconds` (of that epoch; `stage_seconds`, if there, by stage) and `samples_per_s`. The best
    epoch has the highest `val_miou`. about: facts about the run. pictures: of the last epoch; earlier: epoch -> title
    -> mask, of epochs before.
    """
    validated = [row for row in history if is_number(row.get("val_miou"))]
    best = max(validated, key=lambda row: row["val_miou"], default={})
    last = history[-1]
    curves = (("Loss", "loss"), ("Validation mean IoU", "val_miou"), ("Learning rate", "lr"))
    charts = [
        line_chart(name, [(row["epoch"], row.get(key)) for row in history], best=best.get("epoch"))
        for name, key in curves
    ]
    seconds = sum(row["seconds"] for row in history if is_number(row.get("seconds")))
    cards = [
        *_cards(
            best, "val_miou", "Best validation mean IoU", percent, f"epoch {best.get('epoch')}{_counted(best, classes)}"
        ),
        ("Epochs", number(len(history)), f"{_planned(settings)}{number(last.get('step'))} steps"),
        *_cards(last, "loss", "Last loss", number),
        ("Time", duration(seconds), ""),
        *_cards(last, "samples_per_s", "Crops per second", number, "in the last epoch"),
    ]
    return _render(
        title=title,
        cards=cards,
        charts=[chart for chart in charts if chart],
        plots=[plot for plot in (class_plot(classes, history), stage_plot(history)) if plot],
        scores=score_rows(classes, [best["val_iou"]]) if best.get("val_iou") else None,
        score_names=["IoU"],
        score_title=f"Classes at the best epoch, {best.get('epoch')}",
        pictures=progress_rows(pictures, earlier, classes, epoch=last["epoch"]),
        legend=legend_entries(classes),
        error_legend=[("right", color_of_right(classes))],
        tables=[("Run", rows(about)), ("Settings", rows(settings))],
    )


def _render(**sections: Any) -> bytes:
    # a file name may hold bytes that are not UTF-8 (lone surrogates in Python): written as \udcff, not an error
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return _TEMPLATE.render(**sections, now=now).encode("utf-8", "backslashreplace")


def _planned(settings: dict) -> str:
    """The number of epochs planned, if known: so the page of a training that was stopped shows it."""
    return f"of {number(settings['epochs'])}, " if is_number(settings.get("epochs")) else ""


def _counted(row: dict, classes: Classes) -> str:
    """How many classes a mean is over, if not all: the means of different epochs are then not comparable."""
    count = row.get("classes_in_mean", len(classes))
    return f", over {count} of {len(classes)} classes" if count < len(classes) else ""


def _reliability(metrics: dict) -> list[Reliability]:
    """The reliability diagram of an evaluation; if there was a calibration, the one from before it comes first."""
    if metrics["ece"] is None:
        return []
    calibration = metrics.get("calibration")
    diagrams = [(metrics["model"]["temperature"], *(metrics[name] for name in ("ece", "nll", "reliability")))]
    if calibration:
        names = ("temperature_before", "ece_before", "nll_before", "reliability_before")
        diagrams.insert(0, tuple(calibration[name] for name in names))
    when = ("Before: ", "After: ") if calibration else ("",)
    return [
        reliability_chart(f"{name}T = {number(value)}, ECE {percent(ece)}, NLL {number(nll, 4)}", bins)
        for name, (value, ece, nll, bins) in zip(when, diagrams)
    ]


def _cards(values: dict, key: str, label: str, form: Callable[[Any], str], note: str = "") -> list[Card]:
    """One card, or none when the value is not there."""
    return [(label, form(values[key]), note)] if values.get(key) is not None else []


_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
