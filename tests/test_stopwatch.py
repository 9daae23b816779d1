"""The stopwatch books every moment once."""

from __future__ import annotations

import time

import pytest

from segray.stopwatch import Stopwatch


def test_nested_stages_pause_what_they_are_in_and_all_adds_up():
    watch = Stopwatch()
    start = time.perf_counter()
    with watch.during("outer"):
        time.sleep(0.02)
        with watch.during("inner"):
            time.sleep(0.05)
        time.sleep(0.02)
    total = time.perf_counter() - start
    assert watch.seconds["inner"] >= 0.05
    assert watch.seconds["outer"] >= 0.04
    assert sum(watch.seconds.values()) <= total
    assert watch.seconds["outer"] <= total - 0.05


def test_a_chain_of_iterators_books_each_link_by_itself():
    watch = Stopwatch()

    def slow():
        for value in range(3):
            time.sleep(0.02)
            yield value

    def double(values):
        for value in values:
            time.sleep(0.01)
            yield 2 * value

    assert list(watch.over("double", double(watch.over("slow", slow())))) == [0, 2, 4]
    assert watch.seconds["slow"] >= 0.06
    assert watch.seconds["double"] >= 0.03
    assert set(watch.seconds) == {"slow", "double"}


def test_an_error_ends_the_stage_and_goes_on():
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.during("outer"), watch.during("inner"):
        raise ZeroDivisionError
    with watch.during("after"):
        pass
    assert set(watch.seconds) == {"outer", "inner", "after"}
