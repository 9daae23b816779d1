"""What labelled data hold: sizes, bands, scale, mean, standard deviation, classes; and the fingerprint of the data.

The samples are inspected in parts, wherever `run` runs them; the results are small and are summed in the order of the
samples, so that the number of parts does not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from segray.archives.images import read_header
from segray.archives.raster import Header
from segray.datasets import Dataset, Sample
from segray.datasets.large import Size, cut, is_measured, large_ones, pieces, size_of
from segray.errors import SegrayError
from segray.first_weights import first_moments
from segray.grid import blocks
from segray.inputs import InputSpec
from segray.listing import list_files
from segray.masks import IGNORE
from segray.metrics import CHUNK
from segray.ordered import in_order
from segray.reading import memory_of, read_labelled
from segray.settings import TrainSettings

IMAGES = 200  # evenly spread, whose pixels are read; mean and deviation are then accurate to a percent
COUNTED, BALANCED = 20_000, 500_000  # samples, evenly spread, whose classes are counted; BALANCED: with --balance
HEADERS = 16  # evenly spread, to see whether grey and colour are mixed
PART = 32  # samples per task, which takes a minute at most
THREADS = 8
PIXELS_AT_A_TIME = 2**26  # of the images that these threads hold: decoded, a pixel takes some 10 bytes
TOGETHER_BYTES = 2**29  # of the images whose crops are mixed: half of what `loading` keeps in memory
BLOCK_PIXELS = 2**22  # of a large scene, validated at a time
BEYOND = 1e30  # no mean or deviation of a measurement: undeclared no-data values, such as -3.4e38, are in it
# Applies a function to every part and returns the results in order: `map`, or one that does so in Ray tasks.
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """bands .. std, source_bands: see InputSpec. crops_per_image: crops that cover a mean image.

    together: images mixed at a time. images: how many had their pixels read. large, large_val: (number, height, width)
    of the training and validation samples that are read in pieces. class_counts: labelled pixels of each class in the
    pieces or images to train on, a row for each of `counted_units`; if the image was read too, without pixels where it
    has no data. Without --balance nobody needs them, and there are none: 150 classes in 20,000 images are megabytes in
    run.json and in each worker.
    """

    bands: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crops_per_image: int
    together: int
    images: int
    class_pixels: tuple[int, ...]
    class_counts: tuple[tuple[int, ...], ...] = ()
    large: tuple[tuple[int, int, int], ...] = ()
    large_val: tuple[tuple[int, int, int], ...] = ()
    source_bands: int | None = None

    @classmethod
    def from_json(cls, values: dict) -> Inspection:
        """The inspection whose `asdict` was stored as JSON."""
        return cls(**{name: _tuples(value) for name, value in values.items()})

    def spec(self, crop: int) -> InputSpec:
        """The input spec of a network trained on crops of that side, in pixels."""
        given = {name: getattr(self, name) for name in ("bands", "scale", "mean", "std", "source_bands")}
        return InputSpec(**given, tile=crop, overlap=crop // 8)

    def train(self, samples: Sequence[Sample], reach: int) -> tuple[Sample, ...]:
        """The samples to train on, large ones cut into pieces, read one at a time. reach: see `large.pieces`."""
        return tuple(cut(samples, _sizes(self.large), partial(pieces, reach=reach)))

    def val(self, samples: Sequence[Sample], crop: int) -> tuple[Sample, ...]:
        """The samples to validate, large ones cut into blocks, so large that few tiles are computed twice."""
        lattice = self.spec(crop).lattice("crop")
        return tuple(cut(samples, _sizes(self.large_val), lambda h, w: blocks(h, w, lattice, BLOCK_PIXELS)))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a sample holds. class_pixels: (K,) int64. area: pixels. The rest is None or 0 if only its mask was read.

    valid: number of valid pixels. first, second: (C,) float64 sums of their values and squares. bytes: in memory.
    """

    class_pixels: np.ndarray
    first: np.ndarray | None = None
    second: np.ndarray | None = None
    valid: int = 0
    area: int = 0
    bytes: int = 0


