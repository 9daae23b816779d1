"""The settings of each job: a typed dataclass whose fields are its flags and the keys of its --config file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from segray.archives.options import ArchiveOptions
from segray.flags import check_range, option, parse_range, positive
from segray.grid import BLENDS
from segray.masks import MAX_SIDE
from segray.train_settings import TrainSettings
from segray.views import VIEWS

__all__ = [
    "BenchmarkSettings",
    "DemoSettings",
    "EvaluateSettings",
    "ExportSettings",
    "PathSettings",
    "SegmentSettings",
    "TrainSettings",
]

FORMATS = ("parquet", "png")
EXPORT_FORMATS = ("cog", "png", "polygons", "pmtiles", "confidence")
MAX_ZOOM = 22  # pixels of 4 cm at the equator, with tiles of 256; web maps go no deeper
MEASUREMENTS = ("stages", "memory", "growth", "lattice", "loading", "cluster", "planning")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of jobs/demo.py."""

    output: str = option("folder for the imagery and the results", "./segray-demo")
    epochs: int = option("passes over the training images", 18)
    overwrite: bool = option("start afresh, discarding what an earlier demo left in OUTPUT, except its imagery", False)

    def __post_init__(self) -> None:
        positive(self, "epochs")


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """What segmentation and evaluation have in common: how an image becomes a mask."""

    model: str = option("model directory")
    output: str = option("where the results go")
    tile: int | None = option("side of the tiles that the network sees, pixels (default: the model's)", None)
    overlap: int | None = option("overlap of neighbouring tiles, pixels (default: the model's)", None)
    blend: str = option("how overlapping tiles are joined: crop: each up to the middle; taper: blended", "crop", BLENDS)
    bands: tuple[int | str, ...] | None = option(
        "bands of the images fed to the network: 0-based numbers or names, as in 0,1,2 or red,green,blue (default: the "
        "model's)",
        None,
    )
    resolution: float | None = option("metres per pixel that the network sees (default: the model's)", None)
    scale: float | None = option("factor that converts pixel values to the model's unit (default: the model's)", None)
    device: str | None = option("where the network runs (default: gpu where the cluster has one)", None, ("cpu", "gpu"))
    precision: str | None = option(
        "number format of the forward pass (default: bf16 where it is fast)", None, ("bf16", "fp32")
    )
    compile: bool = option(
        "compile the network: takes an actor half a minute, then is some 10% faster; on CPUs needs g++", False
    )
    tta: str = option(
        "test-time augmentation: the mean over a tile and its mirror image (flip: twice the time), or over all eight "
        "mirror images and quarter turns (d4: eight times)",
        "none",
        tuple(VIEWS),
    )
    batch_size: int | None = option("tiles per forward pass (default: 16 on a GPU, 1 on a CPU)", None)
    actors: str | None = option("MIN[:MAX] actors that hold the network (default: one per GPU, or per CPU core)", None)

    def __post_init__(self) -> None:
        positive(self, "tile", "batch_size", "scale", "resolution")
        if self.tile is not None and self.tile > MAX_SIDE:
            raise ValueError(f"--tile is at most {MAX_SIDE} pixels, not {self.tile}")
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

    data: str = option("labelled data, as for training")
    split: str = option("split to evaluate", "test")
    boundary: float = option("boundary IoU: width of the regions along contours, as a share of the diagonal", 0.02)
    calibrate: bool = option(
        "first fit a temperature on the split and write it into the model, which then counts as a new model", False
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
        "what a tree of z/x/y files is; auto: TMS if a tilemapresource.xml is there, else XYZ; none: single images",
        "auto",
        ("auto", "xyz", "tms", "none"),
    )
    zoom: int | None = option("zoom level of tile sets (default: their highest)", None)
    column: str | None = option("column of a Parquet or CSV archive with the images or their URIs", None)
    asset: str | None = option("asset of STAC items (default: by its role)", None)
    format: str = option("formats of the mask shards, comma-separated: parquet, png", "parquet")
    window: int = option("side of the largest mask, pixels; larger images are cut into windows", 2048)
    shard_mpx: float | None = option(
        "megapixels per shard, the unit of work, retry and commit (default: 64 on GPUs, 4 on CPUs)", None
    )
    grid: str = option(
        "grid of the masks of images that are finer than --resolution: their own (source), or the coarser one (model)",
        "source",
        ("source", "model"),
    )
    confidence: bool = option("also write the confidence of each pixel, in percent", False)
    max_failed: float = option("share of images that may fail before the exit status is 3", 0.01)
    overwrite: bool = option("start afresh, discarding the plan and the masks that OUTPUT holds", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "window", "shard_mpx")
        if self.shard_mpx is not None and not 1e-6 <= self.shard_mpx < 1e6:
            raise ValueError(f"--shard_mpx is 1e-6 (a pixel) to 1e6, not {self.shard_mpx}")
        if self.window > MAX_SIDE:
            raise ValueError(f"--window is at most {MAX_SIDE} pixels, the side of the largest mask, not {self.window}")
        unknown = set(self.formats) - set(FORMATS)
        if unknown or not self.formats:
            raise ValueError(f"--format is parquet, png or parquet,png, not {self.format}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"--max_failed is a share of 0 to 1, not {self.max_failed}")
        if self.zoom is not None and self.zoom < 0:
            raise ValueError(f"--zoom must not be negative, but is {self.zoom}")

    @property
    def archive_options(self) -> ArchiveOptions:
        """What the flags say about the archive."""
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
    min_area: float | None = option(
        "polygons: leave out those smaller than this, square metres (pixels without a CRS)", None
    )
    simplify: float | None = option(
        "polygons: drop corners whose triangle is smaller than the square of this, metres (pixels without a CRS); "
        "borders stay shared (default: keep every corner)",
        None,
    )
    max_zoom: int | None = option("pmtiles: the deepest zoom level (default: that of the scenes' pixels)", None)
    max_failed: float = option("share of scenes that may fail before the exit status is 3", 0.01)
    overwrite: bool = option("replace what another export wrote to OUTPUT", False)

    def __post_init__(self) -> None:
        unknown = set(self.formats) - set(EXPORT_FORMATS)
        if unknown or not self.formats:
            raise ValueError(f"--format is a list of {', '.join(EXPORT_FORMATS)}, not {self.format}")
        positive(self, "min_area", "simplify")
        if self.max_zoom is not None and not 0 <= self.max_zoom <= MAX_ZOOM:
            raise ValueError(f"--max_zoom is 0 to {MAX_ZOOM}, not {self.max_zoom}")
        for name, fmt in (("min_area", "polygons"), ("simplify", "polygons"), ("max_zoom", "pmtiles")):
            if getattr(self, name) is not None and fmt not in self.formats:
                raise ValueError(f"--{name} has no effect on --format {self.format}; leave it out, or add {fmt}")
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
    output: str = option("folder for benchmark.json, made-up imagery and model, and masks", "./segray-benchmark")
    overwrite: bool = option("without effect: every run starts afresh", False)
    what: str = option(f"what to measure, comma-separated: {', '.join(MEASUREMENTS)}", "stages")
    peer: bool = option(
        "with stages: also the plain loop over tiles that most people write, in alternating runs", False
    )
    runs: int = option("rounds of every measurement; results are medians", 5)
    image: str = option("made-up imagery: one tiled GeoTIFF, or JPEG tiles of 512 px", "cog", ("cog", "tiles"))
    size: int | None = option("side of the made-up GeoTIFF, pixels (default: 10000; memory 6000, growth 4000)", None)
    count: int = option("how many JPEG tiles are made up", 2000)
    network: str | None = option("network of the made-up model (default: unet; memory encoder_decoder?width=8)", None)
    data: str | None = option("labelled data for loading, and for lattice, which also needs --model", None)
    split: str = option("split of the labelled data that lattice evaluates", "test")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "runs", "size", "count")
        unknown = set(self.measurements) - set(MEASUREMENTS)
        if unknown or not self.measurements:
            raise ValueError(f"--what is a list of {', '.join(MEASUREMENTS)}, not {self.what}")
        if self.confidence:
            raise ValueError("--confidence is not measured: leave it out")
        if self.network is not None and self.model is not None:
            raise ValueError("--network is of the made-up model, so it has no effect with --model; leave one out")
        if self.size is not None and (self.archive is not None or self.image == "tiles"):
            given = "--archive" if self.archive is not None else "--image tiles"
            raise ValueError(f"--size is of the made-up GeoTIFF, so it has no effect with {given}; leave one out")
        if self.peer and "stages" not in self.measurements:
            raise ValueError(f"--peer has no effect on --what {self.what}; leave it out, or add stages")
        if "loading" in self.measurements and not self.data:
            raise ValueError("--what loading needs labelled data: give --data")
        if "loading" in self.measurements and any(isinstance(band, str) for band in self.bands or ()):
            raise ValueError(f"--what loading trains, which takes --bands as numbers, not {','.join(self.bands)}")
        if "lattice" in self.measurements and not (self.data and self.model):
            raise ValueError("--what lattice needs labelled data and a model for it: give --data and --model")

    @property
    def measurements(self) -> tuple[str, ...]:
        """What to measure, in the order given."""
        return tuple(dict.fromkeys(name.strip() for name in self.what.split(",") if name.strip()))

    def job(self, **changes: Any) -> SegmentSettings:
        """The segmentation to measure: these settings with an archive, a model and an output."""
        values = {item.name: getattr(self, item.name) for item in fields(SegmentSettings)}
        return SegmentSettings(**{**values, **changes})
