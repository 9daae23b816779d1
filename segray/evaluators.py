"""The actor of an evaluation: it segments labelled images as a segmentation does, and counts in integers."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np

from segray import datasets, walk
from segray.archives.images import read_for, read_header
from segray.archives.rasters import scaling_of
from segray.archives.reduced import means
from segray.datasets.labels import size_error
from segray.errors import LabelError, SegrayError
from segray.explaining import most_errors
from segray.faults import guarded
from segray.grid import Window
from segray.inspection import BLOCK_PIXELS
from segray.plan import Item, cut
from segray.report import Picture, for_eyes
from segray.showcase import Candidate, Showcase
from segray.storage import File
from segray.tally import ImageCounter, Measures, Tally, image_row
from segray.work import Work

AHEAD = 3  # images, or blocks of a large one, read while one is segmented
PICTURE_SIDE = 640


@dataclass(kw_only=True)
class Part:
    """What an actor found in some images: their counts, and those that the page may show."""

    tally: Tally
    candidates: list[Candidate] = field(default_factory=list)


class EvaluateActor:
    """Holds the network; segments labelled images as segmentation does, and counts. images: how many the split has."""

    def __init__(self, work: Work, dataset: datasets.Dataset, measures: Measures, images: int) -> None:
        self.work, self.dataset, self.measures = replace(work, ahead=AHEAD), dataset, measures
        self.showcase = Showcase(images)
        self.segmenter = work.segmenter()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A row (see `Split.row`) -> {"start", "part", "error"}: a pickled Part, or None and what was wrong."""
        samples, start = pickle.loads(batch["samples"][0]), int(batch["start"][0])
        try:
            part, error = self._count(start, samples, large=bool(batch["large"][0])), ""
        except SegrayError as found:
            part, error = None, str(found)
        found = {"part": np.array([pickle.dumps(part)], object), "error": np.array([error], object)}
        return {"start": batch["start"], **found}

    def _count(self, start: int, samples: Sequence[datasets.Sample], *, large: bool) -> Part:
        part = Part(tally=Tally.empty(self.measures))
        items = [items_of(sample, self.work, cut_up=large) for sample in samples]
        results = guarded(walk.segment(self.work.readings(list(chain.from_iterable(items))), self.segmenter))
        for number, (sample, of_image) in enumerate(zip(samples, items), start):
            counter = self._counted(sample, islice(results, len(of_image)))
            tally = counter.tally()
            row = image_row(sample, tally.scores(), self.work.classes)
            tally.images.append((number, row))
            part.tally.add(tally)
            if (miou := row["miou"]) is not None and self.showcase.wants(number, (miou, sample.key)):
                part.candidates.append(self._candidate(sample, counter, number, miou, in_strips=large))
                part.candidates = [one for one in part.candidates if self.showcase.wants(one.number, one.rank)]
        return part

    def _counted(self, sample: datasets.Sample, results: Iterable[walk.Segmented]) -> ImageCounter:
        counter = None
        for result in results:
            if result.error:
                raise SegrayError(result.error)
            (found,), size = result.on_grid(), (result.place.height, result.place.width)
            counter = counter or ImageCounter(*size, self.measures, step=max(1, -(-max(size) // PICTURE_SIDE)))
            whole = found.window == Window(0, 0, *size)
            truth = self.dataset.read_mask(sample if whole else replace(sample, size=size, window=found.window))
            if truth.shape != found.mask.shape:
                sizes = {"have": truth.shape, "want": found.mask.shape}
                raise LabelError(size_error(sample.mask, **sizes, image=sample.image))
            counter.add(truth, found)
        return counter

    def _candidate(
        self, sample: datasets.Sample, counter: ImageCounter, number: int, miou: float, *, in_strips: bool
    ) -> Candidate:
        (height, width), step = counter.mask.shape, counter.step
        rows = max(1, BLOCK_PIXELS // (width * step)) * step if in_strips else height
        strips = [Window(top, 0, min(rows, height - top), width) for top in range(0, height, rows)]
        pixels, valid = zip(*(self._reduced(sample, strip, step) for strip in strips))
        picture = Picture(
            title=sample.key,
            image=for_eyes(np.concatenate(pixels, axis=1), np.concatenate(valid)),
            mask=counter.mask[::step, ::step],
            truth=counter.truth[::step, ::step],
            confidence=(counter.confidences >> 8).astype(np.uint8),
        )
        place = {"step": step, "tile": self.work.spec.tile, "size": (height, width)}
        errors = most_errors(picture.mask, picture.truth, **place)
        return Candidate(rank=(miou, sample.key), number=number, picture=picture, errors=errors)

    def _reduced(self, sample: datasets.Sample, window: Window, step: int) -> tuple[np.ndarray, np.ndarray]:
        """((C, h, w), (h, w) bool) of a window: means over squares of `step` pixels, validity of the first one."""
        spec = replace(self.work.spec, resolution=None)  # as large as the mask
        options = {"part": sample.part, "window": window, "explicit_bands": self.work.explicit_bands}
        raster = read_for(sample.image, spec, **options)
        rows, cols = window.within(raster.window)
        return means(raster.pixels[:, rows, cols], step), raster.valid[rows, cols][::step, ::step]


def items_of(sample: datasets.Sample, work: Work, *, cut_up: bool) -> list[Item]:
    """What is segmented at a time of an image: the whole, or each of its blocks."""
    if not cut_up:
        return [Item(image=sample.image, etag="", part=sample.part)]
    header = read_header(sample.image, part=sample.part)
    file = File(sample.image, 0, "", part=sample.part)
    options = {"lattice": work.spec.lattice(work.blend), "scaling": scaling_of(header, work.spec.resolution)}
    return list(cut(file, height=header.height, width=header.width, shard_pixels=BLOCK_PIXELS, **options))
