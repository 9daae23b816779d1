"""What the workers of a segmentation need to know, how Ray is to run them, and what a shard costs on its way."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from segray import plan as plans
from segray import walk
from segray.errors import ModelError, SegrayError
from segray.faults import UNUSABLE, guarded
from segray.heap import ONE_ARENA, keep_memory
from segray.inputs import InputSpec
from segray.masks import Classes
from segray.model_dir import Description, load_network, read_description
from segray.shards import MaskRow, write_shard
from segray.stopwatch import Stopwatch, peak_memory
from segray.summary import Totals, summarise
from segray.tasks import in_tasks

STAGES = "segray_stages"  # a Ray resource: a cluster that has it runs the stages of a GPU cluster on CPUs too
# At the same time: while one computes, the others bring pixels and take masks away. With many bands, the pixels of one
# shard are gigabytes.
SHARDS_A_GPU, OF_MANY_BANDS, MANY_BANDS = 4, 2, 5
SHARDS_WAITING = 2  # at an actor for which other processes read; with fewer it would idle between shards


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workers need to know to turn shards of a plan into published masks.

    digest: of the model that all of them must use. detailed, sampled: see `Segmenter`. ahead: images that are read at
    the same time. window, formats: used by segmentation only.
    """

    plan: str
    output: str
    model: str
    digest: str
    classes: Classes
    spec: InputSpec
    explicit_bands: bool
    precision: str
    blend: str
    metadata: dict = field(default_factory=dict)
    on_gpu: bool = False
    batch_size: int = 1
    threads: int = 1
    window: int = sys.maxsize
    formats: tuple[str, ...] = ()
    compiled: bool = False
    tta: str = "none"
    shard_pixels: int = 0
    enlarge: bool = True
    detailed: bool = False
    sampled: bool = False
    ahead: int = walk.READ_THREADS

    def readings(self, items: Iterable[plans.Item]) -> Iterator[walk.Reading]:
        """Read the items of a shard, in order."""
        options = {"blend": self.blend, "window": self.window, "explicit_bands": self.explicit_bands}
        return walk.read_items(items, self.spec, **options, enlarge=self.enlarge, ahead=self.ahead)

    def segmenter(self) -> walk.Segmenter:
        """The model's segmenter on this process's device, tried on a tile.

        ModelError when it does not take the tile, or the model is not the one that the job began with; SegrayError when
        torch finds no GPU where Ray does.
        """
        import torch

        from segray.segmenter import Segmenter

        if self.on_gpu and not torch.cuda.is_available():
            raise SegrayError(UNUSABLE)
        if not self.on_gpu:
            torch.set_num_threads(self.threads)
            keep_memory()
        description = model_of(self)
        network = load_network(description)
        segmenter = Segmenter(
            network,
            self.spec,
            num_classes=len(self.classes),
            device="cuda" if self.on_gpu else "cpu",
            precision=self.precision,
            blend=self.blend,
            batch_size=self.batch_size,
            static_batch=getattr(network, "batch", None),
            compiled=self.compiled,
            temperature=description.temperature,
            tta=self.tta,
            detailed=self.detailed,
            sampled=self.sampled,
        )
        segmenter.try_a_tile()  # the first tile takes several times as long as others
        return segmenter

    def actor_options(self, *, staged: bool = False) -> dict:
        """The Ray options of an actor that holds the network."""
        if self.on_gpu:
            return {"num_gpus": 1, "num_cpus": 0}  # so that readers and writers find a core beside any number of actors
        cores = {"resources": {STAGES: 0.001}, "num_cpus": 0} if staged else {"num_cpus": self.threads}
        return {**cores, "runtime_env": ONE_ARENA}

    def pool_options(self, *, staged: bool) -> dict:
        """The Ray Data options of the pool of such actors."""
        waiting = SHARDS_WAITING if staged else 1
        if not self.on_gpu:
            return {"max_tasks_in_flight_per_actor": 1 + waiting}
        together = SHARDS_A_GPU if len(self.spec.bands) < MANY_BANDS else OF_MANY_BANDS
        return {
            "max_tasks_in_flight_per_actor": together + waiting,
            "max_concurrent_calls_per_actor": together,
            "enable_true_multi_threading": True,
        }

    def publish(
        self, shard: int, results: Iterable[walk.Segmented], costs: Costs, *, role: str = "actor"
    ) -> dict[str, object]:
        """Write a shard and sum it up for the driver."""
        with costs.watch.during("writing"):
            rows: list[MaskRow] = list(walk.rows(results, self.classes))
            write_shard(self.output, shard, rows=rows, formats=self.formats, metadata=self.metadata)
            totals = summarise([vars(row) for row in rows])
        costs.note_peak(role)
        costs.book(totals)
        return {"shard": shard, "totals": pickle.dumps(totals)}


class Costs:
    """What a shard costs on its way: seconds by stage, the peak memory of each process, and when it began."""

    def __init__(self) -> None:
        self.watch, self.peak_bytes, self.began = Stopwatch(), {}, time.time()

    def segmented(self, readings: Iterable[walk.Reading], segmenter: walk.Segmenter) -> Iterator[walk.Segmented]:
        """Segment the readings, and note the time that each step takes."""
        masks = walk.segment(self.watch.over("waiting", self._read(readings)), segmenter)
        return self.watch.over("segmenting", guarded(masks))

    def note_peak(self, role: str) -> None:
        """Note the peak memory of this process, under its role."""
        self.peak_bytes[role] = peak_memory()

    def book(self, totals: Totals) -> None:
        """Write the costs into the totals of the shard."""
        totals.seconds, totals.peak_bytes, totals.began = self.watch.seconds, self.peak_bytes, self.began

    def _read(self, readings: Iterable[walk.Reading]) -> Iterator[walk.Reading]:
        for reading in readings:
            self.watch.seconds["reading"] += reading.seconds
            yield reading


def model_of(work: Work) -> Description:
    """What model.json says; ModelError when the model is not the one that the job began with."""
    description = read_description(work.model)
    if description.digest != work.digest:
        raise ModelError(f"{work.model} has changed since the job began; run it again once nothing writes to it")
    return description


def probe(work: Work) -> str:
    """The precision to use (the work's own, or the one a worker's device is fast at), tried on a tile by a worker.

    ModelError when the model cannot be loaded or compiled, does not take such tiles, or kills the worker.
    """
    try:
        (precision,) = in_tasks(_probe, [work], **({"num_cpus": 0, "num_gpus": 1} if work.on_gpu else {}))
    except (WorkerCrashedError, OutOfMemoryError) as error:
        tried = f"{work.model} kills the process that tries it on {work.batch_size} tile(s) of {work.spec.tile} px"
        raise ModelError(f"{tried}; give the workers more memory, or lower --batch_size or --tile") from error
    return precision


def _probe(work: Work) -> str:
    from segray.inference import default_precision

    precision = work.precision or default_precision("cuda" if work.on_gpu else "cpu")
    replace(work, precision=precision).segmenter()
    return precision
