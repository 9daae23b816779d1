"""Training on Ray: the driver inspects the data, starts the workers, shows their progress and returns the result.

Ray's own checkpoints and storage are not used: a worker group restarted by Ray and a driver started again both
continue from the newest state in OUTPUT.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial

import ray
import ray.train
import ray.train.torch
import torch
from botocore.exceptions import BotoCoreError
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray import cluster
from segray.datasets import Dataset, Sample, open_dataset
from segray.errors import SegrayError
from segray.faults import UNUSABLE, is_no_gpu, is_uncompiled, uncompiled
from segray.first_weights import check_first_weights
from segray.heap import ONE_ARENA
from segray.inspection import Inspection, fingerprint, inspect
from segray.places import TRAINING, check_unclaimed
from segray.rendezvous import Rendezvous
from segray.scratch import remove_abandoned, scratch
from segray.settings import TrainSettings
from segray.storage import remove_leftovers
from segray.tasks import in_tasks
from segray.tracking import Tracking, check_trackers
from segray.training_console import Console
from segray.training_job import Job, initial_network
from segray.training_remote import Board, weights_fit
from segray.training_state import compared, finished, read_history, read_run, write_run
from segray.uris import absolute, join
from segray.validators import Validators
from segray.workers import Worker

log = logging.getLogger("segray")
POLL_S = 0.5  # how often the driver asks for progress
PATIENCE_S, PATIENCE_AT_END_S = 5.0, 60.0  # with a busy machine, which may answer late
# How often Ray's controller polls the workers, and so how soon it sees that they are done; Ray's default is 2 s.
HEALTH_CHECK = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def train(settings: TrainSettings) -> dict:
    """Train, or continue a training: {"epochs", "step", "val_miou", "best_epoch", "model", "already"}.

    val_miou and best_epoch are None without a labelled validation pixel. already: True if nothing was left to do.
    SegrayError when settings or data cannot be used, or OUTPUT holds another training.
    """
    settings = replace(settings, data=absolute(settings.data), output=absolute(settings.output))
    check_unclaimed(settings.output, TRAINING)
    dataset = open_dataset(settings.data)
    train_samples, val_samples = dataset.samples("train"), dataset.samples("val")
    check(settings, dataset)
    check_trackers(settings.trackers)
    data = fingerprint(dataset, [*train_samples, *val_samples])
    stored = read_run(settings, data)
    if stored and finished(settings):
        log.info("%s is already trained for all %d epochs; nothing to do", settings.output, settings.epochs)
        with _tracked(settings):
            pass
        return _result(settings, already=True)
    if stored is None:
        check_first_weights(settings)
    cluster.start()
    workers = worker_range(settings)
    if stored is None:
        inspection = _inspect(dataset, train_samples, val_samples, settings)
        write_run(settings, data, asdict(inspection))
    else:
        inspection = Inspection.from_json(stored["inspection"])
    cluster.check_shared(settings.output, TRAINING)
    job = Job(
        settings=settings,
        dataset=dataset,
        train=inspection.train(train_samples, settings.reach),
        val=inspection.val(val_samples, settings.crop),
        inspection=inspection,
        data=data,
    )
    with _tracked(settings) as tracking:
        _fit(job, workers, tracking)
    remove_leftovers(settings.output)
    return _result(settings, already=False)


def check(settings: TrainSettings, dataset: Dataset) -> None:
    """SegrayError when the network's name or options are wrong, or there are fewer than two classes."""
    classes = len(dataset.classes)
    if classes < 2:
        raise SegrayError(f"{dataset.uri} has only one class; give the background a class of its own in classes.json")
    initial_network(replace(settings, weights=None), bands=len(settings.bands or (0, 1, 2)), classes=classes)


