"""What a process costs: seconds by stage, each moment counted once however stages are nested, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")


class Stopwatch:
    """Seconds by stage. A stage that begins within another pauses it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Count the time of a `with` statement's body as this stage's."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def over(self, name: str, values: Iterable[Value]) -> Iterator[Value]:
        """The same values; the time that each takes to arrive counts as this stage's."""
        iterator, end = iter(values), object()
        while True:
            with self.during(name):
                value = next(iterator, end)
            if value is end:
                return
            yield value

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def peak_memory() -> int:
    """Peak memory of this process in bytes, shared pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # POSIX leaves the unit open
