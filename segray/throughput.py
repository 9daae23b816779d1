"""How near a segmentation comes to its ideal speed: each stage alone, the whole job, and a plain loop beside it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from segray import cluster, stages
from segray import plan as plans
from segray.archives import open_archive
from segray.errors import SegrayError
from segray.made_up import archive_of, model_of
from segray.model_dir import read_description
from segray.peers import agreement, check_local, plain_loop
from segray.report import stage_shares
from segray.segmentation import segment, segment_work, with_devices
from segray.settings import BenchmarkSettings, SegmentSettings
from segray.stages import Cost, Workers
from segray.storage import remove
from segray.uris import join
from segray.work import Work

log = logging.getLogger("segray")
SIDE = 10_000  # of the made-up GeoTIFF, pixels
NETWORK = "unet"
COUNTED = ("decoding", "network", "writing")  # decoding includes reading; listing ends before the first shard starts
JOB_DETAILS = ("seconds", "call_seconds", "start_up_seconds", "stage_seconds", "peak_memory", "actors")
SPANS = {  # the part of a job's time that is counted
    "first shard to last commit": lambda summary: summary["seconds"] - summary["start_up_seconds"],
    "with the actors' start-up": lambda summary: summary["seconds"],
    "with plan and report": lambda summary: summary["call_seconds"],
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a job, its work, and `done`, a finished output of it. mpx: megapixels of the archive."""

    job: SegmentSettings
    work: Work
    done: str
    shards: int
    mpx: float
    cores: int
    gpus: int


def stages_table(settings: BenchmarkSettings) -> dict:
    """Each stage alone, the whole job, and the share of the ideal that it reaches; with --peer also the plain loop.

    The ideal speed is that of the slowest stage where there is a GPU, else the cores over the CPU time of all stages.
    It counts every tile of an image once, and no start-up. Figures are medians over rounds, each of all measurements.
    """
    if settings.peer:
        check_local(settings.output, *([settings.archive] if settings.archive else []))
    subject = _subject(settings)
    images = [file.uri for file in open_archive(subject.job.archive, subject.job.archive_options).images()]
    masks = {image: join(settings.output, "plain", f"{number:06d}.tif") for number, image in enumerate(images)}
    rounds = []
    with Workers(subject.cores) as workers, Workers(1) as device:
        tiles = _tiles(subject, workers)
        for number in range(settings.runs):
            costs = _costs(subject, workers, device if subject.gpus else workers, needed=tiles["needed"])
            loop = _plain_loop(subject, masks) if settings.peer else None
            rounds.append({"costs": costs, "loop": loop, "job": run_job(subject.job)})
            log.info("round %d of %d measured", number + 1, settings.runs)
    table = _table(rounds, subject, tiles)
    if settings.peer:
        table["plain_loop"] = comparison = _comparison(rounds, subject, masks)
        table["notes"] += _comparison_notes(comparison)
    return table


def run_job(job: SegmentSettings) -> dict:
    """Empty the output and segment into it; the summary, with the seconds of the whole call as `call_seconds`.

    SegrayError when more images failed than --max_failed allows, as the time would then mean nothing.
    """
    remove(job.output)
    start = time.perf_counter()
    summary = segment(job)
    if summary["failed_share"] > job.max_failed:
        first = summary["failures"][0]["error"]
        raise SegrayError(f"{summary['failed_share']:.1%} of the images failed, the first: {first}")
    return {**summary, "call_seconds": time.perf_counter() - start}


def ideal(costs: dict[str, Cost], *, cores: int, gpus: int) -> tuple[float, str]:
    """(Mpx/s, what limits it): the slowest stage with GPUs, else the CPU time of all stages spread over the cores."""
    if gpus:
        rates = {name: costs[name].rate * (gpus if name == "network" else 1) for name in COUNTED}
        limit = min(rates, key=rates.get)
        return rates[limit], limit
    seconds = {name: costs[name].cpu_seconds / costs[name].amount for name in COUNTED}
    return cores / sum(seconds.values()), max(seconds, key=seconds.get)


def _subject(settings: BenchmarkSettings) -> Subject:
    """Prepare imagery, model and Ray, and run the job once, so that caches and Ray's processes are warm."""
    model = model_of(settings, settings.network or NETWORK)
    description = read_description(model)  # before imagery is made, which takes longer
    archive = archive_of(settings, side=settings.size or SIDE)
    done = join(settings.output, "warm-up")
    cluster.start()
    if len(cluster.nodes()) > 1:
        raise SegrayError("the stages are measured on one machine; start this job where there is no cluster")
    job = settings.job(archive=archive, model=model, output=done)
    summary = run_job(job)
    work = with_devices(segment_work(job, description), job)
    return Subject(
        job=replace(job, output=join(settings.output, "run")),
        work=work,
        done=done,
        shards=summary["shards"]["total"],
        mpx=summary["pixels"]["total"] / 1e6,
        cores=cluster.cpus(),
        gpus=cluster.gpus() if work.on_gpu else 0,
    )


def _tiles(subject: Subject, workers: Workers) -> dict:
    """How many tiles the lattice of the archive has, and how many its shards compute twice."""
    counts = workers.map(partial(stages.count_tiles, subject.work), workers.shares(range(subject.shards)))
    needed, computed = (sum(values) for values in zip(*counts))
    if not needed:
        raise SegrayError(f"{subject.job.archive} holds no pixel with data, so there is nothing to measure")
    return {"needed": needed, "computed_twice": computed - needed, "share": (computed - needed) / needed}


