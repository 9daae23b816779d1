"""Trees: woods, hedgerows, garden trees and single ones, crown by crown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segray.synthetic.canvas import FIELD, TREE, Canvas, noise
from segray.synthetic.houses import House

CROWNS = np.float32([[62, 84, 42], [72, 98, 46], [54, 78, 48], [88, 104, 52], [96, 92, 50]])
OVERHANG = 0.12  # share of a crown that may hang over water, a road or a roof


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A crown: a disc of `radius` pixels with 3 + 5 lobes. lobes: (phase of the 3, phase of the 5, depth)."""

    row: float
    col: float
    radius: float
    lobes: tuple[float, float, float]
    color: np.ndarray

    @property
    def reach(self) -> float:
        """How far from (row, col) the crown may extend, in pixels."""
        return self.radius * (1 + 1.7 * self.lobes[2]) + 1

    def dome(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """(h, w) distance from the trunk, divided by the crown's radius in that direction: 1 on the outline."""
        turn = np.arctan2(rows, cols)
        three, five, depth = self.lobes
        edge = 1 + depth * (np.sin(3 * turn + three) + 0.7 * np.sin(5 * turn + five))
        return np.hypot(rows, cols) / (self.radius * edge)


def place_trees(canvas: Canvas, edges: np.ndarray, houses: list[House]) -> list[Tree]:
    """Trees that leave roads, water and roofs free; `edges` (H, W) bool are the parcel borders that hedges follow."""
    rng, shape = canvas.rng, canvas.mask.shape
    taken = canvas.mask != FIELD
    for house in houses:
        place, rows, cols = canvas.around(house.row, house.col, reach=house.reach)
        taken[place] |= house.outside(rows, cols) < 1
    hue, trees = noise(rng, shape, 60), []
    for spot in _spots(canvas, edges, houses):
        if all(0 <= v < n for v, n in zip(spot, shape)):
            tree = _tree(rng, spot, hue=float(hue[tuple(spot.astype(int))]))
            place, rows, cols = canvas.around(tree.row, tree.col, reach=tree.reach)
            if taken[place][tree.dome(rows, cols) < 1].mean() < OVERHANG:
                trees.append(tree)
    return trees


def _spots(canvas: Canvas, edges: np.ndarray, houses: list[House]) -> np.ndarray:
    """(N, 2) rows and columns where a tree may grow; some lie beyond the edge."""
    rng, shape = canvas.rng, canvas.mask.shape
    dense, single = (rng.uniform(0, 1, (round(canvas.mask.size / each), 2)) * shape for each in (60, 9000))
    wood = noise(rng, shape, 95)
    dense = dense[wood[tuple(dense.astype(int).T)] > np.quantile(wood, 0.9)]
    hedge = np.argwhere(edges & (noise(rng, shape, 50) > 0.5))
    hedge = hedge[rng.random(len(hedge)) < 0.1] + rng.normal(0, 1.5, (1, 2))
    gardens = [(house.row, house.col) + rng.normal(0, 30, (rng.integers(0, 4), 2)) for house in houses]
    return np.concatenate([dense, single, hedge, *gardens])


def _tree(rng: np.random.Generator, spot: np.ndarray, *, hue: float) -> Tree:
    kind = int(np.clip(2 + 1.3 * hue + rng.normal(0, 0.8), 0, len(CROWNS) - 1))
    return Tree(
        row=float(spot[0]), col=float(spot[1]), radius=rng.uniform(6, 11),
        lobes=(rng.uniform(0, 6.28), rng.uniform(0, 6.28), rng.uniform(0.05, 0.11)),
        color=CROWNS[kind] * np.float32(rng.uniform(0.85, 1.15)),
    )  # fmt: skip


def cast_tree(canvas: Canvas, tree: Tree) -> None:
    """The shadow of the crown."""
    row, col = (v + 0.8 * tree.radius * step for v, step in zip((tree.row, tree.col), canvas.sun))
    place, rows, cols = canvas.around(row, col, reach=tree.reach)
    canvas.darken(place, np.clip((1 - tree.dome(rows, cols)) * 4, 0, 1))


def draw_tree(canvas: Canvas, tree: Tree, leaves: np.ndarray) -> None:
    """A dome, bright towards the sun, roughened by `leaves` (H, W) noise."""
    place, rows, cols = canvas.around(tree.row, tree.col, reach=tree.reach)
    dome = tree.dome(rows, cols)
    facing = -(rows * canvas.sun[0] + cols * canvas.sun[1]) / tree.radius
    light = np.maximum(0.92 + 0.32 * facing - 0.28 * dome**2 + 0.11 * leaves[place], 0.25)
    alpha = np.clip((1 - dome) * tree.radius + 0.5, 0, 1)
    canvas.cover(place, alpha, tree.color * light[..., None], label=TREE)
