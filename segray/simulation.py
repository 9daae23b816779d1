"""The control plane, measured without GPUs: the real pipeline and plans, with stand-ins that take a GPU's time."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import ray

from segray import pipeline
from segray.archives.options import ArchiveOptions
from segray.expand import Cutting
from segray.grid import Lattice
from segray.inputs import InputSpec
from segray.listing import list_files
from segray.masks import Classes
from segray.plan import Item, ListingDigest, read_shard, write_files
from segray.planning import make_plan
from segray.regions import Region, WindowMask, whole_image
from segray.settings import BenchmarkSettings
from segray.shards import OK, Place
from segray.stages import alone
from segray.stopwatch import peak_memory
from segray.storage import File
from segray.summary import Totals
from segray.uris import join
from segray.walk import Reading, Segmented
from segray.work import Costs, Work

GPUS, SECONDS_A_SHARD, IMAGES = (8, 64, 256), (2.0, 8.0), (10**5, 10**6, 10**7)
SHARDS_A_GPU = 15  # in a run: enough for a steady middle
MOST_PROCESSES = 32  # of 190 MB each; further GPUs are threads of these
STAGE_CORES = 32  # logical cores for reading and writing; each gets one task per turn of Ray Data's 0.1 s loop
SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
PIXEL = whole_image(np.zeros((3, 1, 1), np.uint8), np.ones((1, 1), bool))
CONTROL = ("driver", "raylet", "gcs_server", "ray_actors")  # what steers the workers


def cluster_table(settings: BenchmarkSettings) -> dict:
    """How near stand-in GPUs come to the ideal rate, and the CPU time that steering them takes."""
    cases = [{"gpus": gpus, "seconds": seconds} for gpus, seconds in product(GPUS, SECONDS_A_SHARD)]
    rows = [alone(simulate, **case, shards=case["gpus"] * SHARDS_A_GPU) for case in cases]
    fastest = 1000 / min(row["driver_cpu_ms"] for row in rows)
    notes = [
        f"a driver that does nothing else steers at most {fastest:.0f} shards a second on a core like this one",
        "the stand-ins share this machine's cores with their driver: where those are busy, they limit the ratio",
    ]
    return {"rows": rows, "notes": notes}


def planning_table(settings: BenchmarkSettings) -> dict:
    """Planning made-up listings of small pictures: time, memory of the driver, size of the plan."""
    pixels = int((settings.shard_mpx or 64) * 1e6)
    rows = [alone(plan_listing, images=images, shard_pixels=pixels) for images in IMAGES]
    return {"rows": rows, "notes": ["without the time that a store takes to list them"]}


def simulate(*, gpus: int, seconds: float, shards: int) -> dict:
    """Segment that many shards on a Ray started here, whose GPUs are threads that wait `seconds` a shard.

    ratio: shards a second in the middle of the run, over what so many GPUs could do. *_cpu_ms: CPU milliseconds a shard
    of the driver, of all that steers (driver included), and of the workers. busy: the share of this machine's cores
    that all processes take.
    """
    totals, moments = Totals(), []
    first, last = shards // 5, shards * 4 // 5

    def on_result(shard: Totals) -> None:
        totals.add(shard)
        count = totals.shards - 1
        moments.append((time.monotonic(), _cpu_seconds() if count in (first, last) else None))

    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        options = {"include_dashboard": False, "log_to_driver": False}
        ray.init(address="local", num_cpus=STAGE_CORES, num_gpus=gpus, **options)
        write_files(join(folder, "plan"), ([Item(image=f"{number}.png", etag="")] for number in range(shards)))
        processes = min(gpus, MOST_PROCESSES)
        work, start = _work(folder, seconds=seconds, threads=gpus // processes), time.monotonic()
        pipeline.run(work, list(range(shards)), actors=(processes, processes), on_result=on_result)
        ray.shutdown()
    (began, before), (ended, after) = moments[first], moments[last]
    cpu = {name: (after[name] - before[name]) / (last - first) * 1e3 for name in after}
    rate = (last - first) / (ended - began)
    return {
        "gpus": gpus,
        "processes": processes,
        "seconds_a_shard": seconds,
        "shards": totals.shards,
        "shards_per_s": rate,
        "ratio": rate * seconds / gpus,
        "start_s": moments[0][0] - start - seconds,
        "driver_cpu_ms": cpu["driver"],
        "control_cpu_ms": sum(cpu[name] for name in CONTROL),
        "worker_cpu_ms": cpu["workers"],
        "busy": sum(cpu.values()) / 1e3 * rate / len(os.sched_getaffinity(0)),
        "driver_mb": peak_memory() / 1e6,
    }


def plan_listing(*, images: int, shard_pixels: int) -> dict:
    """Plan a made-up listing in this process."""
    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        start = time.process_time()
        options = {"lattice": Lattice(512, 64), "shard_pixels": shard_pixels, "options": ArchiveOptions()}
        plan, _ = make_plan(folder, made_up_listing(images), Cutting(spec=SPEC, explicit_bands=False, **options))
        planned = time.process_time()
        for _ in ListingDigest().watch(made_up_listing(images)):
            pass
        digested = time.process_time()
        sampled = range(0, plan.shards, -(-plan.shards // 20))
        for shard in sampled:
            read_shard(folder, shard)
        read = time.process_time()
        size = sum(file.size for file in list_files(folder))
    return {
        "images": images,
        "shards": plan.shards,
        "cpu_s": planned - start,
        "cpu_s_to_resume": digested - planned,
        "driver_mb": peak_memory() / 1e6,
        "plan_mb": size / 1e6,
        "ms_to_read_a_shard": (read - digested) / len(sampled) * 1e3,
    }


def made_up_listing(count: int) -> Iterator[File]:
    """Small pictures that do not exist, listed in no time: names, sizes and tags as an object store gives them."""
    for number in range(count):
        name = f"s3://bucket/imagery/strip-{number // 1000:05d}/frame-{number:08d}.jpg"
        yield File(name, 150_000 + number * 7919 % 100_000, f"{number * 2654435761 % 2**64:032x}")


@dataclass(frozen=True, kw_only=True)
class SimulatedWork(Work):
    """Work on images of one pixel, read and written in no time; each takes `seconds` on a device that is a thread."""

    seconds: float

    def readings(self, items: Iterable[Item]) -> Iterator[Reading]:
        """One pixel per item."""
        for item in items:
            yield Reading(place=Place(image=item.image, etag=item.etag), region=PIXEL)

    def segmenter(self) -> Waiting:
        """The stand-in for the network."""
        return Waiting(self.seconds)

    def pool_options(self, *, staged: bool) -> dict:
        """Options for actors of several devices: each runs one shard at a time, with as many in flight as usual."""
        options = super().pool_options(staged=staged)
        in_flight = options["max_tasks_in_flight_per_actor"] * self.threads
        return {
            **options, "max_tasks_in_flight_per_actor": in_flight, "max_concurrent_calls_per_actor": self.threads
        }  # fmt: skip

    def publish(self, shard: int, results: Iterable[Segmented], costs: Costs, *, role: str = "actor") -> dict:
        """The result row of a shard, of which nothing is written."""
        images = len(list(results))
        totals = Totals(shards=1, windows=images, images=Counter({OK: images}), pixels=images, class_pixels=[images, 0])
        costs.note_peak(role)
        costs.book(totals)
        return {"shard": shard, "totals": pickle.dumps(totals)}


@dataclass(frozen=True)
class Waiting:
    """The stand-in for a network, which takes `seconds` for every region."""

    seconds: float

    def segment(self, regions: Iterable[Region]) -> Iterator[list[WindowMask]]:
        """Wait, and give no mask, for every region."""
        for _ in regions:
            time.sleep(self.seconds)
            yield []


def _work(folder: str, *, seconds: float, threads: int) -> SimulatedWork:
    return SimulatedWork(
        plan=join(folder, "plan"),
        output=folder,
        model="",
        digest="",
        classes=Classes(names=("ground", "house"), colors=((0, 0, 0), (255, 0, 0))),
        spec=SPEC,
        explicit_bands=False,
        precision="fp32",
        blend="taper",
        on_gpu=True,
        threads=threads,
        seconds=seconds,
    )


def _cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of this process and of its descendants, which are Ray's, by role."""
    import psutil  # comes with Ray, and can be imported once Ray is

    found = dict.fromkeys((*CONTROL, "workers", "other"), 0.0)
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            program, times = " ".join(process.cmdline()[:1]), process.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        found["driver" if process.pid == me.pid else _role(program)] += times.user + times.system
    return found


def _role(program: str) -> str:
    if program.startswith("ray::"):
        return "workers" if any(name in program for name in ("MapWorker", "MapBatches(", "IDLE")) else "ray_actors"
    return next((name for name in ("raylet", "gcs_server") if program.endswith(name)), "other")
