"""The evaluation job: the segmentation path run on labelled images, counted in integers."""

from __future__ import annotations

import json
import logging
import pickle
import time
from dataclasses import dataclass, field, replace

import numpy as np
import ray
from PIL import Image
from ray.data import ActorPoolStrategy

from segray import cluster, datasets, pipeline, walk
from segray.archives.images import read_for
from segray.calibration import TEMPERATURES, best_temperature, mean_nll
from segray.errors import LabelError, SegrayError
from segray.model_dir import Description, read_description, write_temperature
from segray.places import check_unclaimed
from segray.plan import Item
from segray.report import Picture, evaluation_page, for_eyes
from segray.segmentation import actor_range, make_work, with_devices, with_threads
from segray.settings import EvaluateSettings
from segray.showcase import Candidate, Showcase
from segray.storage import join, publish, real
from segray.tally import Measures, Tally, count_image, image_row, image_table
from segray.work import Work, make_segmenter

log = logging.getLogger("segray")
IMAGES_A_ROW = 4
PICTURE_SIDE = 640
EDGES = TEMPERATURES[0], TEMPERATURES[-1]


@dataclass(kw_only=True)
class Part:
    """What an actor found of some images: their counts, and those of them that the page may show."""

    tally: Tally
    candidates: list[Candidate] = field(default_factory=list)


def evaluate(settings: EvaluateSettings) -> dict:
    """Evaluate a model on a split of labelled data; the content of metrics.json.

    With --calibrate the split is evaluated twice: to fit a temperature, which is written into the model directory, and
    with it. SegrayError on bad input: other classes than the model's, a split that is not there, an unreadable image or
    mask, nothing labelled to calibrate on, an output that is another job's.
    """
    description = read_description(settings.model)
    _check_place(settings)
    dataset = datasets.open_dataset(settings.data)
    _check_classes(description, dataset, settings)
    samples = dataset.samples(settings.split)
    work = replace(make_work(settings, description), detailed=True)
    cluster.start()
    work = with_devices(work, settings)
    start = time.monotonic()
    calibration = None
    if settings.calibrate:
        description, calibration = _calibrate(settings, work, description, len(samples))
    tally, showcase = _count(settings, work, len(samples), (description.temperature,))
    found = tally.scores()
    if calibration is not None:
        calibration |= {"nll_after": found["nll"], "ece_after": found["ece"]}
    model = {
        "digest": description.digest, "network": description.network_name, "temperature": description.temperature
    }  # fmt: skip
    metrics = {
        "split": settings.split,
        "data": settings.data,
        "model": model,
        "images": len(tally.images),
        "seconds": time.monotonic() - start,
        "classes": list(description.classes.names),
        **found,
        "boundary_share": settings.boundary,
        **({} if calibration is None else {"calibration": calibration}),
        "confusion_matrix": tally.matrix.tolist(),
    }
    _publish(settings, description, metrics, rows=[row for _, row in sorted(tally.images)], showcase=showcase)
    return metrics


