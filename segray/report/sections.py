"""The sections of a page as rows of text that the template lays out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from segray.masks import Classes
from segray.report.pictures import Picture, panes, panes_by_epoch
from segray.report.wording import is_number, number, percent, pixels, text

EXAMPLES = 20  # images named for one reason of failure
REASONS = 50  # reasons of failure listed; a page stays readable when every image fails in its own way
CONFUSIONS = 30  # pairs of classes listed


def legend_entries(classes: Classes) -> list[tuple[str, tuple[int, int, int]]]:
    """(name, colour) of every class, in the order of their ids."""
    return list(zip(classes.names, classes.colors))


def picture_rows(pictures: Iterable[Picture], classes: Classes, *, compare: bool) -> list[dict]:
    """Title, note and panes of every picture; `compare` puts truth, prediction and errors side by side."""
    return [{"title": p.title, "note": p.note, "panes": panes(p, classes, compare=compare)} for p in pictures]


def progress_rows(
    pictures: Iterable[Picture], earlier: Mapping[int, Mapping[str, np.ndarray]], classes: Classes, *, epoch: int
) -> list[dict]:
    """Each picture's predictions by epoch; earlier: epoch -> title -> mask, of epochs before the pictures' own."""
    rows = []
    for picture in pictures:
        masks = {number: found[picture.title] for number, found in earlier.items() if picture.title in found}
        parts = panes_by_epoch(picture, masks, classes, epoch=epoch)
        rows.append({"title": picture.title, "note": picture.note, "panes": parts})
    return rows


def share_rows(classes: Classes, per_class: Sequence[int]) -> list[dict]:
    """Largest class first; a bar's length is relative to the largest class, its number to all pixels."""
    counts = list(per_class) or [0] * len(classes)
    total, largest = sum(counts), max(counts)
    rows = [
        {
            "name": name,
            "color": color,
            "bar": count / largest if largest else 0,
            "share": percent(count / total if total else None),
            "pixels": pixels(count),
        }
        for name, color, count in zip(classes.names, classes.colors, counts, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["bar"])


def score_rows(classes: Classes, columns: list[list], extra: list[list[str]] | None = None) -> list[dict]:
    """A row per class: the ratios of `columns` (each one value per class), the first as a bar, then `extra`."""
    return [
        {
            "name": name,
            "color": color,
            "bar": columns[0][index] if is_number(columns[0][index]) else 0,
            "cells": [*(percent(column[index]) for column in columns), *(extra[index] if extra else ())],
        }
        for index, (name, color) in enumerate(legend_entries(classes))
    ]


def matrix_table(classes: Classes, counts: list[list[int]]) -> dict:
    """The confusion matrix with every cell's share of its truth row; the last column is "nothing"."""
    names = [f"{index} {name}" for index, name in enumerate(classes.names)] if _alike(classes.names) else classes.names
    columns = [*names, "nothing"]
    rows = []
    for truth, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = sum(row)
        cells = [
            {
                "text": _share_in_cell(count, total),
                "share": count / total if total else 0.0,
                "right": truth == predicted,
                "hint": f"truth {name}, predicted {columns[predicted]}: {pixels(count)}",
            }
            for predicted, count in enumerate(row)
        ]
        rows.append({"name": name, "cells": cells})
    return {"columns": columns, "rows": rows}


def _alike(names: Sequence[str]) -> bool:
    """Whether names look the same once a matrix cuts them off."""
    return len({name[:16] for name in names}) < len(names)


def bin_rows(bins: Iterable[dict]) -> list[dict[str, str]]:
    """The rows of the bins from `calibration.calibration_scores` that have pixels."""
    return [
        {
            "range": f"{100 * row['low']:.0f} to {100 * row['high']:.0f}%",
            "confidence": percent(row["confidence"]),
            "accuracy": percent(row["accuracy"]),
            "pixels": number(row["pixels"]),
        }
        for row in bins
        if row["pixels"]
    ]


def _share_in_cell(count: int, total: int) -> str:
    """Whole percent; as by `percent`, what is not quite nothing or not quite all never reads 0 or 100."""
    if not count:
        return ""
    rounded = f"{100 * count / total:.0f}"
    return {"0": "<1", "100": "100" if count == total else ">99"}.get(rounded, rounded)


def largest_confusions(classes: Classes, counts: list[list[int]]) -> list[dict]:
    """The pairs of classes that most pixels are confused between: what one would look for in a large matrix."""
    names = [*classes.names, "nothing"]
    wrong = [
        (count, truth, predicted)
        for truth, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and truth != predicted
    ]
    largest = sorted(wrong, key=lambda entry: (-entry[0], *entry[1:]))[:CONFUSIONS]
    return [
        {"truth": names[t], "predicted": names[p], "pixels": number(n), "share": percent(n / sum(counts[t]))}
        for n, t, p in largest
    ]


def failure_groups(failures: Iterable[dict]) -> dict:
    """Failures grouped by reason, the most frequent first; an image's own name is not part of the reason."""
    groups = defaultdict(list)
    for failure in failures:
        image, reason = str(failure["image"]), str(failure["error"])
        groups[_common(reason, image)].append(image)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    shown = [
        {
            "reason": reason,
            "count": number(len(images)),
            "images": images[:EXAMPLES],
            "others": max(0, len(images) - EXAMPLES),
        }
        for reason, images in ranked[:REASONS]
    ]
    listed = sum(map(len, groups.values()))
    return {"groups": shown, "more": len(ranked) - len(shown), "listed": listed}


def _common(reason: str, image: str) -> str:
    """A reason without what differs from image to image: its name, full or as decoders give it, and the byte offset."""
    for own in filter(None, (image, image.rpartition("/")[2])):
        reason = reason.replace(own, "…")
    return re.sub(r"(?<=offset )\d+", "…", reason)


def run_rows(report: dict) -> list[tuple[str, str]]:
    """What ran, and on what; only the facts that are there."""
    shards, model = report.get("shards") or {}, report.get("model")
    facts = {
        **(model if isinstance(model, dict) else {"model": model}),
        **{key: report.get(key) for key in ("archive", "data", "split", "tta", "output", "actors")},
        "windows": _count(report.get("windows")),
        "shards": _count(shards.get("total")),
        "shards of this run": _count(shards.get("this_run")),
        "skipped files": _count(report.get("skipped_files")),
        "time of the workers": stage_shares(report.get("stage_seconds") or {}) or None,
        "versions": report.get("versions"),
    }
    return rows({key: value for key, value in facts.items() if value is not None})


def stage_shares(seconds: dict[str, float]) -> str:
    """The shares of the workers' time by stage, without reading, which threads do beside the rest."""
    spent = {name: value for name, value in seconds.items() if name != "reading"}
    total = sum(spent.values())
    ranked = sorted(spent, key=lambda name: -spent[name]) if total else ()
    return ", ".join(f"{name} {percent(spent[name] / total)}" for name in ranked)


def rows(values: dict) -> list[tuple[str, str]]:
    """A settings table: every value as its user wrote it."""
    return [(str(key), text(value)) for key, value in values.items()]


def _count(value: int | None) -> str | None:
    return None if value is None else number(value)
