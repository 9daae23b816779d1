"""The 4-connected regions of a class mask, found in strips of rows: what each covers and the corners of its boundary.

Runs of equal pixels are joined within a strip and with the runs of the row before it; a region is handed out once no
later row can belong to it. Only one row of pixels and the corners of the regions that are still open are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from segray.masks import IGNORE

# A corner is one int64: row (30 bits), column (30), then whether its horizontal side runs right, its vertical side runs
# down, and whether the boundary leaves it horizontally. So corners sort by row, then column, then sides.
ROW_SHIFT, COLUMN_SHIFT = 33, 3
COLUMN_MASK = (1 << 30) - 1
RIGHT, DOWN, LEAVES = 4, 2, 1

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Regions:
    """n closed regions, ordered by their last row, then by their first pixel in scan order.

    class_ids: (n,) uint8. pixels: (n,) int64. measures: (n,) float64, the sum of the tracer's measure. owners: (m,)
    int64 position of the region that a corner belongs to. corners: (m,) int64, packed; not sorted.
    """

    class_ids: np.ndarray
    pixels: np.ndarray
    measures: np.ndarray
    owners: np.ndarray
    corners: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, keep: np.ndarray) -> Regions:
        """The regions where keep, (n,) bool, is true."""
        mine = keep[self.owners]
        return Regions(
            class_ids=self.class_ids[keep],
            pixels=self.pixels[keep],
            measures=self.measures[keep],
            owners=(np.cumsum(keep) - 1)[self.owners[mine]],
            corners=self.corners[mine],
        )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Regions of a strip by label: see `Regions`. first, last: (n,) int64 first pixel in scan order, last row."""

    class_ids: np.ndarray
    pixels: np.ndarray
    measures: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Open:
    """Regions that reach the last row. of_run: the region of each run in it. chunks: corners of each region so far."""

    found: _Found
    of_run: np.ndarray
    chunks: list[list[np.ndarray]] = field(default_factory=list)


class Tracer:
    """Finds the regions of a scene of `width` columns whose rows are added from top to bottom.

    measure: maps (rows, columns, lengths) of runs of pixels to float64, added up over each region. nodes: vertices at
    which three or more regions meet are corners of all of them, even of those that do not turn there.
    """

    def __init__(self, width: int, *, measure: Measure | None = None, nodes: bool = False) -> None:
        self.width, self.nodes = width, nodes
        self._measure = measure or (lambda rows, columns, lengths: np.zeros(len(rows)))
        self._top = 0  # rows added so far
        self._last = np.full(width, IGNORE, np.uint8)
        self._open = _Open(found=_found(0), of_run=np.zeros(0, np.int64))

    def close(self) -> Regions:
        """The regions that reach the scene's last row; to be called once, after all rows."""
        return self.skip(1)

    def skip(self, height: int) -> Regions:
        """The same as `add` with `height` rows without a class, at the cost of one."""
        closed = self.add(np.full((1, self.width), IGNORE, np.uint8))
        self._top += height - 1
        return closed

    def add(self, rows: np.ndarray) -> Regions:
        """Add rows, (h >= 1, width) uint8 class ids with 255 for none; returns the regions now known to be closed."""
        block = np.full((len(rows) + 1, self.width + 2), IGNORE, np.uint8)
        block[0, 1:-1], block[1:, 1:-1] = self._last, rows
        starts = np.flatnonzero(np.diff(block.ravel(), prepend=~block[0, 0]))
        classes = block.ravel()[starts]
        head = np.flatnonzero((starts < block.shape[1]) & (classes != IGNORE))
        labels = self._labels(starts, classes, block=block, head=head)
        found, home = self._account(starts, labels, block=block, head=head)
        places, corners = corners_of(block, self._top, nodes=self.nodes)
        owners = labels[np.searchsorted(starts, places, side="right") - 1]
        tail = labels[(starts >= block.size - block.shape[1]) & (classes != IGNORE)]
        result = self._divide(found, home, tail=tail, owners=owners, corners=corners)
        self._top, self._last = self._top + len(rows), block[-1, 1:-1].copy()
        return result

    def _labels(self, starts: np.ndarray, classes: np.ndarray, *, block: np.ndarray, head: np.ndarray) -> np.ndarray:
        """(runs,) int64 region of each run, numbered from 0; -1 for runs of no class."""
        order = np.argsort(self._open.of_run, kind="stable")
        same = np.diff(self._open.of_run[order]) == 0  # runs of one open region, joined somewhere above
        upper, lower = _touching(starts, classes, block.shape[1])
        upper = np.concatenate([upper, head[order[:-1]][same]])
        lower = np.concatenate([lower, head[order[1:]][same]])
        roots = components(len(starts), upper, lower)
        own = classes != IGNORE
        labels = np.full(len(starts), -1)
        labels[own] = np.unique(roots[own], return_inverse=True)[1]
        return labels

    def _account(
        self, starts: np.ndarray, labels: np.ndarray, *, block: np.ndarray, head: np.ndarray
    ) -> tuple[_Found, np.ndarray]:
        """What each label covers, and the label of each region that was open."""
        own = labels >= 0
        lengths = np.diff(starts, append=block.size)[own]
        rows, columns = np.divmod(starts[own], block.shape[1])
        rows, columns, mine = rows + self._top - 1, columns - 1, labels[own]
        found = _found(int(labels.max(initial=-1)) + 1)
        found.class_ids[mine] = block.ravel()[starts[own]]
        np.minimum.at(found.first, mine, rows * self.width + columns)
        np.maximum.at(found.last, mine, rows)
        new = rows >= self._top
        np.add.at(found.pixels, mine[new], lengths[new])
        np.add.at(found.measures, mine[new], self._measure(rows[new], columns[new], lengths[new]))
        before = self._open.found
        home = np.zeros(len(before.pixels), np.int64)
        home[self._open.of_run] = labels[head]
        np.minimum.at(found.first, home, before.first)
        np.add.at(found.pixels, home, before.pixels)
        np.add.at(found.measures, home, before.measures)
        return found, home

    def _divide(
        self, found: _Found, home: np.ndarray, *, tail: np.ndarray, owners: np.ndarray, corners: np.ndarray
    ) -> Regions:
        """Keep the regions of `tail`, which reach the last row, open; return the others."""
        open_ones = np.unique(tail)
        is_open = np.zeros(len(found.pixels), bool)
        is_open[open_ones] = True
        closed = np.flatnonzero(~is_open)
        closed = closed[np.lexsort((found.first[closed], found.last[closed]))]
        place = np.zeros(len(is_open), np.int64)
        place[open_ones], place[closed] = np.arange(len(open_ones)), np.arange(len(closed))

        chunks: list[list[np.ndarray]] = [[] for _ in open_ones]
        done_owners, done_corners = [place[owners[~is_open[owners]]]], [corners[~is_open[owners]]]
        for label, old in zip(home.tolist(), self._open.chunks):
            if is_open[label]:
                chunks[place[label]].extend(old)
            else:
                done_corners.extend(old)
                done_owners.extend(np.full(len(chunk), place[label]) for chunk in old)
        for number, chunk in _split(place[owners[is_open[owners]]], corners[is_open[owners]]):
            chunks[number].append(chunk)
        self._open = _Open(found=_take(found, open_ones), of_run=place[tail], chunks=chunks)
        return Regions(
            class_ids=found.class_ids[closed],
            pixels=found.pixels[closed],
            measures=found.measures[closed],
            owners=np.concatenate(done_owners),
            corners=np.concatenate(done_corners),
        )


