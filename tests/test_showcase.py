"""The images to show: the very worst and best and the median, whichever worker saw them in whatever order."""

from __future__ import annotations

import numpy as np
import pytest

from segray.report import Picture
from segray.showcase import EACH, SPREAD, Candidate, Showcase


def candidate(number: int, rank: tuple[float, str]) -> Candidate:
    picture = Picture(title=rank[1], image=np.zeros((2, 2, 3), np.uint8), mask=np.zeros((2, 2), np.uint8))
    return Candidate(rank=rank, number=number, picture=picture)


def shown(ranks: list[tuple[float, str]], workers: int, seed: int) -> tuple[list[tuple[str, str]], int]:
    """(title, why) of the pictures of a split whose images workers get at random, and how many were made."""
    driver, made = Showcase(len(ranks)), 0
    order = np.random.default_rng(seed).permutation(len(ranks))
    for worker in range(workers):
        own = Showcase(len(ranks))
        found = [candidate(int(n), ranks[n]) for n in order[worker::workers] if own.wants(int(n), ranks[n])]
        made += len(found)
        driver.add(found)
    assert len(driver.candidates) <= 2 * SPREAD + 2 * EACH
    return [(one.picture.title, one.picture.note.partition(":")[0]) for one in driver.shown(ranks)], made


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("count", [6, 31, 1000])
def test_the_worst_the_middle_and_the_best(count: int, workers: int) -> None:
    values = np.random.default_rng(count).random(count)
    ranks = [(float(value), f"k{number}") for number, value in enumerate(values)]
    pictures, made = shown(ranks, workers, seed=workers)
    ranked = [key for _, key in sorted(ranks)]
    assert pictures[:2] == [(key, "worst") for key in ranked[:2]]
    assert pictures[-2:] == [(key, "best") for key in ranked[-2:]]
    assert [why for _, why in pictures[2:4]] == ["median"] * 2
    assert all(abs(ranked.index(key) / count - 0.5) < 0.2 for key, _ in pictures[2:4])
    assert pictures == shown(ranks, 2, seed=99)[0]
    assert made <= 2 * SPREAD + workers * 60


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []), (1, [("k0", "")]), (2, [("k0", "worst"), ("k1", "best")]),
        (3, [("k0", "worst"), ("k1", "median"), ("k2", "best")]),
        (5, [("k0", "worst"), ("k2", "median"), ("k4", "best")]),
    ],
)  # fmt: skip
def test_few_images_are_shown_once_each(count: int, expected: list[tuple[str, str]]) -> None:
    ranks = [(number / 10, f"k{number}") for number in range(count)]
    assert shown(ranks, 2, seed=0)[0] == expected


def test_equal_scores_and_a_repeated_range_change_nothing() -> None:
    ranks = [(0.5, f"k{number}") for number in range(8)]
    case = Showcase(8)
    for _ in range(2):  # after a fault, a range of images is counted again
        wanted = [number for number, rank in enumerate(ranks) if case.wants(number, rank)]
    assert wanted == list(range(8))
    assert (case.lowest, case.highest) == (ranks[:2], ranks[-2:])
