"""How long a training waits for its data: the real loader feeds a stand-in for the network, which only sleeps."""

from __future__ import annotations

import os
import statistics
import time

from segray.datasets import open_dataset
from segray.inspection import inspect
from segray.loading import reader_count, reading_threads
from segray.settings import BenchmarkSettings, TrainSettings
from segray.training_job import Job

STEP_S = 0.05  # of the stand-in
MOST_STEPS = 1000  # measured of a training of default length
CROP, BATCH_SIZE = 512, 8


def loading_table(settings: BenchmarkSettings) -> dict:
    """The share of time that a training waits, by the number of reading threads, the loader's default among them.

    SegrayError when the data cannot be used.
    """
    job = _job(settings)
    own = reader_count(os.cpu_count() or 1)
    counts = sorted({1, 2, own, 2 * own})
    rounds = [[_run(job, threads) for threads in counts] for _ in range(settings.runs)]  # in turn: speeds drift
    rows = [
        {"threads": threads, **{name: _median(tuple(run[name] for run in runs)) for name in runs[0]}}
        for threads, runs in zip(counts, zip(*rounds))
    ]
    (row,) = (row for row in rows if row["threads"] == own)
    waits = {"in all": row["wait"], "in its first epoch": row["wait_in_first_epoch"], "later": row["wait_later"]}
    shares = (f"{share:.1%} of the time {when}" for when, share in waits.items() if share is not None)
    steps = _steps(job)
    note = (
        f"a training of {1000 * STEP_S:.0f} ms a step for {job.settings.batch_size} crops of {job.settings.crop} px "
        f"waits for data {', '.join(shares)}, with its {own} threads; {steps} steps, {job.steps} an epoch, of which "
        "the very first is left out"
    )
    return {"rows": rows, "notes": [note], "step_s": STEP_S, "steps": steps, "threads": own}


def _steps(job: Job) -> int:
    """How many steps are measured: those of all epochs, at most `MOST_STEPS`."""
    return min(job.settings.epochs * job.steps, MOST_STEPS)


def _median(values: tuple[float | None, ...]) -> float | None:
    return None if None in values else statistics.median(values)


def _job(settings: BenchmarkSettings) -> Job:
    train = TrainSettings(
        data=settings.data,
        output=settings.output,
        crop=settings.tile or CROP,
        batch_size=settings.batch_size or BATCH_SIZE,
        bands=settings.bands,
    )
    dataset = open_dataset(train.data)
    samples = dataset.samples("train")
    inspection = inspect(dataset, samples, train)
    units = inspection.train(samples, train.reach)
    return Job(settings=train, dataset=dataset, train=units, val=(), inspection=inspection, data="")


def _run(job: Job, threads: int) -> dict[str, float | None]:
    """Seconds to the first batch; share of time waited overall, in the first epoch and later; CPU ms per crop."""
    steps = _steps(job)
    with reading_threads(threads) as pool:
        waited, cpu = [], time.process_time()
        batches = job.batches(pool, steps=range(steps))
        for _ in range(steps):
            start = time.perf_counter()
            next(batches)
            waited.append(time.perf_counter() - start)
            time.sleep(STEP_S)
    cpu = time.process_time() - cpu
    return {
        "first_s": waited[0],
        "wait": _share(waited[1:]),
        "wait_in_first_epoch": _share(waited[1 : job.steps]),
        "wait_later": _share(waited[job.steps :]),
        "cpu_ms_a_crop": 1000 * cpu / (steps * job.settings.batch_size),
    }


def _share(waited: list[float]) -> float | None:
    """The share of time that steps waited; None without steps."""
    return sum(waited) / (sum(waited) + STEP_S * len(waited)) if waited else None
