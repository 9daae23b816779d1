"""Publishing beside training: one file after the other, errors raised, and copies that training does not change."""

from __future__ import annotations

import threading

import pytest
import torch

from segray.publishing import Publisher, copied, pictured
from segray.training_state import improved


def test_publications_run_beside_and_in_order() -> None:
    done, go = [], threading.Event()
    with Publisher() as publisher:
        publisher.submit(lambda: done.append(go.wait(30)))
        assert publisher.busy and not done
        go.set()
        publisher.submit(lambda: done.append("second"))
        assert done[0] is True  # the second waited for the first
        publisher.wait()
        assert done == [True, "second"] and not publisher.busy


@pytest.mark.parametrize("call", ["wait", "submit"])
def test_an_error_is_raised_once_by_the_next_call(call: str) -> None:
    def fail() -> None:
        raise OSError("disk full")

    with Publisher() as publisher:
        publisher.submit(fail)
        with pytest.raises(OSError, match="disk full"):
            publisher.wait() if call == "wait" else publisher.submit(fail)
        publisher.wait()


def test_who_waits_in_parts_is_told_when_it_is_done() -> None:
    go = threading.Event()
    with Publisher() as publisher:
        assert publisher.done_within(0)
        publisher.submit(lambda: go.wait(30))
        assert not publisher.done_within(0.01)
        go.set()
        assert publisher.done_within(30)


def test_after_a_failure_it_is_busy_until_that_is_raised() -> None:
    with Publisher() as publisher:
        publisher.submit(lambda: 1 / 0)
        assert publisher.done_within(30) and publisher.busy
        with pytest.raises(ZeroDivisionError):
            publisher.wait()
        assert not publisher.busy


def test_a_block_that_ends_in_an_error_ends_what_it_began() -> None:
    done = []
    with pytest.raises(KeyError), Publisher() as publisher:
        publisher.submit(lambda: done.append(1))
        raise KeyError
    assert done == [1]


@pytest.mark.parametrize(
    ("scores", "better"),
    [([0.1], True), ([0.1, 0.2], True), ([0.2, 0.2], False), ([0.2, 0.1, 0.15], False), ([None], True)]
    + [([None, None], True), ([None, 0.0], True)],
)
def test_the_best_epoch_is_the_first_of_the_highest_score(scores: list[float | None], better: bool) -> None:
    assert improved([{"val_miou": score} for score in scores]) is better


def test_a_copy_of_a_state_is_left_alone() -> None:
    weights = torch.ones(3, requires_grad=True)
    state = {"a": [{"b": weights, "c": 1}], "d": None}
    copy = copied(state)
    with torch.no_grad():
        weights.zero_()
    assert copy["a"][0]["b"].tolist() == [1, 1, 1] and not copy["a"][0]["b"].requires_grad
    assert (copy["a"][0]["c"], copy["d"]) == (1, None)


@pytest.mark.parametrize(("epochs", "shown"), [(1, {1}), (2, {1}), (3, {1, 2}), (100, {1, 50})])
def test_the_first_and_the_middle_epoch_are_pictured(epochs: int, shown: set[int]) -> None:
    assert pictured(epochs) == shown