def inspect(
    dataset: Dataset, samples: Sequence[Sample], settings: TrainSettings, *, val: Sequence[Sample] = (), run: Run = map
) -> Inspection:
    """Inspect the training samples; SegrayError if one, or one of val, cannot be used, or none has a labelled pixel."""
    bands, dtype, source_bands = _bands(spread(samples, HEADERS), settings, run)
    scale = 1.0 / np.iinfo(dtype).max if dtype.kind in "iu" else 1.0
    # such moments are those of fractions: among real numbers no integers are taken
    raw = InputSpec(bands=bands, scale=scale, mean=(0.0,) * len(bands), std=(0.5,) * len(bands))
    large, large_val = (large_ones(part, measured(part, run)) for part in (samples, val))
    units = list(cut(samples, large, partial(pieces, reach=settings.reach)))
    read, counted = set(spread(range(len(units)), IMAGES)), counted_units(len(units), balance=settings.balance)
    numbers = sorted(read.union(counted))
    look = partial(look_at, dataset=dataset, spec=raw, explicit_bands=settings.bands is not None)
    found = chain.from_iterable(run(look, _parts([(units[number], number in read) for number in numbers])))
    seen = dict(zip(numbers, found))
    counts = np.stack([seen[number].class_pixels for number in counted])
    if not counts.sum():
        raise SegrayError(
            f"none of {len(counts)} training masks of {dataset.uri} has a labelled pixel; correct the masks, or the "
            "ignore index in classes.json"
        )
    looked = [seen[number] for number in sorted(read)]
    mean, std = _moments(looked, scale)
    if settings.weights:
        mean, std = first_moments(settings, bands=len(bands), scale=scale) or (mean, std)
    wrong = [number for number, moments in enumerate(zip(mean, std)) if not all(abs(m) < BEYOND for m in moments)]
    if wrong:
        raise SegrayError(
            f"band {bands[wrong[0]]} of {len(looked)} training images of {dataset.uri} has a mean of "
            f"{mean[wrong[0]]:.3g} and a deviation of {std[wrong[0]]:.3g}; declare its no-data value in the files"
        )
    inspection = Inspection(
        bands=bands,
        scale=scale,
        mean=mean,
        std=std,
        crops_per_image=max(1, round(sum(one.area for one in looked) / len(looked) / settings.crop**2)),
        together=max(1, int(TOGETHER_BYTES // (sum(one.bytes for one in looked) / len(looked)))),
        images=len(looked),
        class_pixels=tuple(counts.sum(axis=0).tolist()),
        class_counts=_tuples(counts.tolist()) if settings.balance else (),
        large=tuple((number, *size) for number, size in large.items()),
        large_val=tuple((number, *size) for number, size in large_val.items()),
        source_bands=source_bands,
    )
    checked = spread(inspection.val(val, settings.crop), COUNTED)  # errors are found now, not after the first epoch
    opened = set(spread(checked, IMAGES))
    list(run(look, _parts([(sample, sample in opened) for sample in checked])))
    return inspection


def look_at(
    part: Sequence[tuple[Sample, bool]], *, dataset: Dataset, spec: InputSpec, explicit_bands: bool
) -> list[Seen]:
    """What samples hold; part: (sample, whether to read its pixels too). SegrayError if one cannot be read or used."""
    look = partial(_look, dataset=dataset, spec=spec, explicit_bands=explicit_bands)
    seen = [look(part[0])]  # tells about how large the others are
    ahead = min(THREADS, max(1, PIXELS_AT_A_TIME // seen[0].area))
    with ThreadPoolExecutor(THREADS) as pool:
        return seen + list(in_order(look, part[1:], pool=pool, ahead=ahead))


def spread(samples: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the samples, evenly spread."""
    return [samples[k] for k in sorted({k * len(samples) // count for k in range(count if samples else 0)})]


def counted_units(units: int, *, balance: float) -> list[int]:
    """The numbers of the pieces or images that have a row in `Inspection.class_counts`, ascending."""
    return spread(range(units), BALANCED if balance else COUNTED)


def measured(samples: Sequence[Sample], run: Run) -> dict[int, Size]:
    """Number -> size of the samples whose size must be read from their headers."""
    unknown = [number for number, sample in enumerate(samples) if not is_measured(sample)]
    sizes = run(_sizes_of, _parts([samples[number] for number in unknown]))
    return dict(zip(unknown, chain.from_iterable(sizes)))


def fingerprint(dataset: Dataset, samples: Iterable[Sample]) -> str:
    """sha256 over the legend, keys, and etags of images and masks, from a single listing of the data."""
    etags = {file.uri: file.etag for file in list_files(dataset.uri)}
    classes = dataset.classes
    legend = [classes.to_json(), classes.ignore_index, classes.ignore_colors]
    digest = hashlib.sha256(json.dumps(legend).encode())
    for sample in samples:
        row = [sample.key, etags.get(sample.image, sample.image), etags.get(sample.mask, sample.mask)]
        digest.update(json.dumps([*row, sample.tag] if sample.tag else row).encode())
    return digest.hexdigest()


def _look(wanted: tuple[Sample, bool], *, dataset: Dataset, spec: InputSpec, explicit_bands: bool) -> Seen:
    sample, pixels_too = wanted
    classes = len(dataset.classes)
    if not pixels_too:
        mask = dataset.read_mask(sample)
        return Seen(class_pixels=_count(mask, classes), area=mask.size)
    labelled = read_labelled(dataset, sample, spec, explicit_bands=explicit_bands)
    first, second = np.zeros((2, len(spec.bands)))
    for rows in _some_rows(labelled.valid):  # one band at a time: float64 takes 8 times as much as bytes
        for band, pixels in enumerate(labelled.pixels):
            values = pixels[rows][labelled.valid[rows]].astype(np.float64)
            first[band] += values.sum()
            second[band] += np.square(values, out=values).sum()
    return Seen(
        class_pixels=_count(labelled.mask, classes),
        first=first,
        second=second,
        valid=int(labelled.valid.sum()),
        area=labelled.valid.size,
        bytes=memory_of(labelled),
    )


def _count(mask: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros(IGNORE + 1, np.int64)
    for rows in _some_rows(mask):
        counts += np.bincount(mask[rows].ravel(), minlength=IGNORE + 1)
    return counts[:classes]


def _some_rows(image_HW: np.ndarray) -> Iterator[slice]:
    """The rows of an image, about `CHUNK` pixels at a time: counting or summing takes 8 bytes a pixel."""
    height, width = image_HW.shape
    step = max(1, CHUNK // width)
    yield from (slice(top, top + step) for top in range(0, height, step))


def _moments(seen: list[Seen], scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each band over valid pixels; the std of a constant band is 1, so that the band becomes 0."""
    valid = sum(one.valid for one in seen)
    first, second = sum(one.first for one in seen), sum(one.second for one in seen)
    with np.errstate(all="ignore"):  # the caller refuses what is not finite
        mean = first / valid
        variance = np.maximum(second / valid - np.square(mean), 0)
    constant = variance <= 1e-12 * np.square(mean)
    std = [1.0 if flat else math.sqrt(v) * scale for flat, v in zip(constant, variance)]
    return tuple((mean * scale).tolist()), tuple(std)


def _bands(
    samples: Sequence[Sample], settings: TrainSettings, run: Run
) -> tuple[tuple[int, ...], np.dtype, int | None]:
    """The bands to train on, their type, and how many they were chosen from if they were, and all images have as many.

    By default those of the image with the most, as grey images may be among colour ones.
    """
    headers = list(chain.from_iterable(run(_headers, [samples])))
    count = max(header.bands for header in headers)
    counts = [header.bands + header.alpha for header in headers]  # a band marked as alpha can be chosen too
    most = max(counts)
    if settings.bands and max(settings.bands) >= most:
        raise SegrayError(
            f"{samples[counts.index(most)].image} has {most} band(s), so --bands {','.join(map(str, settings.bands))} "
            f"cannot be read; bands are numbered 0 to {most - 1}"
        )
    same = settings.bands and all(header.bands == count for header in headers)
    return settings.bands or tuple(range(count)), np.dtype(headers[0].dtype), count if same else None


def _headers(samples: Sequence[Sample]) -> list[Header]:
    return [read_header(sample.image, part=sample.part) for sample in samples]


def _sizes_of(samples: Sequence[Sample]) -> list[Size]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(in_order(size_of, samples, pool=pool, ahead=THREADS))


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """The items in lists of at most PART."""
    rest = iter(items)
    while part := list(islice(rest, PART)):
        yield part


def _sizes(large: tuple[tuple[int, int, int], ...]) -> dict[int, Size]:
    return {number: (height, width) for number, height, width in large}


def _tuples(value: Any) -> Any:
    """Lists as tuples, nested ones too."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
