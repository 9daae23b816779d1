"""Which images of a split a page shows: worst, median and best, picked as results come in from any worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from segray.grid import Window
from segray.report import Picture

EACH = 2  # of the worst, the median and the best
SPREAD = 32  # about as many images, evenly spread, are kept to show the median of: it is known only when all are scored

Rank = tuple[float, str]  # mIoU and key, so that no two images have the same


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image that may be shown. number: its place in the split. errors: the window with the most, if any."""

    rank: Rank
    number: int
    picture: Picture
    errors: Window | None = None


class Showcase:
    """The candidates so far. Of n images a worker draws some 32 + 4 log(n), since few beat all those before."""

    def __init__(self, images: int) -> None:
        self.stride = max(1, images // SPREAD)
        self.lowest: list[Rank] = []
        self.highest: list[Rank] = []
        self.candidates: list[Candidate] = []

    def wants(self, number: int, rank: Rank) -> bool:
        """Take note of an image's rank; whether it may be shown, as far as is known now."""
        self.lowest = sorted({*self.lowest, rank})[:EACH]
        self.highest = sorted({*self.highest, rank})[-EACH:]
        return self._holds(number, rank)

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Add candidates of a worker, and drop those that others have beaten."""
        self.candidates += [found for found in candidates if self.wants(found.number, found.rank)]
        self.candidates = [found for found in self.candidates if self._holds(found.number, found.rank)]

    def shown(self, ranks: Sequence[Rank]) -> list[Candidate]:
        """Those to show, worst first, each with a note that says why. ranks: of all images, in any order."""
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
