"""The boundaries of regions as rings, put together from their corners alone.

A boundary alternates between horizontal and vertical sides. Sorted by row, then column, the corners of a region come in
pairs that are the ends of its horizontal sides; sorted by column, then row, in pairs that are the ends of its vertical
sides. Following the two in turn gives the rings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segray.tracing import COLUMN_MASK, COLUMN_SHIFT, DOWN, LEAVES, RIGHT, ROW_SHIFT, Regions


@dataclass(frozen=True, kw_only=True)
class Rings:
    """Polygons as ragged arrays: each ring is closed, a polygon's first is its exterior, the others are its holes.

    points: (m, 2) column and row of pixel corners; drawn with columns to the right and rows upwards, exteriors run
    counterclockwise and holes clockwise. rings: offsets into points. polygons: offsets into rings.
    """

    points: np.ndarray
    rings: np.ndarray
    polygons: np.ndarray

    def part(self, start: int, stop: int) -> Rings:
        """The polygons [start, stop)."""
        polygons = self.polygons[start : stop + 1]
        rings = self.rings[polygons[0] : polygons[-1] + 1]
        points = self.points[rings[0] : rings[-1]]
        return Rings(points=points, rings=rings - rings[0], polygons=polygons - polygons[0])


def rings_of(regions: Regions) -> Rings:
    """The boundary of every region: one exterior ring, then its holes in scan order of their first side.

    Where two pixels of a region touch only at a corner, the rings turn around the two pixels between them. The region,
    being 4-connected, separates those, so no ring passes the corner twice.
    """
    order = np.lexsort((regions.corners, regions.owners))
    owners, corners = regions.owners[order], regions.corners[order]
    twins = (owners[1:] == owners[:-1]) & (corners[1:] >> COLUMN_SHIFT == corners[:-1] >> COLUMN_SHIFT)
    twins &= (corners[1:] ^ corners[:-1]) & (RIGHT | DOWN) == RIGHT | DOWN
    corners[:-1][twins] ^= DOWN
    corners[1:][twins] ^= DOWN

    rows, columns = corners >> ROW_SHIFT, corners >> COLUMN_SHIFT & COLUMN_MASK
    turned = np.lexsort((columns << ROW_SHIFT | rows << COLUMN_SHIFT | corners & DOWN, owners))
    across = np.empty_like(turned)
    across[turned[0::2]], across[turned[1::2]] = turned[1::2], turned[0::2]
    begins = np.arange(0, len(corners), 2) + (corners[1::2] & LEAVES)  # of the horizontal sides
    sides, first = _cycles(across[begins ^ 1] >> 1)

    path = np.empty(2 * len(sides), np.int64)
    path[0::2], path[1::2] = begins[sides], begins[sides] ^ 1
    offsets = np.append(2 * first, len(path))
    points, offsets = _closed(np.stack([columns[path], rows[path]], axis=1), offsets)
    polygons = np.searchsorted(owners[2 * sides[first]], np.arange(len(regions) + 1))
    return Rings(points=points, rings=offsets, polygons=polygons)


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(elements cycle by cycle, where each cycle begins) of a permutation; cycles by their smallest element.

    A loop over memory: the rounds of a parallel list ranking would cost more than its steps.
    """
    result = np.empty(len(following), np.int64)
    step, out, seen = memoryview(following), memoryview(result), bytearray(len(following))
    first, count = [], 0
    start = seen.find(0)
    while start >= 0:
        first.append(count)
        element = start
        while not seen[element]:
            seen[element] = 1
            out[count] = element
            count += 1
            element = step[element]
        start = seen.find(0, start)
    return result, np.array(first, np.int64)


def _closed(points: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rings without repeated points, closed by their first point."""
    after = np.arange(1, len(points) + 1)
    after[offsets[1:] - 1] = offsets[:-1]
    keep = (points != points[after]).any(axis=1)  # only nodes have sides of no length
    kept = np.concatenate([[0], np.cumsum(keep)])
    points, offsets = points[keep], kept[offsets]
    lengths = np.diff(offsets) + 1
    closed = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(closed[-1]) - np.repeat(np.arange(len(lengths)), lengths)
    index[closed[1:] - 1] = offsets[:-1]
    return points[index], closed
