"""The evaluation job: the segmentation path run on labelled images, counted in one confusion matrix."""

from __future__ import annotations

import json
import logging
import pickle
import time
from dataclasses import dataclass, field, replace

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from segray import cluster, datasets, pipeline, walk
from segray.archives.images import read_for
from segray.errors import LabelError, SegrayError
from segray.masks import IGNORE
from segray.metrics import confusion_matrix, scores
from segray.model_dir import Description, read_description
from segray.plan import Item
from segray.report import Picture, evaluation_page, for_eyes
from segray.segmentation import actor_range, make_work, with_devices, with_threads
from segray.settings import EvaluateSettings
from segray.storage import join, publish
from segray.work import Work, make_segmenter

log = logging.getLogger("segray")
IMAGES_A_ROW = 4
PICTURES = 6
PICTURE_SIDE = 640


@dataclass(kw_only=True)
class Counts:
    """matrix: (K, K + 1) int64 over the images counted so far. pictures: (IoU, picture) of some of them."""

    matrix: np.ndarray
    images: int = 0
    pictures: list[tuple[float, Picture]] = field(default_factory=list)


def evaluate(settings: EvaluateSettings) -> dict:
    """Evaluate a model on a split of labelled data; the content of metrics.json.

    SegrayError on bad input: other classes than the model's, a split that is not there, an unreadable image or mask.
    """
    description = read_description(settings.model)
    dataset = datasets.open_dataset(settings.data)
    _check_classes(description, dataset, settings)
    samples = dataset.samples(settings.split)
    work = make_work(settings, description)
    cluster.start()
    work = with_devices(work, settings)
    start = time.monotonic()
    counts = _count(settings, work, len(samples))
    metrics = {
        "split": settings.split,
        "data": settings.data,
        "model": {"digest": description.digest, "network": description.network_name},
        "images": counts.images,
        "seconds": time.monotonic() - start,
        "classes": list(description.classes.names),
        **scores(counts.matrix),
        "confusion_matrix": counts.matrix.tolist(),
    }
    pictures = _chosen(counts.pictures)
    publish(join(settings.output, "metrics.json"), json.dumps(metrics, indent=1).encode())
    page = evaluation_page(classes=description.classes, metrics=metrics, pictures=pictures)
    publish(join(settings.output, "report.html"), page)
    return metrics


class EvaluateActor:
    """Holds the network; segments labelled images as the segmentation does, and counts."""

    def __init__(self, work: Work, settings: EvaluateSettings) -> None:
        self.work = work
        self.dataset = datasets.open_dataset(settings.data)
        self.samples = self.dataset.samples(settings.split)
        self.stride = max(1, len(self.samples) // 50)  # pictures of at most about 50 images travel to the driver
        self.segmenter = make_segmenter(work)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A range of samples, {"start"}, to {"counts"} (pickled) and {"error"}, the sentence of what was bad in it."""
        start = int(batch["start"][0])
        try:
            counts, error = self._count(start), ""
        except SegrayError as found:
            counts, error = None, str(found)
        return {"counts": np.array([pickle.dumps(counts)], object), "error": np.array([error], object)}

    def _count(self, start: int) -> Counts:
        classes = self.work.classes
        counts = Counts(matrix=np.zeros((len(classes), len(classes) + 1), np.int64))
        chosen = self.samples[start : start + IMAGES_A_ROW]
        readings = self.work.readings([Item(image=sample.image, etag="") for sample in chosen])
        for number, (sample, result) in enumerate(zip(chosen, walk.segment(readings, self.segmenter)), start=start):
            if result.error:
                raise SegrayError(result.error)
            prediction, truth = result.masks[0].mask, self.dataset.read_mask(sample)
            if truth.shape != prediction.shape:
                raise LabelError(f"{sample.mask} is {truth.shape}, but its image is {prediction.shape} pixels")
            truth = np.where(prediction == IGNORE, np.uint8(IGNORE), truth)  # the image has no data there
            matrix = confusion_matrix(truth, prediction, len(classes))
            counts.matrix += matrix
            counts.images += 1
            if number % self.stride == 0:
                counts.pictures.append(self._picture(sample, prediction, truth=truth, matrix=matrix))
        return counts

    def _picture(
        self, sample: datasets.Sample, prediction: np.ndarray, *, truth: np.ndarray, matrix: np.ndarray
    ) -> tuple[float, Picture]:
        spec = replace(self.work.spec, resolution=None)  # as large as the mask
        raster = read_for(sample.image, spec, explicit_bands=self.work.explicit_bands)
        step = max(1, -(-max(truth.shape) // PICTURE_SIDE))
        small = np.s_[::step, ::step]
        iou = scores(matrix)["miou"]
        picture = Picture(
            title=sample.key,
            image=for_eyes(raster.pixels[(slice(None), *small)], raster.valid[small]),
            mask=prediction[small],
            truth=truth[small],
            note="no labelled pixel" if iou is None else f"mIoU {iou:.3f}",
        )
        return (-1.0 if iou is None else iou), picture


def _count(settings: EvaluateSettings, work: Work, samples: int) -> Counts:
    """The counts of all samples; SegrayError when one of them is bad."""
    starts = list(range(0, samples, IMAGES_A_ROW))
    low, high = actor_range(settings, work, len(starts))
    work = with_threads(work, high)
    rows = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
    with pipeline.retries_bounded():
        rows = rows.map_batches(
            EvaluateActor,
            fn_constructor_args=(work, settings),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=low, max_size=high),
            max_task_retries=1,
            **work.actor_options(),
        )
    pipeline.configure()
    ray.data.DataContext.get_current().max_errored_blocks = 0  # every image counts
    total = Counts(matrix=np.zeros((len(work.classes), len(work.classes) + 1), np.int64))
    for row in rows.iter_rows():
        if row["error"]:
            raise SegrayError(row["error"])
        part: Counts = pickle.loads(row["counts"])
        total.matrix += part.matrix
        total.images += part.images
        total.pictures += part.pictures
        if not total.images % 100:
            log.info("%d of %d images", total.images, samples)
    return total


def _check_classes(description: Description, dataset: datasets.Dataset, settings: EvaluateSettings) -> None:
    ours, theirs = description.classes.names, dataset.classes.names
    if ours != theirs:
        raise SegrayError(
            f"the model at {settings.model} knows the classes {', '.join(ours)}, but {settings.data} is labelled with "
            f"{', '.join(theirs)}; evaluate on data with the same classes in the same order"
        )


def _chosen(pictures: list[tuple[float, Picture]]) -> list[Picture]:
    """The worst, the middle and the best by their mIoU."""
    ranked = sorted(pictures, key=lambda pair: (pair[0], pair[1].title))
    chosen = sorted({int(index) for index in np.linspace(0, len(ranked) - 1, PICTURES)}) if ranked else []
    return [ranked[index][1] for index in chosen]
