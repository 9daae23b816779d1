"""The evaluation job: labelled images run through the segmentation path and counted in integers."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from segray import cluster, datasets, pipeline
from segray.calibration import TEMPERATURES, best_temperature, mean_nll
from segray.errors import SegrayError, one_line
from segray.evaluators import EvaluateActor, Part
from segray.explaining import Question, explain
from segray.faults import ADVICE
from segray.model_dir import Description, read_description, write_temperature
from segray.places import EVALUATION, check_unclaimed
from segray.report import Picture, evaluation_page
from segray.segmentation import actor_range, make_work, with_devices, with_threads
from segray.settings import EvaluateSettings
from segray.showcase import Candidate, Showcase
from segray.split_rows import Split
from segray.storage import publish
from segray.tally import Measures, Tally, image_table
from segray.tasks import DEATHS, in_tasks
from segray.uris import join, real
from segray.versions import versions
from segray.work import Work, model_of

log = logging.getLogger("segray")
EDGES = TEMPERATURES[0], TEMPERATURES[-1]


def evaluate(settings: EvaluateSettings) -> dict:
    """Evaluate a model on a split of labelled data; the content of metrics.json.

    With --calibrate the split is evaluated twice: to fit a temperature, which is written into the model directory, and
    then with it. SegrayError on bad input: classes other than the model's, a missing split, an unreadable image or
    mask, nothing labelled to calibrate on, an output of another job.
    """
    description = read_description(settings.model)
    _check_place(settings)
    dataset = datasets.open_dataset(settings.data)
    _check_classes(description, dataset, settings)
    samples = dataset.samples(settings.split)
    work = replace(make_work(settings, description), detailed=True, sampled=True)
    cluster.start()
    work = with_devices(work, settings)
    split = Split.of(dataset, samples, in_tasks)
    start = time.monotonic()
    calibration = None
    if settings.calibrate:
        description, calibration = _calibrate(settings, work, description, split)
        work = replace(work, digest=description.digest)
    tally, showcase = _count(settings, work, split, (description.temperature,))
    found = tally.scores()
    if calibration is not None:
        calibration |= {"nll_after": found["nll"], "ece_after": found["ece"]}
    model = {"model": settings.model, "digest": description.digest, "network": description.network_name}
    model["temperature"] = description.temperature
    spec = work.spec
    metrics = {
        "split": settings.split,
        "data": settings.data,
        "model": model,
        "tta": settings.tta,
        "images": len(tally.images),
        "seconds": time.monotonic() - start,
        "classes": list(description.classes.names),
        **found,
        "boundary_share": settings.boundary,
        **({} if calibration is None else {"calibration": calibration}),
        "settings": {name: getattr(spec, name) for name in ("tile", "overlap", "scale", "resolution")}
        | {"blend": work.blend, "bands": list(spec.bands)}
        | {"precision": work.precision, "device": "gpu" if work.on_gpu else "cpu"},
        "versions": versions(),
        "confusion_matrix": tally.matrix.tolist(),
    }
    rows = [row for _, row in sorted(tally.images)]
    shown = showcase.shown([(row["miou"], row["key"]) for row in rows if row["miou"] is not None])
    reasons = _reasons(work, replace(description, spec=spec), split, shown)
    _publish(settings, description, metrics, rows, pictures=[found.picture for found in shown], reasons=reasons)
    return metrics


def _calibrate(
    settings: EvaluateSettings, work: Work, description: Description, split: Split
) -> tuple[Description, dict]:
    """The model with the temperature of least NLL on the split, and the `calibration` of metrics.json so far."""
    tally, _ = _count(settings, work, split, (description.temperature, *TEMPERATURES))
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


def _results(rows: list[dict], work: Work, begun: Callable[[list[dict]], ray.data.Dataset]) -> Iterator[dict]:
    """The result of each row, given data sets that compute them; rows lost with an actor or a node are begun again.

    ModelError if the model has been replaced meanwhile, SegrayError if an image kills the actors.
    """
    missing, stalled = {row["start"]: row for row in rows}, 0
    while missing:
        before = len(missing)
        try:
            for result in cluster.noting_waits(begun(list(missing.values())).iter_rows()):
                del missing[int(result["start"])]
                yield result
        except DEATHS as error:
            model_of(work)
            stalled = 0 if len(missing) < before else stalled + 1
            if stalled == pipeline.ATTEMPTS:
                reason = "actors are killed again and again at the same images (out of memory, or a fault of a decoder"
                raise SegrayError(f"{reason} or a GPU); {ADVICE}") from error
            log.info("an actor was lost: %s; trying its images again", one_line(error))


def _count(
    settings: EvaluateSettings, work: Work, split: Split, temperatures: tuple[float, ...]
) -> tuple[Tally, Showcase]:
    """The counts of all samples, and those to show; SegrayError when a sample cannot be used."""
    count, actors = len(split.samples), partial(actor_range, settings, work, more_bytes=split.actor_bytes)
    ranges = split.ranges(batch=work.batch_size, actors=actors(count)[1])
    low, high = actors(len(ranges))
    work = with_threads(work, high)
    measures = Measures(num_classes=len(work.classes), boundary=settings.boundary, temperatures=temperatures)

    def begun(rows: list[dict]) -> ray.data.Dataset:
        source = pipeline.source(rows)
        source.context.max_errored_blocks = 0  # every image counts
        with pipeline.retries_bounded():
            results = source.map_batches(
                EvaluateActor,
                fn_constructor_args=(work, split.dataset, measures, count),
                batch_size=1,
                compute=ActorPoolStrategy(min_size=min(low, len(rows)), max_size=min(high, len(rows))),
                max_task_retries=1,
                **work.actor_options(),
            )
        pipeline.configure()
        return results

    total, showcase = Tally.empty(measures), Showcase(count)
    for row in _results([split.row(*samples) for samples in ranges], work, begun):
        if row["error"]:
            raise SegrayError(row["error"])
        part: Part = pickle.loads(row["part"])
        before = len(total.images)
        total.add(part.tally)
        showcase.add(part.candidates)
        if before // 100 < len(total.images) // 100:
            log.info("%d of %d images", len(total.images), count)
    return total, showcase


def _reasons(work: Work, description: Description, split: Split, shown: Sequence[Candidate]) -> list[Picture]:
    """What speaks for the errors of the images that are shown; none where that fails: scores are worth more."""
    questions = [
        Question(sample=split.samples[found.number], window=found.errors, note=found.picture.note)
        for found in shown
        if found.errors is not None
    ]
    if not questions or description.spec.resolution is not None:  # windows are of the image, not of a coarser grid
        return []
    ask = partial(explain, description, split.dataset, explicit_bands=work.explicit_bands)
    try:
        (pictures,) = in_tasks(ask, [questions])
    except (ray.exceptions.RayError, SegrayError) as error:
        log.warning("the page does not explain errors: %s", " ".join(str(error).split())[-300:])
        return []
    return pictures


def _publish(
    settings: EvaluateSettings,
    description: Description,
    metrics: dict,
    rows: list[dict],
    *,
    pictures: list[Picture],
    reasons: list[Picture],
) -> None:
    """Write metrics.json, images.parquet and report.html."""
    about = {name: metrics[name] for name in ("split", "data", "model", "tta", "classes")}
    publish(join(settings.output, EVALUATION), json.dumps(metrics, indent=1).encode())
    publish(join(settings.output, "images.parquet"), image_table(rows, about))
    page = evaluation_page(classes=description.classes, metrics=metrics, pictures=pictures, reasons=reasons)
    publish(join(settings.output, "report.html"), page)


def _check_place(settings: EvaluateSettings) -> None:
    """SegrayError if OUTPUT is the data or the model directory, or belongs to another job."""
    for flag, source in (("--data", settings.data), ("--model", settings.model)):
        if real(settings.output) == real(source):
            raise SegrayError(f"--output {settings.output} is {flag}; give a folder of its own")
    check_unclaimed(settings.output, EVALUATION)


def _check_classes(description: Description, dataset: datasets.Dataset, settings: EvaluateSettings) -> None:
    ours, theirs = description.classes.names, dataset.classes.names
    if ours != theirs:
        raise SegrayError(
            f"the model at {settings.model} knows the classes {', '.join(ours)}, but {settings.data} is labelled with "
            f"{', '.join(theirs)}; evaluate on data with the same classes in the same order"
        )
