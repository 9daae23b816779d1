"""Whether memory and time a megapixel grow with an archive, and what tile, overlap and blend change."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from dataclasses import fields
from statistics import median

from segray import cluster
from segray.archives.images import read_header
from segray.datasets import Sample, open_dataset
from segray.errors import SegrayError
from segray.evaluation import evaluate
from segray.grid import BLENDS
from segray.made_up import archive_of, model_of
from segray.settings import BenchmarkSettings, EvaluateSettings, PathSettings, SegmentSettings
from segray.stages import alone
from segray.throughput import SPANS, run_job
from segray.uris import join

log = logging.getLogger("segray")
MEMORY_SIDE, GROWTH_SIDE = 6000, 4000  # of the smallest made-up GeoTIFF, pixels
MEMORY_NETWORK = "encoder_decoder?width=8"  # cheap: the question is what everything else takes
GROWTH_NETWORK = "unet"  # the smallest archive must take seconds, since actors start and end up to a second apart
MEMORY_TIMES = 10  # in each direction
GROWTH_TIMES = (1, 2, 4)  # in each direction
_seconds = SPANS["first shard to last commit"]
LATTICES = ((256, 32), (256, 64), (512, 64), (512, 128), (1024, 64), (1024, 128))  # tile, overlap


def memory_table(settings: BenchmarkSettings) -> dict:
    """Peak memory of the driver and of the largest worker of each kind on a scene, and on one of ten times its side.

    With --image tiles, the second archive has 100 times as many tiles. Each job runs in a new process, its driver,
    which starts Ray or attaches to the cluster.
    """
    if settings.archive:
        raise SegrayError("memory compares two archives that it makes up; leave --archive out")
    side, model = settings.size or MEMORY_SIDE, model_of(settings, settings.network or MEMORY_NETWORK)
    found = []
    for times in (1, MEMORY_TIMES):
        archive = archive_of(settings, side=side * times, times=times**2, flat=True)
        job = settings.job(archive=archive, model=model, output=join(settings.output, "memory"))
        found.append(alone(_sizes, job))
    small, large = found
    rows = [
        {
            "process": role,
            f"mb_at_{small['mpx']:.4g}_mpx": peak / 1e6,
            f"mb_at_{large['mpx']:.4g}_mpx": large["peak_memory"][role] / 1e6,
            "times": large["peak_memory"][role] / peak,
        }
        for role, peak in small["peak_memory"].items()
    ]
    return {"rows": rows, "runs": found, "notes": [f"{small['shards']} and {large['shards']} shards"]}


def _sizes(job: SegmentSettings) -> dict:
    """Run a job in this process: megapixels, shards, seconds, and the peak memory in bytes of each kind of process."""
    summary = run_job(job)
    counts = {"mpx": _mpx(summary), "shards": summary["shards"]["total"]}
    return {**counts, "seconds": summary["seconds"], "peak_memory": summary["peak_memory"]}


def growth_table(settings: BenchmarkSettings) -> dict:
    """Seconds a megapixel on an archive, and on ones of 4 and 16 times its pixels; medians over rounds of all three."""
    if settings.archive:
        raise SegrayError("growth compares archives that it makes up; leave --archive out")
    side, model = settings.size or GROWTH_SIDE, model_of(settings, settings.network or GROWTH_NETWORK)
    cluster.start()
    archives = [archive_of(settings, side=side * times, times=times**2) for times in GROWTH_TIMES]
    output = join(settings.output, "growth")
    run_job(settings.job(archive=archives[0], model=model, output=output))  # to warm up
    rounds = []
    for number in range(settings.runs):
        rounds.append([run_job(settings.job(archive=archive, model=model, output=output)) for archive in archives])
        log.info("round %d of %d measured", number + 1, settings.runs)
    rows = [_growth_row(runs) for runs in zip(*rounds)]
    notes = []
    for place, row in enumerate(rows[1:], 1):
        ratio = median(_seconds_a_mpx(found[place]) / _seconds_a_mpx(found[0]) for found in rounds)
        notes.append(f"{row['mpx']:.4g} Mpx: {ratio:.2f} times as long per Mpx as the first")
    return {"rows": rows, "notes": notes}


def _growth_row(runs: Sequence[dict]) -> dict:
    return {
        "mpx": _mpx(runs[0]),
        "shards": runs[0]["shards"]["total"],
        "seconds": median(map(_seconds, runs)),
        "s_per_mpx": median(map(_seconds_a_mpx, runs)),
        "with_plan_and_report": median(run["call_seconds"] / _mpx(run) for run in runs),
    }


def _mpx(summary: dict) -> float:
    return summary["pixels"]["total"] / 1e6


def _seconds_a_mpx(summary: dict) -> float:
    return _seconds(summary) / _mpx(summary)


def lattice_table(settings: BenchmarkSettings) -> dict:
    """mIoU, seam disagreement and Mpx/s on labelled images, by tile, overlap and blend.

    Tiles larger than the first image are left out. The rate is from the first shard's start to the last commit.
    """
    samples = open_dataset(settings.data).samples(settings.split)
    header = read_header(samples[0].image)
    rows = []
    for tile, overlap in LATTICES:
        if tile <= min(header.height, header.width):
            rows += [_of_lattice(settings, samples, tile=tile, overlap=overlap, blend=blend) for blend in BLENDS]
    skipped = sorted({tile for tile, _ in LATTICES if tile > min(header.height, header.width)})
    notes = [f"images of {header.height} x {header.width} pixels are too small for tiles of {tile}" for tile in skipped]
    return {"rows": rows, "notes": [f"{len(samples)} images of {settings.data}, {settings.split}", *notes]}


def _of_lattice(settings: BenchmarkSettings, samples: list[Sample], *, tile: int, overlap: int, blend: str) -> dict:
    changes = {"tile": tile, "overlap": overlap, "blend": blend}
    archive = posixpath.dirname(posixpath.commonprefix([sample.image for sample in samples]))
    job = settings.job(archive=archive, output=join(settings.output, "lattice"), **changes)
    shared = {item.name: getattr(job, item.name) for item in fields(PathSettings)}
    shared |= {"data": settings.data, "split": settings.split, "output": join(settings.output, "scores")}
    metrics = evaluate(EvaluateSettings(**shared))
    log.info("tile %d, overlap %d, %s: mIoU %s", tile, overlap, blend, metrics["miou"])
    runs = [run_job(job) for _ in range(settings.runs)]
    rate = _mpx(runs[0]) / median(map(_seconds, runs))
    seams = runs[0]["seam_disagreement"]
    return {**changes, "miou": metrics["miou"], "seam_disagreement": seams, "mpx_per_s": rate}
