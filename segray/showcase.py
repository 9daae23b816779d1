"""Which images of a split a page shows: the worst, the middle and the best, found as they come, on any workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from segray.grid import Window
from segray.report import Picture

EACH = 2  # of the worst, of the middle, of the best
SPREAD = 32  # images, about, of which those in the middle are shown: where the middle is, is known when all are counted

Rank = tuple[float, str]  # mIoU and key: no two images have the same


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image that may be shown. number: in the split. errors: the window with the most of them, if there are any."""

    rank: Rank
    number: int
    picture: Picture
    errors: Window | None = None


class Showcase:
    """The candidates so far. Of n images a worker makes pictures of some 32 + 4 log(n), since few beat all before."""

    def __init__(self, images: int) -> None:
        self.stride = max(1, images // SPREAD)
        self.lowest: list[Rank] = []
        self.highest: list[Rank] = []
        self.candidates: list[Candidate] = []

    def wants(self, number: int, rank: Rank) -> bool:
        """Whether an image may be one to show, as far as is known now."""
        self.lowest = sorted({*self.lowest, rank})[:EACH]
        self.highest = sorted({*self.highest, rank})[-EACH:]
        return self._holds(number, rank)

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Take in candidates of a worker, and drop those that others have beaten."""
        self.candidates += [found for found in candidates if self.wants(found.number, found.rank)]
        self.candidates = [found for found in self.candidates if self._holds(found.number, found.rank)]

    def shown(self, ranks: Sequence[Rank]) -> list[Candidate]:
        """Those to show, worst first, the notes of their pictures saying why; ranks: of all images, in any order."""
        place = {rank: number for number, rank in enumerate(sorted(ranks))}
        ranked = sorted(self.candidates, key=lambda found: found.rank)
        each, middle = min(EACH, max(1, len(place) // 3)), (len(place) - 1) / 2
        worst, best = ranked[:each], ranked[each:][-each:]
        between = ranked[each:-each] if len(ranked) > 2 * each else []
        nearest = sorted(between, key=lambda found: abs(place[found.rank] - middle))[:each]
        groups = {"worst": worst, "median": sorted(nearest, key=lambda found: found.rank), "best": best}
        return [
            replace(found, picture=replace(found.picture, note=f"{why}: mIoU {found.rank[0]:.3f}"))
            if len(place) > 1
            else found
            for why, group in groups.items()
            for found in group
        ]

    def _holds(self, number: int, rank: Rank) -> bool:
        return rank in self.lowest or rank in self.highest or number % self.stride == 0