def worker_range(settings: TrainSettings) -> tuple[int, int]:
    """The fewest and the most workers: --num_workers, else one per GPU, or a single one on CPUs.

    SegrayError when there is no room for them, or the cluster has no nodes yet to derive the number from.
    """
    gpu = cluster.use_gpu(settings.device)
    if settings.worker_range is None:
        cluster.check_there("--num_workers", gpu=gpu)
    room, unit = (cluster.gpus(), "GPU(s)") if gpu else (cluster.cpus(), "core(s)")
    validators = settings.validators
    default = min(max(1, room - validators), settings.batch_size) if gpu else 1
    low, high = settings.worker_range or (default, default)
    if os.environ.get("RAY_ADDRESS"):  # a cluster may grow
        return low, high
    if low + validators > room:
        needs = f" and --validators {validators} need" if validators else " needs"
        raise SegrayError(f"--num_workers {low}{needs} more than the {room} {unit} available; lower what you gave")
    return low, min(high, room - validators)


def _inspect(dataset: Dataset, train: list[Sample], val: list[Sample], settings: TrainSettings) -> Inspection:
    """Inspect the data in Ray tasks, and check that the pretrained weights fit the network."""
    log.info("inspecting %s: %d training images", settings.data, len(train))
    inspection = inspect(dataset, train, settings, val=val, run=in_tasks)
    if unseen := [name for name, pixels in zip(dataset.classes.names, inspection.class_pixels) if not pixels]:
        log.warning(  # as when polygons in a wrong CRS lie beside their images
            "no training label has a pixel of %s; if there should be some, check ids, CRS and place of the labels",
            ", ".join(unseen),
        )
    if settings.weights:
        sizes = {"bands": len(inspection.bands), "classes": len(dataset.classes)}
        list(in_tasks(partial(weights_fit, **sizes), [settings]))
    return inspection


def _tracked(settings: TrainSettings) -> Tracking:
    """The trackers of a training, given the finished epochs again: one that failed earlier may lack some of them."""
    tracking = Tracking(settings.trackers, settings=compared(settings), output=settings.output)
    for row in read_history(settings.output):
        tracking.add(row)
    return tracking


def _fit(job: Job, workers: tuple[int, int], tracking: Tracking) -> None:
    """Run the workers to the last epoch; SegrayError with the message of a worker that raised one."""
    settings = job.settings
    remove_abandoned()
    os.environ.setdefault(*HEALTH_CHECK)
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process fewer on a single machine
    gpu = cluster.use_gpu(settings.device)
    low, high = workers
    together = max(low, min(high, cluster.cpus())) + settings.validators
    cores = 1 if gpu else cluster.cores_each(cluster.nodes(), together)
    count = f"{low} to {high}" if low < high else low
    beside = f" and {settings.validators} validator(s)" if settings.validators else ""
    each = "a GPU" if gpu else f"{cores} core(s)"
    log.info("training %s on %s worker(s)%s with %s each", settings.network, count, beside, each)
    # the board is on the driver's node, so that it is never lost alone
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    shared = ray.put(job)
    places = {"gpu": gpu, "cores": cores, "max_failures": settings.max_failures}
    validators = Validators.start(shared, settings.validators, **places)
    failure: Exception | None = None
    console = Console(epochs=settings.epochs, steps_per_epoch=job.steps)
    with scratch() as storage, closing(validators), _shown(board, validators, console, tracking):
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config={"job": shared, "validators": validators, "board": board, "cores": cores},
            torch_config=Rendezvous(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers if low < high else low,
                # a group that grows or shrinks is restarted from the newest state
                elastic_resize_monitor_interval_s=max(60.0, 60 * settings.save_minutes),
                use_gpu=gpu,
                resources_per_worker={"CPU": cores, "GPU": 1} if gpu else {"CPU": cores},
            ),
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=storage,
                worker_runtime_env={} if gpu else ONE_ARENA,
                failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
                callbacks=[_Deaths(board)],
            ),
        )
        # it says that Ctrl-C was heard, and no more: workers go on for some 10 s until they are stopped
        logging.getLogger(trainer.fit.__module__).setLevel(logging.INFO)
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = error
    if sentence := ray.get(board.failure.remote()):
        raise SegrayError(sentence) from failure
    if is_no_gpu(failure):
        raise SegrayError(UNUSABLE) from failure
    if failure is not None:
        raise _cause(failure, settings.max_failures)


