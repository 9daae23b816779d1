"""A function applied to many parts, each in a Ray task of its own; results come in the parts' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import ray
from ray.exceptions import RayTaskError

from segray.cluster import noting_waits
from segray.errors import OutOfMemoryError, SegrayError

Part, Result = TypeVar("Part"), TypeVar("Result")
IN_FLIGHT = 256  # tasks: few enough to bound what the driver holds, enough to keep a cluster busy
DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    OutOfMemoryError,  # the process survives, but what it was given would not fit again
)


def in_tasks(
    function: Callable[[Part], Result],
    parts: Iterable[Part],
    *,
    num_cpus: int = 1,
    num_gpus: int = 0,
    in_flight: int = IN_FLIGHT,
) -> Iterator[Result]:
    """function(part) of each part, in order; a task's SegrayError is raised in its turn.

    in_flight: the most tasks whose results have not been taken.
    """
    call = _call.options(num_cpus=num_cpus, num_gpus=num_gpus)
    shared = ray.put(function)  # so that what it holds is sent once, not with every part

    def results() -> Iterator[Result]:
        running: deque[ray.ObjectRef] = deque()
        for part in parts:
            running.append(call.remote(shared, part))
            if len(running) == in_flight:
                yield result_of(running.popleft())
        while running:
            yield result_of(running.popleft())

    yield from noting_waits(results())


def result_of(ref: ray.ObjectRef) -> Result:
    """What a task returns; its SegrayError as raised there, since Ray's wrapper has the text of a traceback."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, SegrayError):
            raise error.cause from None
        raise


@ray.remote
def _call(function: Callable[[Part], Result], part: Part) -> Result:
    return function(part)