class EvaluateActor:
    """Holds the network; segments labelled images as the segmentation does, and counts."""

    def __init__(self, work: Work, settings: EvaluateSettings, measures: Measures) -> None:
        self.work, self.measures = work, measures
        self.dataset = datasets.open_dataset(settings.data)
        self.samples = self.dataset.samples(settings.split)
        self.showcase = Showcase(len(self.samples))
        self.segmenter = make_segmenter(work)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A range of samples, {"start"}, to {"part"} (pickled) and {"error"}, the sentence of what was bad in it."""
        start = int(batch["start"][0])
        try:
            part, error = self._count(start), ""
        except SegrayError as found:
            part, error = None, str(found)
        return {"part": np.array([pickle.dumps(part)], object), "error": np.array([error], object)}

    def _count(self, start: int) -> Part:
        part = Part(tally=Tally.empty(self.measures))
        chosen = self.samples[start : start + IMAGES_A_ROW]
        readings = self.work.readings([Item(image=sample.image, etag="", part=sample.part) for sample in chosen])
        for number, (sample, result) in enumerate(zip(chosen, walk.segment(readings, self.segmenter)), start=start):
            if result.error:
                raise SegrayError(result.error)
            (found,), truth = result.masks, self.dataset.read_mask(sample)
            if truth.shape != found.mask.shape:
                raise LabelError(f"{sample.mask} is {truth.shape}, but its image is {found.mask.shape} pixels")
            tally = count_image(truth, found, self.measures)
            row = image_row(sample, tally.scores(), self.work.classes)
            tally.images.append((number, row))
            part.tally.add(tally)
            if (miou := row["miou"]) is not None and self.showcase.wants(number, (miou, sample.key)):
                picture = self._picture(sample, found.mask, truth)
                part.candidates.append(Candidate(rank=(miou, sample.key), number=number, picture=picture))
        return part

    def _picture(self, sample: datasets.Sample, prediction: np.ndarray, truth: np.ndarray) -> Picture:
        spec = replace(self.work.spec, resolution=None)  # as large as the mask
        raster = read_for(sample.image, spec, part=sample.part, explicit_bands=self.work.explicit_bands)
        step = max(1, -(-max(truth.shape) // PICTURE_SIDE))
        image = Image.fromarray(for_eyes(raster.pixels, raster.valid)).reduce(step)
        small = np.s_[::step, ::step]
        return Picture(title=sample.key, image=np.asarray(image), mask=prediction[small], truth=truth[small])


def _calibrate(
    settings: EvaluateSettings, work: Work, description: Description, samples: int
) -> tuple[Description, dict]:
    """The model with the temperature of least NLL on the split, and what metrics.json says of it so far."""
    tally, _ = _count(settings, work, samples, (description.temperature, *TEMPERATURES))
    if not tally.nll[0]:
        raise SegrayError(f"{settings.data} has no labelled pixel in {settings.split} to calibrate on")
    before = tally.scores()
    temperature = round(best_temperature(np.delete(tally.nll, 1)), 4)
    if temperature in EDGES:
        log.warning("the NLL is least at a temperature beyond %g to %g; is the split very small?", *EDGES)
    calibration = {
        "temperature_before": description.temperature,
        "temperature": temperature,
        "nll_before": mean_nll(tally.nll),
        "ece_before": before["ece"],
        "reliability_before": before["reliability"],
    }
    return write_temperature(description, temperature), calibration


def _count(
    settings: EvaluateSettings, work: Work, samples: int, temperatures: tuple[float, ...]
) -> tuple[Tally, Showcase]:
    """The counts of all samples, and those to show; SegrayError when one of them is bad."""
    starts = list(range(0, samples, IMAGES_A_ROW))
    low, high = actor_range(settings, work, len(starts))
    work = with_threads(work, high)
    measures = Measures(num_classes=len(work.classes), boundary=settings.boundary, temperatures=temperatures)
    rows = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
    with pipeline.retries_bounded():
        rows = rows.map_batches(
            EvaluateActor,
            fn_constructor_args=(work, settings, measures),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=low, max_size=high),
            max_task_retries=1,
            **work.actor_options(),
        )
    pipeline.configure()
    ray.data.DataContext.get_current().max_errored_blocks = 0  # every image counts
    total, showcase = Tally.empty(measures), Showcase(samples)
    for row in rows.iter_rows():
        if row["error"]:
            raise SegrayError(row["error"])
        part: Part = pickle.loads(row["part"])
        total.add(part.tally)
        showcase.add(part.candidates)
        if not len(total.images) % 100:
            log.info("%d of %d images", len(total.images), samples)
    return total, showcase


def _publish(
    settings: EvaluateSettings, description: Description, metrics: dict, *, rows: list[dict], showcase: Showcase
) -> None:
    """Write metrics.json, images.parquet and report.html."""
    pictures = showcase.pictures([(row["miou"], row["key"]) for row in rows if row["miou"] is not None])
    about = {name: metrics[name] for name in ("split", "data", "model", "classes")}
    publish(join(settings.output, "metrics.json"), json.dumps(metrics, indent=1).encode())
    publish(join(settings.output, "images.parquet"), image_table(rows, about))
    page = evaluation_page(classes=description.classes, metrics=metrics, pictures=pictures)
    publish(join(settings.output, "report.html"), page)


def _check_place(settings: EvaluateSettings) -> None:
    """SegrayError where the scores would lie among what they are of, or replace the page of another job."""
    for flag, source in (("--data", settings.data), ("--model", settings.model)):
        if real(settings.output) == real(source):
            raise SegrayError(f"--output {settings.output} is {flag}; give a folder of its own")
    check_unclaimed(settings.output)


def _check_classes(description: Description, dataset: datasets.Dataset, settings: EvaluateSettings) -> None:
    ours, theirs = description.classes.names, dataset.classes.names
    if ours != theirs:
        raise SegrayError(
            f"the model at {settings.model} knows the classes {', '.join(ours)}, but {settings.data} is labelled with "
            f"{', '.join(theirs)}; evaluate on data with the same classes in the same order"
        )
