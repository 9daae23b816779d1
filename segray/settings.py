"""The settings of each job: one typed dataclass, whose fields are its flags and the keys of its --config file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from segray.archives.options import ArchiveOptions
from segray.grid import BLENDS
from segray.loss_terms import CLASS_WEIGHTS, LOSS_NAMES, check_loss, parse_loss
from segray.schedules import SCHEDULES, default_warm_up

FORMATS = ("parquet", "png")
EXPORT_FORMATS = ("cog", "png", "polygons", "pmtiles")
MAX_ZOOM = 22  # pixels of 4 cm at the equator, in tiles of 256
# name: (peak learning rate, weight decay) when nobody says; of sgd those of torchvision's reference training
OPTIMIZERS = {"adam": (1e-3, 0.0), "adamw": (1e-3, 0.01), "sgd": (0.02, 1e-4)}
PHOTOMETRIC = 0.3  # strength of photometric augmentation when nobody says
SCALES = "0.5:2"  # range of random zoom when nobody says, of torchvision's reference training
MEASUREMENTS = ("stages", "memory", "growth", "lattice", "cluster", "planning")


def option(help: str, default: Any = MISSING, choices: Sequence[str] = ()) -> Any:
    """A dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


def positive(settings: object, *names: str) -> None:
    """ValueError unless those settings are None or positive and finite."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name} must be positive, not {value}")


def parse_range(text: str | None) -> tuple[int, int] | None:
    """The two numbers of MIN[:MAX], which `check_range` has seen; None when nobody says."""
    low, _, high = (text or "").partition(":")
    return (int(low), int(high or low)) if low else None


def check_range(name: str, text: str | None) -> None:
    """ValueError unless a setting is None or MIN[:MAX]."""
    if text is not None and not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", text):
        raise ValueError(f"--{name} is MIN or MIN:MAX, as in 2 or 1:8, not {text}")
    low, high = parse_range(text) or (1, 1)
    if low > high:
        raise ValueError(f"--{name} {text} has a MIN above its MAX")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of jobs/train.py."""

    data: str = option("labelled data: a folder with train/ and val/ and classes.json, or Cityscapes")
    output: str = option("where the model, metrics.jsonl, report.html and the resumable state go")
    network: str = option("network, as in unet, unet?width=32, smp/unet/resnet34", "unet")
    weights: str | None = option("pretrained backbone: path or URI of a file, or a torchvision weights name", None)
    epochs: int = option("passes over the training images", 20)
    batch_size: int = option("crops a step, over all workers", 8)
    crop: int = option("side of the training crops in pixels; also the tile of the model", 256)
    loss: str = option(
        f"loss: {', '.join(LOSS_NAMES)}, or a sum such as cross_entropy+0.5*lovasz",
        "cross_entropy",
    )
    class_weights: str = option(
        "weights of the classes by their share of pixels, in the losses that have a value a pixel",
        "none",
        ("none", *CLASS_WEIGHTS),
    )
    aux_weight: float = option("weight of the loss of auxiliary heads, in networks that have one", 0.5)
    optimizer: str = option("optimizer", "adamw", tuple(OPTIMIZERS))
    lr: float | None = option("peak learning rate (default: 0.001, of sgd 0.02)", None)
    momentum: float = option("momentum of sgd", 0.9)
    weight_decay: float | None = option(
        "weight decay, not on norms and biases (default: adamw 0.01, sgd 0.0001; adam has none)", None
    )
    schedule: str = option("learning rate after the warm-up, step by step", "cosine", tuple(SCHEDULES))
    warm_up: float | None = option(
        "share of all steps in which the learning rate rises (default: 0.05, of one_cycle 0.3)", None
    )
    clip: float = option("largest norm of the gradient, to which larger ones are scaled; 0: any", 1.0)
    accumulate: int = option("parts of a step's crops that go through the network one after the other: less memory", 1)
    ema: float = option(
        "decay of the running average of the weights, which is what is validated and saved: steadier than the last "
        "weights, and short runs average less; 0: the last weights",
        0.999,
    )
    compile: bool = option("compile the network: a minute a worker, then faster; on CPUs needs g++", False)
    augment: str = option(
        "auto: nadir for map imagery, street for Cityscapes", "auto", ("auto", "nadir", "street", "none")
    )
    scale_range: str | None = option(
        f"MIN:MAX of the random zoom of a crop (default: {SCALES}, with --augment none 1:1)", None
    )
    photometric: float | None = option(
        "strength, 0 to 1, of random contrast, brightness, colour and gamma: other light, seasons and sensors than the "
        f"labelled ones (default: {PHOTOMETRIC}, with --augment none 0)",
        None,
    )
    bands: tuple[int, ...] | None = option("0-based bands of the images to train on, as in 0,1,2 (default: all)", None)
    num_workers: str | None = option(
        "MIN[:MAX] training workers, as many of them as there is room for (default: one a GPU, or one on CPUs)", None
    )
    seed: int = option("seed of every random choice", 0)
    device: str | None = option("where the network runs (default: gpu where the cluster has one)", None, ("cpu", "gpu"))
    precision: str | None = option(
        "number format of the forward pass (default: bf16 where it is fast)", None, ("bf16", "fp32")
    )
    keep: int = option("states to keep: the newest, and others in case that it is damaged", 2)
    save_minutes: float = option("minutes between states within an epoch, which a restart continues from", 10.0)
    max_failures: int = option("restarts from the newest state after a worker died", 3)
    mlflow: str | None = option("tracking URI of MLflow, where the training is logged too", None)
    wandb: str | None = option("PROJECT or ENTITY/PROJECT of Weights & Biases, where the training is logged too", None)
    overwrite: bool = option("start afresh, discarding what OUTPUT holds", False)

    def __post_init__(self) -> None:
        self._settle()
        positive(self, "epochs", "batch_size", "crop", "lr", "accumulate", "keep", "save_minutes")
        for name in ("seed", "weight_decay", "max_failures", "aux_weight", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must not be negative, but is {getattr(self, name)}")
        for name in ("warm_up", "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is 0 to 1, not {getattr(self, name)}")
        for name in ("ema", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} is at least 0 and below 1, not {getattr(self, name)}")
        check_range("num_workers", self.num_workers)
        _, most = self.worker_range or (1, 1)
        if most > self.batch_size:
            raise ValueError(
                f"--num_workers {self.num_workers} is more than the {self.batch_size} crops of --batch_size"
            )
        if self.accumulate > self.batch_size // most:
            raise ValueError(
                f"--accumulate {self.accumulate} is more than the crops that a worker has in a step; lower it"
            )
        check_loss(self.loss, self.class_weights)
        if re.search(r"://[^/@]*:[^/@]*@", self.mlflow or ""):
            raise ValueError("--mlflow holds a password; give it in MLFLOW_TRACKING_PASSWORD")
        if not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise ValueError(f"--scale_range is MIN:MAX, two positive numbers as in {SCALES}, not {self.scale_range}")

    def _settle(self) -> None:
        """Give settings whose default depends on another one their value, so that it is stored with the others."""
        plain = self.augment == "none"
        lr, weight_decay = OPTIMIZERS[self.optimizer]
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "warm_up": default_warm_up(self.schedule),
            "scale_range": "1:1" if plain else SCALES,
            "photometric": 0.0 if plain else PHOTOMETRIC,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """(MIN, MAX) of --num_workers."""
        return parse_range(self.num_workers)

    @property
    def loss_terms(self) -> tuple[tuple[float, str], ...]:
        """The factors and names of --loss."""
        return parse_loss(self.loss)

    @property
    def trackers(self) -> dict[str, str | None]:
        """What experiment trackers are told where to log, by flag."""
        return {"mlflow": self.mlflow, "wandb": self.wandb}

    @property
    def scales(self) -> tuple[float, float]:
        """The two numbers of --scale_range; (0, 0) when they are none."""
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+):(\d+\.?\d*|\.\d+)", self.scale_range)
        return (float(match[1]), float(match[2])) if match else (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of jobs/demo.py."""

    output: str = option("folder for the imagery and the results", "./segray-demo")
    epochs: int = option("passes over the training images", 18)

    def __post_init__(self) -> None:
        positive(self, "epochs")


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """What segmenting and evaluating have in common: how an image becomes a mask."""

    model: str = option("model directory")
    output: str = option("where the results go")
    tile: int | None = option("side of the tiles that the network sees, pixels (default: the model's)", None)
    overlap: int | None = option("overlap of neighbouring tiles, pixels (default: the model's)", None)
    blend: str = option("how overlapping tiles are joined: each up to the middle, or blended", "crop", BLENDS)
    bands: tuple[int | str, ...] | None = option(
        "bands of the images that the network takes: 0-based numbers or names, as in 0,1,2 or red,green,blue", None
    )
    resolution: float | None = option("metres a pixel that the network sees (default: the model's)", None)
    scale: float | None = option("factor that brings pixel values to the model's unit (default: the model's)", None)
    device: str | None = option("where the network runs (default: gpu where the cluster has one)", None, ("cpu", "gpu"))
    precision: str | None = option(
        "number format of the forward pass (default: bf16 where it is fast)", None, ("bf16", "fp32")
    )
    compile: bool = option("compile the network: half a minute an actor, some 10% faster; on CPUs needs g++", False)
    batch_size: int | None = option("tiles a forward pass (default: 16 on a GPU, 1 on a CPU)", None)
    actors: str | None = option("MIN[:MAX] actors that hold the network (default: one a GPU, or one a CPU)", None)

    def __post_init__(self) -> None:
        positive(self, "tile", "batch_size", "scale", "resolution")
        check_range("actors", self.actors)
        if len({type(band) for band in self.bands or ()}) > 1:
            raise ValueError(f"--bands are numbers or names, not both as in {','.join(map(str, self.bands))}")

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """(MIN, MAX) of --actors."""
        return parse_range(self.actors)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(PathSettings):
    """Settings of jobs/evaluate.py."""

    data: str = option("labelled data: a folder with classes.json, or Cityscapes")
    split: str = option("split to evaluate", "test")
    boundary: float = option("boundary IoU: width of the regions along contours, as a share of the diagonal", 0.02)
    calibrate: bool = option(
        "fit a temperature on the split first and write it into the model, which then counts as another one", False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.boundary < 1:
            raise ValueError(f"--boundary is a share of the diagonal, above 0 and below 1, not {self.boundary}")


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(PathSettings):
    """Settings of jobs/segment.py."""

    archive: str = option("imagery to segment: a prefix, tar, zip, Parquet, tile set, list or STAC items, on any store")
    tiles: str = option(
        "what a tree of z/x/y files is; auto looks at its names", "auto", ("auto", "xyz", "tms", "none")
    )
    zoom: int | None = option("zoom level of tile sets (default: their highest)", None)
    column: str | None = option("column of a Parquet or CSV archive with the images or their URIs", None)
    asset: str | None = option("asset of STAC items (default: by its role)", None)
    format: str = option("formats of the mask shards, comma-separated: parquet, png", "parquet")
    window: int = option("side of the largest mask, pixels; larger images are cut", 2048)
    shard_mpx: float | None = option(
        "megapixels a shard, the unit of work, retry and commit (default: 64 on GPUs, 4 on CPUs)", None
    )
    grid: str = option("grid of the masks of images that the network sees coarser", "source", ("source", "model"))
    max_failed: float = option("share of images that may fail before the exit status is 3", 0.01)
    overwrite: bool = option("start afresh, discarding the plan and the masks that OUTPUT holds", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "window", "shard_mpx")
        unknown = set(self.formats) - set(FORMATS)
        if unknown or not self.formats:
            raise ValueError(f"--format is parquet, png or parquet,png, not {self.format}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"--max_failed is a share of 0 to 1, not {self.max_failed}")

    @property
    def archive_options(self) -> ArchiveOptions:
        """What the user says about the archive."""
        return ArchiveOptions(tiles=self.tiles, zoom=self.zoom, column=self.column, asset=self.asset)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in the order in which a shard's files are written; the last one is the commit."""
        chosen = {name.strip() for name in self.format.split(",") if name.strip()}
        return tuple(sorted(chosen, key=lambda name: (name == "parquet", name)))


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of jobs/export.py."""

    masks: str = option("OUTPUT of a finished segmentation")
    output: str = option("where the files go")
    format: str = option(f"formats to write, comma-separated: {', '.join(EXPORT_FORMATS)}", "cog")
    min_area: float | None = option("polygons: leave out those smaller than this, square metres", None)
    simplify: float | None = option(
        "polygons: drop corners that make a triangle smaller than the square of this, metres; borders stay shared "
        "(default: every corner is kept)",
        None,
    )
    max_zoom: int | None = option("pmtiles: the deepest zoom level (default: that of the scenes' pixels)", None)
    max_failed: float = option("share of scenes that may fail before the exit status is 3", 0.01)
    overwrite: bool = option("write anew what another export wrote to OUTPUT", False)

    def __post_init__(self) -> None:
        unknown = set(self.formats) - set(EXPORT_FORMATS)
        if unknown or not self.formats:
            raise ValueError(f"--format is a list of {', '.join(EXPORT_FORMATS)}, not {self.format}")
        positive(self, "min_area", "simplify")
        if self.max_zoom is not None and not 0 <= self.max_zoom <= MAX_ZOOM:
            raise ValueError(f"--max_zoom is 0 to {MAX_ZOOM}, not {self.max_zoom}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"--max_failed is a share of 0 to 1, not {self.max_failed}")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in a fixed order, each once."""
        return tuple(sorted({name.strip() for name in self.format.split(",") if name.strip()}))


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(SegmentSettings):
    """Settings of jobs/benchmark.py: those of the segmentation that it measures, and what it measures."""

    archive: str | None = option("imagery to segment (default: made up under OUTPUT)", None)
    model: str | None = option("model directory (default: --network with random weights, made under OUTPUT)", None)
    output: str = option("folder for benchmark.json, and for what is made up and segmented", "./segray-benchmark")
    overwrite: bool = option("without effect: every run starts afresh", False)
    what: str = option(f"what to measure, comma-separated: {', '.join(MEASUREMENTS)}", "stages")
    peer: bool = option("with stages: also the plain loop over tiles that most people write, run by run in turn", False)
    runs: int = option("rounds of every measurement, of which medians are given", 5)
    image: str = option("made-up imagery: one tiled GeoTIFF, or JPEG tiles of 512 px", "cog", ("cog", "tiles"))
    size: int | None = option("side of the made-up GeoTIFF, pixels (default: 10000; memory 6000, growth 4000)", None)
    count: int = option("how many JPEG tiles are made up", 2000)
    network: str | None = option(
        "network of the made-up model (default: unet; memory and growth encoder_decoder?width=8)", None
    )
    data: str | None = option("labelled data for lattice, which also needs --model", None)
    split: str = option("split of the labelled data", "test")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "runs", "size", "count")
        unknown = set(self.measurements) - set(MEASUREMENTS)
        if unknown or not self.measurements:
            raise ValueError(f"--what is a list of {', '.join(MEASUREMENTS)}, not {self.what}")
        if "lattice" in self.measurements and not (self.data and self.model):
            raise ValueError("--what lattice needs labelled data and a model trained on such: give --data and --model")

    @property
    def measurements(self) -> tuple[str, ...]:
        """What to measure, in the order given."""
        return tuple(dict.fromkeys(name.strip() for name in self.what.split(",") if name.strip()))

    def job(self, **changes: Any) -> SegmentSettings:
        """The segmentation to measure: these settings with an archive, a model and an output."""
        values = {item.name: getattr(self, item.name) for item in fields(SegmentSettings)}
        return SegmentSettings(**{**values, **changes})
