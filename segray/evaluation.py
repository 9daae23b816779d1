"""The evaluation job: the segmentation path run on labelled images, counted in integers."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from segray import cluster, datasets, pipeline, walk
from segray.archives.images import read_for, read_header
from segray.archives.rasters import scaling_of
from segray.archives.reduced import means
from segray.calibration import TEMPERATURES, best_temperature, mean_nll
from segray.datasets.large import large_ones
from segray.errors import LabelError, SegrayError
from segray.grid import Window
from segray.inspection import BLOCK_PIXELS, measured
from segray.model_dir import Description, read_description, write_temperature
from segray.places import check_unclaimed
from segray.plan import Item, cut
from segray.report import Picture, evaluation_page, for_eyes
from segray.segmentation import actor_range, make_work, with_devices, with_threads
from segray.settings import EvaluateSettings
from segray.showcase import Candidate, Showcase
from segray.storage import File, join, publish, real
from segray.tally import ImageCounter, Measures, Tally, image_row, image_table
from segray.tasks import in_tasks
from segray.work import Work, model_of

log = logging.getLogger("segray")
IMAGES_A_ROW = 4
AHEAD = 4  # images, or blocks of a large one, that are read ahead
# Memory of an actor beside its network, about: for a pixel of an image that is held whole with those ahead of it, for a
# pixel of a large scene (its mask, its truth, and strips of them in which contours are looked for), and for its blocks.
WHOLE_BYTES, SCENE_BYTES, BLOCK_BYTES = 90, 3, 90 * BLOCK_PIXELS
PICTURE_SIDE = 640
EDGES = TEMPERATURES[0], TEMPERATURES[-1]


@dataclass(kw_only=True)
class Part:
    """What an actor found of some images: their counts, and those of them that the page may show."""

    tally: Tally
    candidates: list[Candidate] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples of a split as actors take them. large: the numbers of those that are segmented block by block.

    ranges: (start, stop) of the samples of each row. actor_bytes: see `segmentation.actor_range`.
    """

    samples: int
    large: frozenset[int]
    ranges: tuple[tuple[int, int], ...]
    actor_bytes: int

    @classmethod
    def of(cls, samples: Sequence[datasets.Sample]) -> Split:
        """Measures the samples whose size nobody knows in Ray tasks; ImageError when one cannot be read."""
        sizes = measured(samples, in_tasks)
        large = large_ones(samples, sizes)
        known = {**{number: sample.size for number, sample in enumerate(samples) if sample.size}, **sizes}
        costs = (
            height * width * SCENE_BYTES + BLOCK_BYTES if number in large else height * width * WHOLE_BYTES
            for number, (height, width) in known.items()
        )
        ranges = tuple(ranges_of(len(samples), large))
        return cls(samples=len(samples), large=frozenset(large), ranges=ranges, actor_bytes=max(costs, default=0))


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
    split = Split.of(samples)
    start = time.monotonic()
    calibration = None
    if settings.calibrate:
        description, calibration = _calibrate(settings, work, description, split)
        work = replace(work, digest=description.digest)
    tally, showcase = _count(settings, work, split, (description.temperature,))
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
    """Holds the network; segments labelled images as the segmentation does, and counts. large: see `Split`."""

    def __init__(
        self, work: Work, settings: EvaluateSettings, measures: Measures, large: Collection[int] = frozenset()
    ) -> None:
        self.work, self.measures, self.large = replace(work, ahead=AHEAD), measures, large
        self.dataset = datasets.open_dataset(settings.data)
        self.samples = self.dataset.samples(settings.split)
        self.showcase = Showcase(len(self.samples))
        self.segmenter = work.segmenter()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Samples, {"start", "stop"}, to {"part"} (pickled) and {"error"}, the sentence of what was bad in them."""
        try:
            part, error = self._count(range(int(batch["start"][0]), int(batch["stop"][0]))), ""
        except SegrayError as found:
            part, error = None, str(found)
        return {"part": np.array([pickle.dumps(part)], object), "error": np.array([error], object)}

    def _count(self, numbers: range) -> Part:
        part = Part(tally=Tally.empty(self.measures))
        items = [items_of(self.samples[number], self.work, cut_up=number in self.large) for number in numbers]
        results = walk.segment(self.work.readings(list(chain.from_iterable(items))), self.segmenter)
        for number, of_image in zip(numbers, items):
            sample = self.samples[number]
            counter = self._counted(sample, islice(results, len(of_image)))
            tally = counter.tally()
            row = image_row(sample, tally.scores(), self.work.classes)
            tally.images.append((number, row))
            part.tally.add(tally)
            if (miou := row["miou"]) is not None and self.showcase.wants(number, (miou, sample.key)):
                picture = self._picture(sample, counter, in_strips=number in self.large)
                part.candidates.append(Candidate(rank=(miou, sample.key), number=number, picture=picture))
        return part

    def _counted(self, sample: datasets.Sample, results: Iterable[walk.Segmented]) -> ImageCounter:
        counter = None
        for result in results:
            if result.error:
                raise SegrayError(result.error)
            (found,), size = result.masks, (result.place.height, result.place.width)
            counter = counter or ImageCounter(*size, self.measures)
            whole = found.window == Window(0, 0, *size)
            truth = self.dataset.read_mask(sample if whole else replace(sample, size=size, window=found.window))
            if truth.shape != found.mask.shape:
                raise LabelError(f"{sample.mask} is {truth.shape}, but its image is {found.mask.shape} pixels")
            counter.add(truth, found)
        return counter

    def _picture(self, sample: datasets.Sample, counter: ImageCounter, *, in_strips: bool) -> Picture:
        height, width = counter.mask.shape
        step = max(1, -(-max(height, width) // PICTURE_SIDE))
        rows = max(1, BLOCK_PIXELS // (width * step)) * step if in_strips else height
        strips = [Window(top, 0, min(rows, height - top), width) for top in range(0, height, rows)]
        pixels, valid = zip(*(self._reduced(sample, strip, step) for strip in strips))
        image = for_eyes(np.concatenate(pixels, axis=1), np.concatenate(valid))
        small = np.s_[::step, ::step]
        return Picture(title=sample.key, image=image, mask=counter.mask[small], truth=counter.truth[small])

    def _reduced(self, sample: datasets.Sample, window: Window, step: int) -> tuple[np.ndarray, np.ndarray]:
        """((C, h, w), (h, w) bool) of a window, of whose squares of `step` pixels means are left."""
        spec = replace(self.work.spec, resolution=None)  # as large as the mask
        options = {"part": sample.part, "window": window, "explicit_bands": self.work.explicit_bands}
        raster = read_for(sample.image, spec, **options)
        rows, cols = window.within(raster.window)
        return means(raster.pixels[:, rows, cols], step), raster.valid[rows, cols][::step, ::step]


def items_of(sample: datasets.Sample, work: Work, *, cut_up: bool) -> list[Item]:
    """An image as what is segmented at a time: the whole, or its blocks."""
    if not cut_up:
        return [Item(image=sample.image, etag="", part=sample.part)]
    header = read_header(sample.image, part=sample.part)
    file = File(sample.image, 0, "", part=sample.part)
    options = {"lattice": work.spec.lattice(work.blend), "scaling": scaling_of(header, work.spec.resolution)}
    return list(cut(file, height=header.height, width=header.width, shard_pixels=BLOCK_PIXELS, **options))


def ranges_of(samples: int, large: Collection[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of some consecutive samples each, which together are all; a large one is alone."""
    start = 0
    for number in range(samples):
        ends = number + 1 - start == IMAGES_A_ROW or number in large or number + 1 in large or number + 1 == samples
        if ends:
            yield start, number + 1
            start = number + 1


