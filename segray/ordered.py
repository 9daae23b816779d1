"""Work that threads do ahead of whoever takes its results, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Result]:
    """function(item) of each item, in order, at most `ahead` of them at once; its error is raised in its turn."""
    rest, running = iter(items), deque()
    try:
        running.extend(pool.submit(function, item) for item in islice(rest, ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result
    finally:
        for future in running:
            future.cancel()