def _costs(subject: Subject, workers: Workers, device: Workers, *, needed: int) -> dict[str, Cost]:
    """The cost of each stage; the amounts are megapixels of the archive."""
    work, shares, clock = subject.work, workers.shares, stages.Clock()
    archive = open_archive(subject.job.archive, subject.job.archive_options)
    with clock:
        files = list(archive.images())
    items = [item for shard in range(subject.shards) for item in plans.read_shard(work.plan, shard)]
    target = join(subject.job.output, "stage")
    writing = [(subject.done, share, target) for share in shares(range(subject.shards))]
    network = device.measure(stages.run_network, work, [range(subject.shards)] * device.count)
    costs = {
        "listing": Cost(amount=0, seconds=clock.seconds, cpu_seconds=clock.cpu_seconds),
        "reading": workers.measure(stages.read_pieces, work, shares(stages.pieces_of(files))),
        "decoding": workers.measure(stages.decode, work, shares(stages.decodings(items))),
        "network": network,
        "writing": workers.measure(stages.write, work, writing),
    }
    amounts = {**dict.fromkeys(costs, subject.mpx), "network": network.amount / needed * subject.mpx}
    return {name: replace(cost, amount=amounts[name]) for name, cost in costs.items()}


def _table(rounds: list[dict], subject: Subject, tiles: dict) -> dict:
    """The table of the stages and of the whole job, from what was measured in each round."""
    ideals = [ideal(found["costs"], cores=subject.cores, gpus=subject.gpus) for found in rounds]
    best, limit = median(rate for rate, _ in ideals), Counter(limit for _, limit in ideals).most_common(1)[0][0]
    rows = [_row(name, [found["costs"][name] for found in rounds], subject, best) for name in rounds[0]["costs"]]
    whole = []
    for span, seconds in SPANS.items():
        rates = [subject.mpx / seconds(found["job"]) for found in rounds]
        ratios = [rate / best for rate, (best, _) in zip(rates, ideals)]
        whole.append({"span": span, "mpx_per_s": median(rates), "ratio": median(ratios), "ratios": ratios})
    table = {"mpx": subject.mpx, "rows": rows, "ideal_mpx_per_s": best, "limit": limit, "whole_job": whole}
    seconds = sum((Counter(found["job"]["stage_seconds"]) for found in rounds), Counter())
    notes = [*_notes(table, tiles, subject), f"time of the job's workers: {stage_shares(seconds)}"]
    jobs = [{name: found["job"][name] for name in JOB_DETAILS} for found in rounds]
    return {**table, "tiles": tiles, "jobs": jobs, "settings": rounds[0]["job"]["settings"], "notes": notes}


def _row(name: str, costs: list[Cost], subject: Subject, best: float) -> dict:
    """A stage's row; `share` is its share of the cores' time or, with GPUs, how busy it would be at the ideal rate."""
    rate = median(cost.rate for cost in costs) * (max(1, subject.gpus) if name == "network" else 1)
    cpu = median(cost.cpu_seconds / cost.amount for cost in costs)
    share = best / rate if subject.gpus else best * cpu / subject.cores
    return {"stage": name, "mpx_per_s": rate, "cpu_s_per_mpx": cpu, "share": share if name in COUNTED else None}


def _notes(table: dict, tiles: dict, subject: Subject) -> list[str]:
    how = "the slowest stage" if subject.gpus else f"the CPU time of {', '.join(COUNTED)} over {subject.cores} cores"
    return [
        f"ideal: {table['ideal_mpx_per_s']:.3g} Mpx/s, {how}; {table['limit']} limits it",
        *(f"whole job, {row['span']}: {row['mpx_per_s']:.3g} Mpx/s, {row['ratio']:.1%}" for row in table["whole_job"]),
        f"tiles computed twice: {tiles['computed_twice']} beside {tiles['needed']}, {tiles['share']:.1%}",
    ]


def _plain_loop(subject: Subject, masks: dict[str, str]) -> dict:
    """The plain loop in a process of its own, on all cores."""
    device = "cuda" if subject.work.on_gpu else "cpu"
    arguments = {"model": subject.job.model, "spec": subject.work.spec, "blend": subject.work.blend, "device": device}
    return stages.alone(plain_loop, list(masks), list(masks.values()), **arguments)


def _comparison(rounds: list[dict], subject: Subject, masks: dict[str, str]) -> dict:
    """Speed and memory of the plain loop, how many times as fast the job is, and how many pixels get the same class."""
    fmt, precision = subject.job.formats[-1], subject.work.precision
    agreements = {precision: agreement(subject.job.output, subject.shards, fmt=fmt, masks=masks)}
    if precision != "fp32":
        job = replace(subject.job, precision="fp32", output=join(subject.job.output, "fp32"))
        run_job(job)
        agreements["fp32"] = agreement(job.output, subject.shards, fmt=fmt, masks=masks)
    return {
        "mpx_per_s": median(subject.mpx / found["loop"]["seconds"] for found in rounds),
        "peak_memory": max(found["loop"]["peak_memory"] for found in rounds),
        "times_as_fast": {
            span: median(found["loop"]["seconds"] / seconds(found["job"]) for found in rounds)
            for span, seconds in SPANS.items()
        },
        "agreement": agreements,
    }


def _comparison_notes(comparison: dict) -> list[str]:
    gigabytes = comparison["peak_memory"] / 1e9
    return [
        f"plain loop: {comparison['mpx_per_s']:.3g} Mpx/s, {gigabytes:.1f} GB",
        *(f"segray, {span}: {times:.2f} times as fast" for span, times in comparison["times_as_fast"].items()),
        *(f"same class in {name}: {share:.4%} of the pixels" for name, share in comparison["agreement"].items()),
    ]