def _calibrate(
    settings: EvaluateSettings, work: Work, description: Description, split: Split
) -> tuple[Description, dict]:
    """The model with the temperature of least NLL on the split, and what metrics.json says of it so far."""
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


def _rows(rows: ray.data.Dataset, work: Work) -> Iterator[dict]:
    """The rows; ModelError when an actor could not begin because the model is another one by now."""
    try:
        yield from rows.iter_rows()
    except pipeline.DEATHS:
        model_of(work)
        raise


def _count(
    settings: EvaluateSettings, work: Work, split: Split, temperatures: tuple[float, ...]
) -> tuple[Tally, Showcase]:
    """The counts of all samples, and those to show; SegrayError when one of them is bad."""
    low, high = actor_range(settings, work, len(split.ranges), more_bytes=split.actor_bytes)
    work = with_threads(work, high)
    measures = Measures(num_classes=len(work.classes), boundary=settings.boundary, temperatures=temperatures)
    ranges = [{"start": start, "stop": stop} for start, stop in split.ranges]
    rows = ray.data.from_items(ranges, override_num_blocks=len(ranges))
    with pipeline.retries_bounded():
        rows = rows.map_batches(
            EvaluateActor,
            fn_constructor_args=(work, settings, measures, split.large),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=low, max_size=high),
            max_task_retries=1,
            **work.actor_options(),
        )
    pipeline.configure()
    ray.data.DataContext.get_current().max_errored_blocks = 0  # every image counts
    total, showcase = Tally.empty(measures), Showcase(split.samples)
    for row in _rows(rows, work):
        if row["error"]:
            raise SegrayError(row["error"])
        part: Part = pickle.loads(row["part"])
        total.add(part.tally)
        showcase.add(part.candidates)
        if not len(total.images) % 100:
            log.info("%d of %d images", len(total.images), split.samples)
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
