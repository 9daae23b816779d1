"""The training loop of one worker: steps, validation, and a state after every epoch. It knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from segray.errors import SegrayError
from segray.learner import Learner
from segray.loading import Batch, CropLoader, ImageCache, reader_count, reading_threads, void_batch
from segray.metrics import scores
from segray.model_dir import save_model
from segray.report import Picture, training_page
from segray.sampling import worker_seed
from segray.segmenter import Segmenter
from segray.storage import join, publish
from segray.training_job import Job
from segray.training_state import compared, load_state, newest_epoch, save_state, write_history
from segray.validation import validate
from segray.workers import Place

CHECK_EVERY = 16  # steps between looks at the loss, each of which makes the host wait for the device
TILES_A_PASS = 16  # in validation, on a GPU
REPORT_EVERY_S = 60.0  # the page, before the last epoch
LOSS, PIXELS, NORM, FAILED = range(4)  # what is summed over steps and workers
Report = Callable[[dict], None]


def run(job: Job, place: Place, *, report: Report) -> None:
    """Train from the newest state to the last epoch.

    report: called on every worker with {"epoch", "resumed": True} if there was a state, with {"epoch", "step", "loss"}
    now and then, and with the row of metrics.jsonl after each epoch. SegrayError, on every worker, when data cannot be
    used or the loss is no longer finite.
    """
    torch.set_num_threads(place.cores)  # before the loader's threads begin: each thread has a number of its own
    with reading_threads(reader_count(place.cores)) as pool:
        trainer = Trainer(job, place, pool=pool)
        trainer.resume()
        if trainer.epoch:
            report({"epoch": trainer.epoch, "resumed": True})
        while trainer.epoch < job.settings.epochs:
            trainer.run_epoch(report)


class Trainer:
    """One worker's learner and data. epoch: how many are done. history: their rows of metrics.jsonl."""

    def __init__(self, job: Job, place: Place, *, pool: ThreadPoolExecutor) -> None:
        self.job, self.place, self.pool = job, place, pool
        settings = job.settings
        self.learner = Learner(job, place)
        self.epoch, self.history, self.best = 0, [], -1.0
        self.waited, self.page_at = 0.0, time.monotonic()
        self.met: SegrayError | None = None
        self.loader = CropLoader(
            cache=ImageCache(lambda index: job.read(job.train[index])),
            augment=job.augment(),
            pool=pool,
            batch_size=settings.batch_size,
            rank=place.rank,
            world_size=place.world_size,
            seed=settings.seed,
        )

    def resume(self) -> None:
        """Go back to the newest state, the one that rank 0 sees, if there is any."""
        output = self.job.settings.output
        epoch = self.place.from_first(newest_epoch(output) if self.place.rank == 0 else 0)
        if epoch == 0:
            return
        state = load_state(output, epoch)
        self.learner.load(state)
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]

    def run_epoch(self, report: Report) -> None:
        """Train and validate one epoch, and commit it."""
        started = time.monotonic()
        self.epoch, self.waited = self.epoch + 1, 0.0
        loss = self._train(report)
        trained = time.monotonic() - started
        matrix, pictures = self._validate()
        row = self._row(loss, scores(matrix), trained)
        row["seconds"] = time.monotonic() - started
        self.history.append(row)
        if self.place.rank == 0:
            self._publish(row, pictures)
        report(row)

    def _train(self, report: Report) -> float:
        """One pass over the crops; the mean loss of its valid pixels over all workers."""
        job, settings = self.job, self.job.settings
        torch.manual_seed(worker_seed(settings.seed, self.epoch, self.place.rank))
        self.learner.parallel.train()
        sums = torch.zeros(3, dtype=torch.float64, device=self.place.device)
        loss, pixels = 0.0, 0.0
        for index, batch in zip(range(job.steps), self._batches()):
            step = (self.epoch - 1) * job.steps + index
            sums += self.learner.step(batch, epoch=self.epoch, index=index)
            if (index + 1) % CHECK_EVERY == 0 or index + 1 == job.steps:
                total = self._checked(sums, step)
                sums.zero_()
                loss, pixels = loss + total[LOSS], pixels + total[PIXELS]
                report({"epoch": self.epoch, "step": step + 1, "loss": total[LOSS] / max(1.0, total[PIXELS])})
        return loss / max(1.0, pixels)

    def _batches(self) -> Iterator[Batch]:
        """The epoch's batches; after an error void ones, until all workers stop together in `_checked`."""
        settings, batches = self.job.settings, self.loader.batches(self.epoch, self.job.order(self.epoch))
        batch = None
        while True:
            started = time.monotonic()
            try:
                batch = next(batches)
            except SegrayError as error:
                if self.place.world_size == 1:
                    raise
                self.met = error
                shape = (settings.batch_size // self.place.world_size, len(self.job.spec.bands), settings.crop)
                batch = void_batch(*shape)
            except StopIteration:  # an iterator that raised is over
                if self.met is None:
                    return
            self.waited += time.monotonic() - started
            yield batch

    def _checked(self, sums: torch.Tensor, step: int) -> list[float]:
        """The sums over all workers; SegrayError when one of them met an error, or the loss is no longer finite."""
        failed = sums.new_tensor([float(self.met is not None)])
        total = self.place.sum(torch.cat([sums, failed])).tolist()
        if total[FAILED]:
            self.place.raise_everywhere(self.met)
        if not math.isfinite(total[LOSS] + total[NORM]):
            raise SegrayError(
                f"the loss is no longer finite at step {step + 1} (epoch {self.epoch}); lower --lr, which is "
                f"{self.job.settings.lr:g}"
            )
        return total

    def _validate(self) -> tuple[torch.Tensor, list[Picture]]:
        """The confusion matrix over the whole validation split, and pictures of some of rank 0's images."""
        place, job = self.place, self.job
        segmenter = Segmenter(
            self.learner.model(),
            job.spec,
            num_classes=len(job.dataset.classes),
            device=place.device,
            precision=self.learner.precision,
            batch_size=1 if place.device.type == "cpu" else TILES_A_PASS,
        )
        with place.together():
            samples = job.val[place.rank :: place.world_size]
            matrix, pictures = validate(segmenter, samples, read=job.read, pool=self.pool)
        return place.sum(torch.from_numpy(matrix).to(place.device)).cpu().numpy(), pictures

    def _row(self, loss: float, result: dict, trained: float) -> dict:
        """The line of metrics.jsonl, but for its seconds."""
        settings, steps = self.job.settings, self.job.steps
        waited = self.place.sum(torch.tensor(self.waited, device=self.place.device)).item() / self.place.world_size
        return {
            "epoch": self.epoch,
            "step": self.epoch * steps,
            "loss": loss,
            "lr": self.learner.rate(self.epoch * steps - 1),
            "val_miou": result["miou"],
            "val_iou": dict(zip(self.job.dataset.classes.names, result["iou"])),
            "classes_in_mean": result["classes_in_mean"],
            "pixel_accuracy": result["pixel_accuracy"],
            "samples_per_s": steps * settings.batch_size / trained,
            "data_wait_share": waited / trained,
        }

    def _publish(self, row: dict, pictures: list[Picture]) -> None:
        """Model, metrics and page of an epoch, and last the state, which commits them."""
        output = self.job.settings.output
        if row["val_miou"] is None or row["val_miou"] > self.best:
            self.best = self.best if row["val_miou"] is None else row["val_miou"]
            save_model(self.job.description(row, precision=self.learner.precision), self.learner.model())
        write_history(output, self.history)
        last = self.epoch == self.job.settings.epochs
        if last or time.monotonic() - self.page_at > REPORT_EVERY_S:
            self.page_at = time.monotonic()
            publish(join(output, "report.html"), self._page(pictures))
        progress = {"epoch": self.epoch, "best": self.best, "history": self.history}
        save_state(output, {**progress, **self.learner.state()})

    def _page(self, pictures: list[Picture]) -> bytes:
        settings = self.job.settings
        history = [{**row, "val_iou": list(row["val_iou"].values())} for row in self.history]
        return training_page(
            classes=self.job.dataset.classes,
            history=history,
            settings=compared(settings),
            pictures=pictures,
            title=f"Training of {settings.network}",
        )
