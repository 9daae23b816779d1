"""What labelled data are like, from a sample of them: bands, range, mean, deviation, classes; and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from segray.archives.images import read_header
from segray.datasets import Dataset, Labelled, Sample
from segray.errors import SegrayError
from segray.inputs import InputSpec
from segray.masks import IGNORE
from segray.reading import in_order, memory_of, read_labelled
from segray.settings import TrainSettings
from segray.storage import list_files

IMAGES = 200  # inspected, evenly spread; mean and deviation are then good to a percent
HEADERS = 16  # of the first images: whether grey and colour are mixed
THREADS = 8
TOGETHER_BYTES = 2**29  # of the images whose crops are mixed: half of what `loading` keeps in memory
# of ImageNet in 0..1, which pretrained backbones were trained with: https://pytorch.org/vision/stable/models.html
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """bands .. std: see InputSpec. crops_per_image: that cover a mean image once. together: images mixed at a time.

    images: how many were inspected; class_pixels: labelled pixels of each class in those.
    """

    bands: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crops_per_image: int
    together: int
    images: int
    class_pixels: tuple[int, ...]

    @classmethod
    def from_json(cls, values: dict) -> Inspection:
        """The inspection of its `asdict` that went through JSON."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def spec(self, crop: int) -> InputSpec:
        """The input spec of a network that is trained on crops of that side."""
        return InputSpec(bands=self.bands, scale=self.scale, mean=self.mean, std=self.std, tile=crop, overlap=crop // 8)


def inspect(dataset: Dataset, samples: Sequence[Sample], settings: TrainSettings) -> Inspection:
    """Read up to 200 training samples; SegrayError when one cannot be read or used, or none has a labelled pixel."""
    chosen = spread(samples, IMAGES)
    bands, dtype = _bands(chosen, settings)
    scale = 1.0 / np.iinfo(dtype).max if dtype.kind in "iu" else 1.0
    raw = InputSpec(bands=bands, scale=scale, mean=(0.0,) * len(bands), std=(1.0,) * len(bands))
    sums = _Sums(len(bands), len(dataset.classes))
    read = partial(read_labelled, dataset, spec=raw, explicit_bands=settings.bands is not None)
    with ThreadPoolExecutor(THREADS) as pool:
        for labelled in in_order(read, chosen, pool=pool, ahead=THREADS):
            sums.add(labelled)
    if not sums.class_pixels.sum():
        raise SegrayError(
            f"none of {len(chosen)} training masks of {dataset.uri} has a labelled pixel; correct the masks, or the "
            "ignore index in classes.json"
        )
    mean, std = sums.moments(scale)
    if settings.weights and len(bands) == 3 and dtype == np.uint8:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Inspection(
        bands=bands,
        scale=scale,
        mean=mean,
        std=std,
        crops_per_image=max(1, round(sums.area / len(chosen) / settings.crop**2)),
        together=max(1, int(TOGETHER_BYTES // (sums.bytes / len(chosen)))),
        images=len(chosen),
        class_pixels=tuple(sums.class_pixels.tolist()),
    )


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of the samples, evenly spread."""
    return [samples[k] for k in sorted({k * len(samples) // count for k in range(count if samples else 0)})]


def fingerprint(dataset: Dataset, samples: Iterable[Sample]) -> str:
    """sha256 over legend, keys, and the etags of images and masks, from one listing of the data."""
    etags = {file.uri: file.etag for file in list_files(dataset.uri)}
    classes = dataset.classes
    legend = [classes.to_json(), classes.ignore_index, classes.ignore_colors]
    digest = hashlib.sha256(json.dumps(legend).encode())
    for sample in samples:
        row = [sample.key, etags.get(sample.image, sample.image), etags.get(sample.mask, sample.mask)]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _bands(samples: Sequence[Sample], settings: TrainSettings) -> tuple[tuple[int, ...], np.dtype]:
    """The bands to train on (of the image with the most, so that grey among colour does not decide) and their type."""
    headers = [read_header(sample.image) for sample in samples[:HEADERS]]
    count = max(header.bands for header in headers)
    if settings.bands and max(settings.bands) >= count:
        raise SegrayError(
            f"{samples[0].image} has {count} band(s), so --bands {','.join(map(str, settings.bands))} cannot be read; "
            f"bands are numbered 0 to {count - 1}"
        )
    return settings.bands or tuple(range(count)), np.dtype(headers[0].dtype)


@dataclass
class _Sums:
    """Sums over images; moments in float64, of pixel values before scaling."""

    bands: int
    classes: int
    area: int = 0
    bytes: int = 0
    valid: int = 0
    first: np.ndarray = field(init=False)
    second: np.ndarray = field(init=False)
    class_pixels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = np.zeros(self.bands), np.zeros(self.bands)
        self.class_pixels = np.zeros(self.classes, np.int64)

    def add(self, labelled: Labelled) -> None:
        self.area += labelled.valid.size
        self.bytes += memory_of(labelled)
        self.valid += int(labelled.valid.sum())
        for band, pixels in enumerate(labelled.pixels):  # one at a time: float64 is 8 times the size of bytes
            values = pixels[labelled.valid].astype(np.float64)
            self.first[band] += values.sum()
            self.second[band] += np.square(values).sum()
        self.class_pixels += np.bincount(labelled.mask.ravel(), minlength=IGNORE + 1)[: self.classes]

    def moments(self, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of each band over valid pixels; the std of a constant band is 1, so that it stays 0."""
        mean = self.first / self.valid
        variance = np.maximum(self.second / self.valid - np.square(mean), 0)
        constant = variance <= 1e-12 * np.square(mean)
        std = [1.0 if flat else math.sqrt(v) * scale for flat, v in zip(constant, variance)]
        return tuple((mean * scale).tolist()), tuple(std)
