"""A cache of values that are costly to make: a few at a time, each made once for all threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """The values of the most recently used keys. An evicted value lives on as long as somebody uses it.

    most: how many are kept, or how much `size` may be of all of them.
    """

    def __init__(
        self, make: Callable[[Key], Value], *, most: int, size: Callable[[Value], int] = lambda value: 1
    ) -> None:
        self._make, self._most, self._size, self._taken = make, most, size, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._making: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value:
        """The value of a key, made if need be; an error of `make` is raised, and not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:  # another thread made it meanwhile
                    return self._values[key]
            try:
                value = self._make(key)
                with self._lock:
                    self._keep(key, value)
                return value
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def forget(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()
            self._taken = 0

    def _keep(self, key: Key, value: Value) -> None:
        if key in self._values:  # after an error two threads may have made it
            self._taken -= self._size(self._values.pop(key))
        self._values[key] = value
        self._taken += self._size(value)
        while self._taken > self._most and len(self._values) > 1:  # one alone may be larger than all may be
            self._taken -= self._size(self._values.popitem(last=False)[1])
