"""The settings of each job: one typed dataclass, whose fields are its flags and the keys of its --config file."""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from botocore.exceptions import BotoCoreError

from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.grid import BLENDS
from segray.storage import absolute, describe, exists, read_text

Settings = TypeVar("Settings")
FORMATS = ("parquet", "png")
EXPORT_FORMATS = ("cog", "png", "polygons", "pmtiles")
MAX_ZOOM = 22  # pixels of 4 cm at the equator, in tiles of 256
MEASUREMENTS = ("stages", "memory", "growth", "lattice", "cluster", "planning")
DONE, FAILED, BAD_INPUT, TOO_MANY_FAILED = 0, 1, 2, 3  # exit statuses


def option(help: str, default: Any = MISSING, choices: Sequence[str] = ()) -> Any:
    """A dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


def positive(settings: object, *names: str) -> None:
    """ValueError unless those settings are None or positive and finite."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name} must be positive, not {value}")


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
    lr: float = option("peak learning rate", 1e-3)
    optimizer: str = option("optimizer", "adamw", ("adam", "adamw"))
    weight_decay: float = option("decoupled weight decay of adamw, not on norms and biases", 0.01)
    augment: str = option(
        "auto: nadir for map imagery, street for Cityscapes", "auto", ("auto", "nadir", "street", "none")
    )
    bands: tuple[int, ...] | None = option("0-based bands of the images to train on, as in 0,1,2 (default: all)", None)
    num_workers: int | None = option("training workers (default: one a GPU, or one on CPUs)", None)
    seed: int = option("seed of every random choice", 0)
    device: str | None = option("where the network runs (default: gpu where the cluster has one)", None, ("cpu", "gpu"))
    precision: str | None = option(
        "number format of the forward pass (default: bf16 where it is fast)", None, ("bf16", "fp32")
    )
    max_failures: int = option("restarts from the last epoch after a worker died", 3)
    overwrite: bool = option("start afresh, discarding what OUTPUT holds", False)

    def __post_init__(self) -> None:
        positive(self, "epochs", "batch_size", "crop", "lr", "num_workers")
        for name in ("seed", "weight_decay", "max_failures"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if self.num_workers and self.batch_size % self.num_workers:
            raise ValueError(f"--batch_size {self.batch_size} must be a multiple of --num_workers {self.num_workers}")


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
        if self.actors is not None and not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.actors):
            raise ValueError(f"--actors is MIN or MIN:MAX, as in 2 or 1:8, not {self.actors}")
        if len({type(band) for band in self.bands or ()}) > 1:
            raise ValueError(f"--bands are numbers or names, not both as in {','.join(map(str, self.bands))}")
        low, high = self.actor_range or (1, 1)
        if low > high:
            raise ValueError(f"--actors {self.actors} has a MIN above its MAX")

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """(MIN, MAX) of --actors."""
        low, _, high = (self.actors or "").partition(":")
        return (int(low), int(high or low)) if low else None


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(PathSettings):
    """Settings of jobs/evaluate.py."""

    data: str = option("labelled data: a folder with classes.json, or Cityscapes")
    split: str = option("split to evaluate", "test")


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
    simplify: float | None = option("polygons: simplify their lines, metres (default: every corner is kept)", None)
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


