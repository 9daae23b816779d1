"""The Ray Data chain of a segmentation: one row is one shard in every stage, no shuffle and no regrouping.

    plan minus shards already there -> read (CPUs) -> segment (actors on GPUs) -> write (CPUs) -> small rows

On a cluster without GPUs one actor does all three steps, since moving pixels between processes would gain nothing.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, takewhile

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayTaskError
from ray.util.annotations import RayDeprecationWarning

from segray import plan as plans
from segray.cluster import noting_waits
from segray.errors import SegrayError, one_line
from segray.faults import ADVICE
from segray.ordered import in_order
from segray.packing import Batch, batch_of, pack, unpack
from segray.summary import Totals
from segray.tasks import DEATHS, result_of
from segray.work import STAGES, Costs, Work

log = logging.getLogger("segray")
# Ray keeps some 14 KB per shard on the driver: waves bound that for any archive. Each wave starts its actors anew.
SHARDS_A_WAVE = 50_000
ATTEMPTS = 2  # in a row that finish no shard, before the images of the remaining shards are tried by themselves
MAX_LOST_SHARDS = 64  # in one pass; more means a broken cluster, not a poisonous image
NO_PROGRESS_S = 6 * 3600.0  # longer is a hang: waiting for nodes takes less, and so does the largest shard
# A pool of MIN:MAX actors grows when its actors hold this many shards for each that they may work on at once. Ray's
# default of 1.75 is more than `Work.pool_options` allows on GPUs with few bands, so the pool would never grow.
FULL = 1.25
READ_BYTES = 2**29  # of pixels, about, that a reading stage hands over at once; the actor reads the rest of a shard


class SegmentActor:
    """Holds the network; segments the shards that reading stages hand over, or does all three steps itself."""

    def __init__(self, work: Work, staged: bool) -> None:
        self.work, self.staged = work, staged
        self.segmenter = work.segmenter()

    def __call__(self, batch: Batch) -> Batch:
        """One shard: {"shard"} or {"shard", "head", "body"} to {"shard", "totals"} or {"shard", "head", "body"}."""
        shard = int(batch["shard"][0])
        if self.staged:
            (read, unread), costs = unpack(batch)
            results = list(costs.segmented(chain(read, self.work.readings(unread)), self.segmenter))
            costs.note_peak("actor")
            return pack(shard, (results, costs))
        costs = Costs()
        items = plans.read_shard(self.work.plan, shard)
        results = costs.segmented(self.work.readings(items), self.segmenter)
        return batch_of(self.work.publish(shard, results, costs))


def run(
    work: Work,
    shards: list[int],
    *,
    actors: tuple[int, int],
    on_result: Callable[[Totals], None],
    fresh: bool = False,
) -> None:
    """Segment and publish those shards; `on_result` gets the totals of each once.

    A shard whose process dies is tried again, then its images by themselves: those that kill their process become
    failed rows. Any other error (a full disk, a wrong model) ends the job. So does a `fresh` run (nothing was published
    before) in which every shard kills its process: then no image is to blame.
    """
    waves = [shards[start : start + SHARDS_A_WAVE] for start in range(0, len(shards), SHARDS_A_WAVE)]
    with ThreadPoolExecutor(1) as beside:  # the next wave is made ready while one runs
        for wave, rows in zip(waves, in_order(_source, waves, pool=beside, ahead=1)):
            _run_wave(work, wave, rows, actors=actors, on_result=on_result, fresh=fresh and wave is waves[0])


def _run_wave(
    work: Work,
    shards: list[int],
    rows: Dataset,
    *,
    actors: tuple[int, int],
    on_result: Callable[[Totals], None],
    fresh: bool,
) -> None:
    missing, stalled = set(shards), 0
    while missing and stalled < ATTEMPTS:
        before = len(missing)
        for row in _until_a_loss(_chain(work, rows, actors)):
            missing.discard(int(row["shard"]))
            on_result(pickle.loads(row["totals"]))
        stalled = 0 if len(missing) < before else stalled + 1
        if missing:
            first = min(missing)
            with suppress(*DEATHS):  # any other error, such as a full disk or a changed model, is raised
                on_result(_publish_alone(work, first, plans.read_shard(work.plan, first)))
                missing.discard(first)
        if missing:
            log.info("%d shard(s) lost with their processes; trying them again", len(missing))
            rows = _source(sorted(missing))
    if len(missing) > MAX_LOST_SHARDS or (fresh and len(missing) == len(shards) > 1):
        raise SegrayError(f"{len(missing)} shards kill every process that segments them; {ADVICE}")
    for shard in sorted(missing):
        on_result(_rescue(work, shard))


def _until_a_loss(rows: Iterator[dict]) -> Iterator[dict]:
    """The rows until Ray Data gives up, because a process died or too many shards failed."""
    try:
        yield from noting_waits(rows)
    except DEATHS as error:
        log.info("an actor was lost: %s", one_line(error))
    except RayTaskError:  # of more shards than may be lost; the one tried alone next tells why
        log.info("more than %d shards failed; trying one by itself", MAX_LOST_SHARDS)


def staged(work: Work) -> bool:
    """Whether reading and writing are stages of their own: with GPUs, or where the cluster has the resource STAGES."""
    return work.on_gpu or STAGES in ray.cluster_resources()


def source(rows: list[dict]) -> Dataset:
    """A data set with one block per row; each takes the driver a millisecond."""
    configure()  # a data set keeps the context that it was made in
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _source(shards: list[int]) -> Dataset:
    return source([{"shard": shard} for shard in shards])


def _chain(work: Work, rows: Dataset, actors: tuple[int, int]) -> Iterator[dict]:
    apart = staged(work)
    task = {"fn_args": (work,), "batch_size": 1, "num_cpus": 1, "max_retries": 1}
    with retries_bounded():
        if apart:
            rows = rows.map_batches(_read, **task)
        rows = rows.map_batches(
            SegmentActor,
            fn_constructor_args=(work, apart),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=actors[0], max_size=actors[1], **work.pool_options(staged=apart)),
            max_task_retries=1,
            **work.actor_options(staged=apart),
        )
        if apart:
            rows = rows.map_batches(_write, **task)
    configure()
    return rows.iter_rows()


@contextmanager
def retries_bounded() -> Iterator[None]:
    """Hides the warning that the only options to bound Ray Data's retries, endless by default, are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def configure() -> None:
    """Set what Ray Data may lose and log, right before a chain runs: making a data set resets its logging."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = MAX_LOST_SHARDS
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    context.autoscaling_config.actor_pool_util_upscaling_threshold = FULL
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `run` logs lost shards itself, in a line


def _read(batch: Batch, work: Work) -> Batch:
    """CPU stage: read a shard's items until their pixels exceed `READ_BYTES`; the others are passed on unread.

    Those already begun by then are handed over too. So fewer of large items are read at the same time.
    """
    shard, read, size, costs = int(batch["shard"][0]), [], 0, Costs()
    items = plans.read_shard(work.plan, shard)
    largest = 4 * len(work.spec.bands) * max(1, *(item.estimate for item in items))  # bytes; few types have more
    work = replace(work, ahead=max(1, min(work.ahead, READ_BYTES // largest)))
    begun = takewhile(lambda _: size <= READ_BYTES, items)
    for reading in work.readings(begun):
        read.append(reading)
        size += reading.region.pixels.nbytes if reading.region else 0
    costs.note_peak("reader")
    return pack(shard, ((read, items[len(read) :]), costs))


def _write(batch: Batch, work: Work) -> Batch:
    """CPU stage: encode and publish a shard."""
    results, costs = unpack(batch)
    return batch_of(work.publish(int(batch["shard"][0]), results, costs, role="writer"))


def _rescue(work: Work, shard: int) -> Totals:
    """Find the images of a shard that kill their process, and publish the shard with failed rows for them.

    They are read one at a time here: if several together need too much memory, none of them is to blame.
    """
    work = replace(work, ahead=1)
    items = plans.read_shard(work.plan, shard)
    poisonous = {item.image for item in _poisonous(work, items)}
    if poisonous == {item.image for item in items} and len(poisonous) > 1:  # several items may be blocks of one
        raise SegrayError(f"every image of shard {shard} kills the process that segments it; {ADVICE}")
    log.info("shard %d: %d image(s) kill their process and are recorded as failed", shard, len(poisonous))
    reason = "reading or segmenting it killed its process (out of memory, or a fault of a decoder or a GPU)"
    safe = [replace(item, error=f"{item.image}: {reason}") if item.image in poisonous else item for item in items]
    try:
        return _publish_alone(work, shard, safe)
    except DEATHS as error:
        raise SegrayError(f"shard {shard} kills its process, though none of its images alone does; {ADVICE}") from error


def _poisonous(work: Work, items: list[plans.Item]) -> list[plans.Item]:
    """The items that kill their process, found by halving."""
    try:
        result_of(_try_items.options(**_resources(work)).remote(work, items))
    except DEATHS:
        half = len(items) // 2
        return _poisonous(work, items[:half]) + _poisonous(work, items[half:]) if half else items
    return []


def _publish_alone(work: Work, shard: int, items: list[plans.Item]) -> Totals:
    """Segment and publish a shard in a process of its own; raises one of `DEATHS` if that dies."""
    row = result_of(_publish_items.options(**_resources(work)).remote(work, shard, items))
    return pickle.loads(row["totals"])


def _resources(work: Work) -> dict:
    """Those of an actor: with more, a node whose GPUs came without spare cores could run the actors, but never this."""
    return {**({"num_cpus": 0, "num_gpus": 1} if work.on_gpu else {"num_cpus": 1}), "max_retries": 0}


@ray.remote
def _try_items(work: Work, items: list[plans.Item]) -> None:
    for _ in Costs().segmented(work.readings(items), work.segmenter()):
        pass


@ray.remote
def _publish_items(work: Work, shard: int, items: list[plans.Item]) -> dict:
    costs = Costs()
    return work.publish(shard, costs.segmented(work.readings(items), work.segmenter()), costs)
