"""What an evaluation counts in labelled images, as integers that add up, and the table of its images."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.boundary import SHARE, boundary_counts, boundary_scores, boundary_width
from segray.calibration import BINS, calibration_scores, mean_nll, nll_counts, reliability
from segray.datasets import Sample
from segray.masks import IGNORE, Classes
from segray.metrics import confusion_matrix, scores
from segray.regions import WindowMask


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to count.

    boundary: width of the boundary regions as a share of an image's diagonal. temperatures: those at which
    the NLL is computed, the model's own first.
    """

    num_classes: int
    boundary: float = SHARE
    temperatures: tuple[float, ...] = (1.0,)


@dataclass(kw_only=True)
class Tally:
    """The counts of some images; counts of parts of a split add up to those of the whole, however it was divided.

    matrix: see `metrics.confusion_matrix`; boundary, bins, nll: `boundary.boundary_counts`, `calibration.reliability`
    and `nll_counts`. images: (number in the split, row of the table of images).
    """

    matrix: np.ndarray
    boundary: np.ndarray
    bins: np.ndarray
    nll: np.ndarray
    images: list[tuple[int, dict]] = field(default_factory=list)

    @classmethod
    def empty(cls, measures: Measures) -> Tally:
        """The counts of no image."""
        classes = measures.num_classes
        shapes = {"matrix": (classes, classes + 1), "boundary": (classes, 2), "bins": (BINS, 3)}
        shapes["nll"] = (1 + len(measures.temperatures),)
        return cls(**{name: np.zeros(shape, np.int64) for name, shape in shapes.items()})

    def add(self, other: Tally) -> None:
        """Take in the counts of other images."""
        for name in ("matrix", "boundary", "bins", "nll"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.images += other.images

    def scores(self) -> dict[str, object]:
        """Every score of the counts, as plain Python values (see the functions that it calls)."""
        return {
            **scores(self.matrix),
            **boundary_scores(self.boundary),
            **calibration_scores(self.bins),
            "nll": mean_nll(self.nll),
            "nll_pixels": int(self.nll[0]),
        }


class ImageCounter:
    """Counts an image, whole or window by window; the counts do not depend on how it was cut.

    truth, mask: (H, W) uint8 of the image; 255 (no label, no data) counts nowhere. They are kept to find contours in.
    confidences: (h, w) uint16 of every `step`-th pixel, see WindowMask. All else is dropped with its window.
    """

    def __init__(self, height: int, width: int, measures: Measures, *, step: int = 1) -> None:
        self.measures, self.step, self._tally = measures, step, Tally.empty(measures)
        self.truth, self.mask = np.full((2, height, width), IGNORE, np.uint8)
        self.confidences = np.zeros((-(-height // step), -(-width // step)), np.uint16)

    def add(self, truth_HW: np.ndarray, result: WindowMask) -> None:
        """Count a window from its (h, w) uint8 truth and a result with details."""
        window, tally = result.window, self._tally
        truth = np.where(result.mask == IGNORE, np.uint8(IGNORE), truth_HW)
        self.truth[window.rows, window.cols], self.mask[window.rows, window.cols] = truth, result.mask
        tally.matrix += confusion_matrix(truth, result.mask, self.measures.num_classes)
        tally.bins += reliability(truth, result.mask, result.confidences)
        top, left = -window.row_off % self.step, -window.col_off % self.step
        some = result.confidences[top :: self.step, left :: self.step]
        row, col = (window.row_off + top) // self.step, (window.col_off + left) // self.step
        self.confidences[row : row + some.shape[0], col : col + some.shape[1]] = some
        if (sampled := result.sampled) is not None:
            of_sampled = truth[sampled.rows - window.row_off, sampled.cols - window.col_off]
            tally.nll += nll_counts(of_sampled, sampled.logits, self.measures.temperatures)

    def tally(self) -> Tally:
        """The counts once every window has been added; without a row in `images`."""
        width = boundary_width(*self.truth.shape, self.measures.boundary)
        boundary = boundary_counts(self.truth, self.mask, self.measures.num_classes, width=width)
        return replace(self._tally, boundary=boundary)


def image_row(sample: Sample, found: dict[str, object], classes: Classes) -> dict[str, object]:
    """The row of an image in the table of images, from its scores."""
    names = ("miou", "pixel_accuracy", "boundary_miou", "mean_confidence", "ece")
    return {
        "key": sample.key,
        "image": sample.image,
        "mask": sample.mask,
        "labelled_pixels": sum(found["truth_pixels"]),
        **{name: found[name] for name in names},
        **{f"iou_{name}": iou for name, iou in zip(classes.names, found["iou"])},
    }


def image_table(rows: Sequence[dict[str, object]], metadata: dict[str, object]) -> bytes:
    """The rows as Parquet, scores as float64, null if there is none; the metadata as JSON under `segray`."""
    kinds = {"key": pa.string(), "image": pa.string(), "mask": pa.string(), "labelled_pixels": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]])
    rows = [{name: _unicode(value) for name, value in row.items()} for row in rows]
    table = pa.Table.from_pylist(rows, schema.with_metadata({"segray": json.dumps(metadata)}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _unicode(value: object) -> object:
    """A value that Arrow takes: file names may hold bytes that are not UTF-8, written as on the page, as \\udcff."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