def parse(settings_class: type[Settings], argv: Sequence[str]) -> Settings:
    """The settings of flags and --config (flags win); ValueError in one sentence. --print_config prints and exits."""
    parser = _Parser(prog=None, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", help="YAML file (any URI) with settings by the names of the flags")
    parser.add_argument("--print_config", action="store_true", help="print the settings as YAML and exit")
    hints = get_type_hints(settings_class)
    for item in fields(settings_class):
        _add_flag(parser, item, hints[item.name])
    given = vars(parser.parse_args(argv))
    config, printing = given.pop("config", None), given.pop("print_config", False)
    if config:
        given = {**_read_config(config, settings_class, hints), **given}
    required = [item.name for item in fields(settings_class) if item.default is MISSING]
    if missing := [f"--{name}" for name in required if name not in given]:
        raise ValueError(f"{' and '.join(missing)} must be given; --help lists all settings")
    settings = settings_class(**given)
    if printing:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
        sys.stdout.write(yaml.safe_dump(values, sort_keys=False))
        raise SystemExit(DONE)
    names = ("data", "archive", "model", "masks", "output")
    paths = {name: absolute(getattr(settings, name)) for name in names if getattr(settings, name, None) is not None}
    weights = getattr(settings, "weights", None)
    if weights and exists(weights):  # else it is torchvision's name for them
        paths["weights"] = absolute(weights)
    return replace(settings, **paths)


def run_job(main: Callable[[Settings], int], settings_class: type[Settings]) -> int:
    """The exit status of a job: parse the command line, run, and say bad input in one sentence on stderr."""
    log = logging.getLogger("segray")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    try:
        return _run(main, settings_class)
    finally:
        log.removeHandler(handler)


def _run(main: Callable[[Settings], int], settings_class: type[Settings]) -> int:
    try:
        settings = parse(settings_class, sys.argv[1:])
    except (ValueError, SegrayError) as error:
        sys.stderr.write(f"{sys.argv[0]}: {error}\n")
        return BAD_INPUT
    try:
        return main(settings)
    except SegrayError as error:
        sys.stderr.write(f"{sys.argv[0]}: {error}\n")
        return BAD_INPUT
    except BotoCoreError as error:
        sys.stderr.write(f"{sys.argv[0]}: the object store does not answer: {describe(error)}\n")
        return FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One sentence, which `run_job` prints; argparse would print the usage too."""
        raise ValueError(f"{message}; --help lists all settings")


def _add_flag(parser: argparse.ArgumentParser, item: Field, hint: Any) -> None:
    kind, default = _plain(hint), item.default
    text = item.metadata["help"] + ("" if default in (MISSING, None) else f" (default: {default})")
    text = text.replace("%", "%%")
    if kind is bool:
        parser.add_argument(f"--{item.name}", action=argparse.BooleanOptionalAction, help=text)
        return
    kind = CONVERTERS.get(kind, kind)
    choices = item.metadata["choices"] or None
    parser.add_argument(f"--{item.name}", type=kind, choices=choices, help=text)


def _plain(hint: Any) -> Any:
    """X of X | None."""
    return next(a for a in get_args(hint) if a is not type(None)) if isinstance(hint, types.UnionType) else hint


def _integers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} should be integers, as in 0,1,2")
    return tuple(int(part) for part in parts)


def _bands(text: str) -> tuple[int | str, ...]:
    """Numbers where they are; everything else is a name."""
    parts = (part.strip() for part in text.split(","))
    return tuple(int(part) if re.fullmatch(r"\d+", part) else part for part in parts if part)


CONVERTERS: dict[Any, Callable[[str], tuple]] = {tuple[int, ...]: _integers, tuple[int | str, ...]: _bands}


def _read_config(uri: str, settings_class: type, hints: dict[str, Any]) -> dict[str, Any]:
    try:
        # As text, converted like flags: YAML's own types make 1:8 the number 68 and 1e-3 a text.
        values = yaml.load(read_text(uri), Loader=yaml.BaseLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{uri} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{uri} should hold settings as NAME: VALUE lines")
    if unknown := set(values) - {item.name for item in fields(settings_class)}:
        raise ValueError(f"{uri} holds the unknown setting {sorted(unknown)[0]}; --help lists all settings")
    return {
        item.name: _typed(uri, item, hints[item.name], values[item.name])
        for item in fields(settings_class)
        if item.name in values
    }


def _typed(uri: str, item: Field, hint: Any, value: Any) -> Any:
    kind, choices = _plain(hint), item.metadata["choices"]
    if value in ("", "~", "null") and kind is not hint:
        return None
    try:
        typed = _converted(kind, value)
    except (KeyError, ValueError, TypeError, argparse.ArgumentTypeError):
        wanted = f"of type {kind.__name__}" if kind in (str, int, float, bool) else "integers, as in [0, 1, 2]"
        raise ValueError(f"{uri} sets {item.name} to {value!r}, which should be {wanted}") from None
    if choices and typed not in choices:
        raise ValueError(f"{uri} sets {item.name} to {value!r}, which should be one of {', '.join(choices)}")
    return typed


def _converted(kind: Any, value: Any) -> Any:
    scalar = kind in (str, int, float, bool)
    if isinstance(value, list) and not scalar:
        value = ",".join(value)
    if not isinstance(value, str):
        raise TypeError
    booleans = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return booleans[value.lower()] if kind is bool else kind(value) if scalar else CONVERTERS[kind](value)