def corners_of(block: np.ndarray, top: int, *, nodes: bool) -> tuple[np.ndarray, np.ndarray]:
    """((m,) int64 flat pixels of `block`, (m,) packed corners of those pixels' regions) inside the block.

    block: (h + 1, w + 2) uint8, row `top` - 1 of the scene first, a column of 255 on either side. A vertex is a corner
    of a region that holds one or three of its four pixels, and two corners of one that holds two diagonal pixels.
    """
    across, down = block[:, 1:] != block[:, :-1], block[1:] != block[:-1]
    spots = (across[:-1] | across[1:]) & (down[:, :-1] | down[:, 1:])
    rows, columns = np.divmod(np.flatnonzero(spots), spots.shape[1])
    vertical = across[rows, columns], across[rows + 1, columns]  # the lines up and down from the vertex
    horizontal = down[rows, columns], down[rows, columns + 1]  # to the left and to the right
    base = (rows + top) << ROW_SHIFT | columns << COLUMN_SHIFT
    crowded = sum(line.astype(np.uint8) for line in (*vertical, *horizontal)) >= 3 if nodes else False
    pixels, width = block.ravel(), block.shape[1]
    places, corners = [], []
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = vertical[dy] & horizontal[dx]
        for inner, member in (
            (False, (rows + dy) * width + columns + dx),  # the region is in this quarter
            (True, (rows + 1 - dy) * width + columns + 1 - dx),  # the region is in the three others
        ):
            is_corner = alone & ~vertical[1 - dy] & ~horizontal[1 - dx] if inner else alone | crowded
            is_corner = is_corner & (pixels[member] != IGNORE)
            leaves = LEAVES if (dx == dy) != inner else 0  # the region lies to the right of its boundary's direction
            places.append(member[is_corner])
            corners.append(base[is_corner] | (RIGHT * dx + DOWN * dy + leaves))
    return np.concatenate(places), np.concatenate(corners)


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(count,) int64: the smallest node that each node is connected to by the edges a[i] - b[i], itself included.

    Roots hook to their smallest neighbour and paths are halved until nothing changes, all edges at once (after
    Shiloach and Vishkin, An O(log n) parallel connectivity algorithm, 1982).
    """
    parents = np.arange(count)
    while len(a):
        np.minimum.at(parents, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(parents, grand := parents[parents]):
            parents = grand
        a, b = parents[a], parents[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parents


def _touching(starts: np.ndarray, classes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs of one class in neighbouring rows that share columns: one of the two starts in the first."""
    runs = np.flatnonzero(classes != IGNORE)
    pairs = []
    for offset in (-width, width):
        # outside the block this gives the last run (index -1, or the last one): the margin, which has no class
        other = np.searchsorted(starts, starts[runs] + offset, side="right") - 1
        touch = classes[other] == classes[runs]
        pairs.append((runs[touch], other[touch]))
    (a, b), (c, d) = pairs
    return np.concatenate([a, c]), np.concatenate([b, d])


def _found(count: int) -> _Found:
    return _Found(
        class_ids=np.zeros(count, np.uint8),
        pixels=np.zeros(count, np.int64),
        measures=np.zeros(count),
        first=np.full(count, np.iinfo(np.int64).max),
        last=np.zeros(count, np.int64),
    )


def _take(found: _Found, labels: np.ndarray) -> _Found:
    return _Found(**{name: getattr(found, name)[labels] for name in _Found.__dataclass_fields__})


def _split(owners: np.ndarray, corners: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(owner, its corners) for each owner that has any."""
    order = np.argsort(owners, kind="stable")
    present, begins = np.unique(owners[order], return_index=True)
    return [(int(owner), part.copy()) for owner, part in zip(present, np.split(corners[order], begins[1:]))]