def _cause(failure: Exception, max_failures: int) -> Exception:
    """What to tell of a training that failed for good; `command_line` explains a full disk or a silent store."""
    causes = list(getattr(failure, "worker_failures", {}).values())
    if any(map(_is_death, causes)):
        return SegrayError(
            f"a worker died more often than --max_failures {max_failures} allows, perhaps for lack of memory; give it "
            "more and run the same command again, or lower --batch_size or --crop and start afresh"
        )
    return next((cause for cause in causes if isinstance(cause, (OSError, BotoCoreError))), failure)


def _is_death(error: Exception) -> bool:
    return hasattr(error, "health_check_failure")


def _worker(config: dict) -> None:
    """What Ray Train runs in each worker.

    A SegrayError is raised on all workers at once (see `workers.Worker`): they tell the driver and return, since a
    retry would not help. One that lacks GPU memory or a compiler ends: Ray restarts the group, which returns at once.
    """
    board, context = config["board"], ray.train.get_context()
    if ray.get(board.begin.remote()):
        return
    remove_abandoned()
    from segray.trainer import run  # takes as long to import as torch, and the driver does not need it

    device = ray.train.torch.get_device()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        cores=config["cores"] if device.type == "cpu" else cluster.share_of_node(),
    )

    def report(values: dict) -> None:
        if worker.rank == 0:
            ray.get(board.add.remote(values))  # waits, so that the last one arrives before this process ends

    validators = config["validators"]
    try:
        run(ray.get(config["job"]), worker, report=report, elsewhere=validators.begin if validators.actors else None)
    except SegrayError as error:
        ray.get(board.fail.remote(str(error)))
    except torch.OutOfMemoryError:
        ray.get(board.fail.remote("a worker ran out of GPU memory; lower --batch_size or --crop"))
        raise
    except RuntimeError as error:
        if is_uncompiled(error):
            ray.get(board.fail.remote(uncompiled(error)))
        raise


class _Deaths(ray.train.UserCallback):
    """Tells the driver why the workers ended; runs in the process in which Ray Train watches them."""

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self._board = board

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        ray.get(self._board.end.remote(_reason(worker_exceptions)))


def _reason(errors: dict[int, Exception]) -> str:
    """Why the workers ended, in one line: which one died (errors of others follow from that), or met an error."""
    died = [rank for rank, error in errors.items() if _is_death(error)]
    if died:
        return f"worker {min(died)} died"
    rank, error = min(errors.items())
    return f"worker {rank} ended: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}"


@contextmanager
def _shown(
    board: ray.actor.ActorHandle, validators: Validators, console: Console, tracking: Tracking
) -> Iterator[None]:
    """Show and log the reports on the board while the block runs."""
    done = threading.Event()

    def watch() -> None:
        last, late, taking, idle_since = False, False, None, time.monotonic()
        while late or not last:
            last = done.wait(POLL_S)
            late = taking is not None  # asked again for what it then took, as no later call has it; one more follows
            taking = taking or board.take.remote()
            try:
                begun, reports = ray.get(taking, timeout=PATIENCE_AT_END_S if last else PATIENCE_S)
                taking = None
                for report in reports:
                    console.show(report)
                    tracking.add(report)
                    if "ended" in report:
                        idle_since = time.monotonic()
                if begun and validators.have_begun():
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > cluster.NO_ROOM_S:
                    log.info(cluster.NO_ROOM, "validator" if begun else "worker")
                    idle_since = math.inf  # logged once, until they begin
            except GetTimeoutError:
                late = False
            except RayError:  # costs some progress lines, not the training
                taking = None

    thread = threading.Thread(target=watch, name="segray-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        console.close()


def _result(settings: TrainSettings, *, already: bool) -> dict:
    history = read_history(settings.output)
    scored = [row for row in history if row["val_miou"] is not None]
    best = max(scored, key=lambda row: row["val_miou"], default={})
    return {
        "epochs": history[-1]["epoch"],
        "step": history[-1]["step"],
        "val_miou": best.get("val_miou"),
        "best_epoch": best.get("epoch"),
        "model": join(settings.output, "model"),
        "already": already,
    }
