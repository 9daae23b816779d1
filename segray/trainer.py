"""The training loop of one worker: steps, validation, and states to continue from. It does not use Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field

import torch

from segray.errors import SegrayError
from segray.heap import keep_memory
from segray.learner import Learner
from segray.loading import Batch, reader_count, reading_threads, void_batch
from segray.publishing import Finished, Publisher, Record, copied, restore_metrics, restore_model, weights_of
from segray.sampling import share, worker_seed
from segray.scalars import Point
from segray.stopwatch import Stopwatch
from segray.training_job import Job
from segray.training_state import load_state, newest_state, save_state
from segray.training_validation import Elsewhere, Validation, joined, validate_part
from segray.workers import Worker

CHECK_EVERY = 16  # steps between looks at the loss, each of which makes the host wait for the device
REPORT_EVERY_S = 60.0  # seconds between pages, before the last epoch
WAIT_S = 60.0  # of each wait for a publication: workers kept waiting for rank 0 for half an hour would time out
WAITING, STEPS, VALIDATION, PUBLISHING = STAGES = ("waiting for data", "steps", "validation", "publishing")
LOSS, PIXELS, NORM, FAILED = range(4)  # what is summed over steps and workers
Report = Callable[[dict], None]


def run(job: Job, worker: Worker, *, report: Report, elsewhere: Elsewhere | None = None) -> None:
    """Train from the newest state to the last epoch.

    report: called on every worker with {"epoch", "step", "resumed": True} if there was a state, and with {"epoch",
    "step", "loss"} every few steps; and on rank 0, in another thread, with the row of metrics.jsonl of each committed
    epoch, perhaps again after a restart. elsewhere: validates while the next epoch is trained; None: the workers
    validate between epochs. SegrayError, on every worker, when data cannot be used or the loss is no longer finite.
    """
    torch.set_num_threads(worker.cores)  # before the loader's threads begin: each thread has its own setting
    if worker.device.type == "cpu":
        keep_memory()
    with reading_threads(reader_count(worker.cores)) as pool, Publisher() as publisher:
        trainer = Trainer(job, worker, pool=pool, publisher=publisher, report=report, elsewhere=elsewhere)
        if trainer.resume():
            step = trainer.epoch * job.steps + trainer.progress.steps
            report({"epoch": trainer.epoch, "step": step, "resumed": True})
            if worker.rank == 0 and trainer.record.history:
                report(trainer.record.history[-1])  # it may not have been reported
        with closing(trainer.batches()) as batches:
            while trainer.epoch < job.settings.epochs:
                trainer.run_epoch(batches)
        trainer.wait_for_publication()


@dataclass
class Progress:
    """How far an epoch has come. loss, pixels: sums over steps and workers; points: of the loss; seconds: by stage."""

    steps: int = 0
    loss: float = 0.0
    pixels: float = 0.0
    points: list[Point] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Trainer:
    """One worker's learner and data. epoch: how many are done. record: of the published ones, on rank 0."""

    def __init__(
        self,
        job: Job,
        worker: Worker,
        *,
        pool: ThreadPoolExecutor,
        publisher: Publisher,
        report: Report,
        elsewhere: Elsewhere | None,
    ) -> None:
        """report, elsewhere: see `run`."""
        self.job, self.worker, self.pool, self.publisher = job, worker, pool, publisher
        self.report, self.elsewhere = report, elsewhere
        with worker.together():
            newest = newest_state(job.settings.output) if worker.rank == 0 else (0, 0)
        self.newest = worker.gather(newest)[0]  # as rank 0 sees it
        self.learner = Learner(job, worker, pretrained=self.newest == (0, 0))
        self.epoch, self.record, self.progress = 0, Record(), Progress()
        self.watch = Stopwatch()
        self.page_at = self.saved_at = time.monotonic()
        self.met: SegrayError | None = None

    def resume(self) -> bool:
        """Load the newest state found at the start; whether there was one."""
        epoch, step = self.newest
        if (epoch, step) == (0, 0):
            return False
        with self.worker.together():
            state = load_state(self.job.settings.output, epoch, step)
            if self.worker.rank == 0:
                restore_metrics(self.job, state)
                if step == 0:
                    restore_model(self.job, state)
        self.learner.load(state)
        self.epoch, self.record = epoch, Record(history=state["history"], masks=state["masks"])
        self.progress = Progress(**state["progress"])
        return True

    def batches(self) -> Iterator[Batch]:
        """This worker's batches for all steps from here to the end of the training."""
        job, worker = self.job, self.worker
        steps = range(self.epoch * job.steps + self.progress.steps, job.settings.epochs * job.steps)
        return job.batches(self.pool, steps=steps, rank=worker.rank, world_size=worker.world_size)

    def run_epoch(self, batches: Iterator[Batch]) -> None:
        """Train one epoch, validate it or have it validated, and commit it while the next one is trained."""
        self.watch = Stopwatch()
        self.watch.seconds.update(self.progress.seconds)
        with self.watch.during(STEPS):
            loss = self._train(batches)
        points, unscored = self.progress.points, self._header()
        self.progress, self.epoch = Progress(), self.epoch + 1
        with self.watch.during(PUBLISHING):
            copy = self._state() if self.worker.rank == 0 else {}
        with self.watch.during(VALIDATION):
            validation = self._validation(copy)
        with self.watch.during(PUBLISHING):
            self.wait_for_publication()
        row = self._row(loss)
        if self.worker.rank == 0:
            self._publish(row, points, validation, copy, {**copy, **unscored} if self.elsewhere else {})

    def wait_for_publication(self) -> None:
        """Wait until every publication begun so far is done; every worker must call this."""
        while not self.worker.all_agree(self.publisher.done_within(WAIT_S)):
            continue
        with self.worker.together():
            self.publisher.wait()

    def _train(self, batches: Iterator[Batch]) -> float:
        """Train the rest of an epoch; the mean loss of the epoch's valid pixels over all workers."""
        job, progress, epoch = self.job, self.progress, self.epoch + 1
        self.learner.parallel.train()
        sums = torch.zeros(3, dtype=torch.float64, device=self.worker.device)
        for index in range(progress.steps, job.steps):
            batch = self._next(batches)
            step = self.epoch * job.steps + index
            torch.manual_seed(worker_seed(job.settings.seed, step, self.worker.rank))
            sums += self.learner.step(batch, epoch=epoch, index=index)
            if (index + 1) % CHECK_EVERY == 0 or index + 1 == job.steps:
                total = self._checked(sums, step)
                sums.zero_()
                progress.steps = index + 1
                progress.loss, progress.pixels = progress.loss + total[LOSS], progress.pixels + total[PIXELS]
                mean = total[LOSS] / max(1.0, total[PIXELS])
                progress.points.append((step + 1, mean, time.time()))
                if index + 1 < job.steps:
                    self._save_now_and_then()
                self.report({"epoch": epoch, "step": step + 1, "loss": mean})
        return progress.loss / max(1.0, progress.pixels)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; after an error an empty one, until all workers stop together in `_checked`."""
        settings, worker = self.job.settings, self.worker
        if self.met is None:
            try:
                with self.watch.during(WAITING):
                    return next(batches)
            except SegrayError as error:
                if worker.world_size == 1:
                    raise
                self.met = error
        crops = share(0, batch_size=settings.batch_size, rank=worker.rank, world_size=worker.world_size)
        return void_batch(len(crops), len(self.job.spec.bands), settings.crop)

    def _checked(self, sums: torch.Tensor, step: int) -> list[float]:
        """The sums over all workers; SegrayError when one of them met an error, or the loss is no longer finite."""
        if self.publisher.failed and self.met is None:  # now, not at the end of an epoch that could not be saved
            try:
                self.publisher.wait()
            except SegrayError as error:
                self.met = error
        failed = sums.new_tensor([float(self.met is not None)])
        total = self.worker.sum(torch.cat([sums, failed])).tolist()
        if total[FAILED]:
            self.worker.raise_everywhere(self.met)
        if not math.isfinite(total[LOSS] + total[NORM]):
            raise SegrayError(
                f"the loss is no longer finite at step {step + 1} (epoch {self.epoch + 1}); lower --lr, which is "
                f"{self.job.settings.lr:g}"
            )
        return total

    def _validation(self, state: dict) -> Validation | None:
        """Validate the finished epoch here or, on rank 0, begin to validate its state elsewhere."""
        worker, job = self.worker, self.job
        if self.elsewhere is not None:
            self.wait_for_publication()  # so that only one is under way there at a time
            return self.elsewhere(job, weights_of(state), state["precision"]) if worker.rank == 0 else None
        with worker.together():
            part = validate_part(
                job,
                self.learner.model(),
                job.val[worker.rank :: worker.world_size],
                device=worker.device,
                precision=self.learner.precision,
                pool=self.pool,
            )
        validated = joined(job, worker.gather(part))
        return lambda: validated

    def _row(self, loss: float) -> dict:
        """The row of metrics.jsonl of the finished epoch, without its scores."""
        settings, steps, seconds = self.job.settings, self.job.steps, self.watch.seconds
        trained, waited = seconds[WAITING] + seconds[STEPS], torch.tensor(seconds[WAITING], device=self.worker.device)
        return {
            "epoch": self.epoch,
            "step": self.epoch * steps,
            "loss": loss,
            "lr": self.learner.rate(self.epoch * steps - 1),
            "samples_per_s": steps * settings.batch_size / trained,
            "data_wait_share": self.worker.sum(waited).item() / self.worker.world_size / trained,
            "stage_seconds": {stage: seconds[stage] for stage in STAGES},
            "seconds": sum(seconds.values()),
        }

    def _publish(self, row: dict, points: list[Point], validation: Validation, state: dict, unscored: dict) -> None:
        """Begin to publish the finished epoch; see `Finished`."""
        last = self.epoch == self.job.settings.epochs
        page = last or time.monotonic() - self.page_at > REPORT_EVERY_S
        self.page_at = time.monotonic() if page else self.page_at
        self.saved_at = time.monotonic()
        finished = Finished(
            job=self.job,
            row=row,
            points=points,
            validation=validation,
            state=state,
            unscored=unscored,
            record=self.record,
            page=page,
            report=self.report,
        )
        self.publisher.submit(finished.publish)

    def _save_now_and_then(self) -> None:
        """Begin to save a state within the epoch if the last is --save_minutes old and nothing is being published."""
        late = time.monotonic() - self.saved_at > 60 * self.job.settings.save_minutes
        if self.worker.rank or not late or self.publisher.busy:
            return
        with self.watch.during(PUBLISHING):
            state, self.saved_at = {**self._state(), **self.record.state()}, time.monotonic()
        output, keep = self.job.settings.output, self.job.settings.keep
        self.publisher.submit(lambda: save_state(output, state, keep=keep))

    def _state(self) -> dict:
        """A copy of all that a training continues from, except the record."""
        return {**self._header(), **copied(self.learner.state())}

    def _header(self) -> dict:
        """How far the training has come."""
        progress = {**asdict(self.progress), "seconds": dict(self.watch.seconds) if self.progress.steps else {}}
        return {"epoch": self.epoch, "step": self.progress.steps, "progress": progress}
