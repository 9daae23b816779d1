"""Validation beside training: Ray actors each validate a part of the split while the workers train on."""

from __future__ import annotations

from dataclasses import dataclass

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from torch import Tensor

from segray import cluster
from segray.errors import SegrayError
from segray.faults import ending_at_faults
from segray.heap import ONE_ARENA, keep_memory
from segray.loading import reader_count, reading_threads
from segray.tasks import result_of
from segray.training_job import Job
from segray.training_validation import Validated, Validation, joined, validate_part


@dataclass(frozen=True)
class Validators:
    """The actors that share the validation split of a job; none if the workers validate."""

    job: ray.ObjectRef
    actors: list[ActorHandle]
    ready: list[ray.ObjectRef]

    @classmethod
    def start(cls, job: ray.ObjectRef, count: int, *, gpu: bool, cores: int, max_failures: int) -> Validators:
        """Start `count` actors, each with a GPU or with `cores` cores; each may die max_failures times."""
        kind = ray.remote(_Validator).options(
            num_cpus=1 if gpu else cores,
            num_gpus=int(gpu),
            runtime_env={} if gpu else ONE_ARENA,
            max_restarts=max_failures,
            max_task_retries=max_failures,
        )
        actors = [kind.remote(part, count, cores=None if gpu else cores) for part in range(count)]
        return cls(job, actors, [actor.__ray_ready__.remote() for actor in actors])

    def begin(self, job: Job, weights: dict[str, Tensor], precision: str) -> Validation:
        """Begin to validate weights of the job's network, in bf16 or fp32.

        Waiting for the result raises a SegrayError when an actor raised one or has died for good.
        """
        shared = ray.put(weights)
        parts = [actor.validate.remote(self.job, shared, precision) for actor in self.actors]

        def wait() -> Validated:
            try:
                return joined(job, [result_of(part) for part in parts])
            except RayActorError as error:
                raise SegrayError(
                    f"a validator died more often than --max_failures {job.settings.max_failures} allows; give it a "
                    "node with more memory, or leave out --validators"
                ) from error

        return wait

    def have_begun(self) -> bool:
        """Whether all of them have started."""
        return all(ray.wait([ready], timeout=0)[0] for ready in self.ready)

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


class _Validator:
    def __init__(self, part: int, parts: int, *, cores: int | None) -> None:
        """cores: None on a GPU."""
        self.share = slice(part, None, parts)
        self.device = torch.device("cpu" if cores else "cuda")
        self.cores = cores or cluster.share_of_node()
        torch.set_num_threads(self.cores)
        if cores:
            keep_memory()

    def validate(self, job: Job, weights: dict[str, Tensor], precision: str) -> Validated:
        network = job.network(pretrained=False)
        network.load_state_dict(weights)
        network = network.to(self.device, memory_format=torch.channels_last).eval()
        samples, device = job.val[self.share], self.device
        with reading_threads(reader_count(self.cores)) as pool, ending_at_faults():
            return validate_part(job, network, samples, device=device, precision=precision, pool=pool)
