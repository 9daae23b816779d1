"""Houses: where they stand, their shadows and their roofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segray.synthetic.canvas import BUILDING, FIELD, Canvas, blur, noise, turned
from segray.synthetic.roads import Road

ROOFS = np.float32([  # clay, old clay, brown, slate, asphalt, concrete, tin
    [172, 92, 68], [146, 78, 62], [112, 84, 72], [92, 96, 104], [124, 124, 126], [168, 166, 160], [196, 198, 200],
])  # fmt: skip
ROOF_THINGS = np.float32([[60, 62, 66], [206, 206, 202], [120, 78, 66]])
GRAVEL, LAWN = np.float32([[158, 152, 138], [112, 138, 78]])


@dataclass(frozen=True, kw_only=True)
class House:
    """One or two rectangles (wings) under a gable, hip or flat roof.

    wings: (centre along, centre across, half length, half depth) in a frame turned by `angle` about (row, col).
    """

    row: float
    col: float
    angle: float
    wings: tuple[tuple[float, float, float, float], ...]
    height: float
    roof: str
    color: np.ndarray

    @property
    def reach(self) -> float:
        """How far from (row, col) the house may extend, in pixels."""
        return max(float(np.hypot(abs(p) + a, abs(q) + b)) for p, q, a, b in self.wings) + 2

    def outside(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """(h, w) distance to the outer wall of points given relative to (row, col), negative inside."""
        along, across = turned(rows, cols, self.angle)
        walls = [np.maximum(np.abs(along - p) - a, np.abs(across - q) - b) for p, q, a, b in self.wings]
        return np.minimum.reduce(walls)


def place_houses(canvas: Canvas, roads: list[Road]) -> list[House]:
    """Houses along the roads, close together in villages; each stands free of roads, water and its neighbours."""
    rng, houses = canvas.rng, []
    taken = blur((canvas.mask != FIELD).astype(np.float32), 2) > 0.05
    sites = [(road, *site) for road in roads for site in road.sites(canvas, step=32, margin=30)]
    villages = [sites[k][2:4] for k in rng.integers(len(sites), size=round(1 + 1.3 * canvas.amount))] if sites else []
    for road, u, row, col, _ in sites:
        near = min(np.hypot(row - r, col - c) for r, c in villages)
        for side in (-1.0, 1.0):
            if rng.random() < 0.15 + 0.85 * np.exp(-((near / 180) ** 2)):
                house = _house(rng, road, u=u + rng.uniform(-6, 6), side=side)
                place, rows, cols = canvas.around(house.row, house.col, reach=house.reach + 4)
                walls = house.outside(rows, cols)
                if walls.size and not taken[place][walls < 4].any():
                    taken[place] |= walls < 4
                    houses.append(house)
    for house in houses:
        _draw_yard(canvas, house)
    return houses


def _house(rng: np.random.Generator, road: Road, *, u: float, side: float) -> House:
    """A dwelling, or now and then a large flat-roofed hall, beside the road."""
    hall = rng.random() < 0.14
    a, b = (rng.uniform(24, 38), rng.uniform(15, 22)) if hall else (rng.uniform(12, 18), rng.uniform(9, 12.5))
    wings = ((0.0, 0.0, a, b),)
    if not hall and rng.random() < 0.35:
        deep = rng.uniform(9, 14)
        wings += ((rng.choice([-1.0, 1.0]) * (a - 9), side * deep, 9.0, deep),)
    along = hall or rng.random() < 0.75
    row, col, way = road.point(u, side * (road.half_width + (b if along else a) + rng.uniform(7, 16)))
    return House(
        row=row, col=col, angle=way + rng.normal(0, 0.05) + (0 if along else np.pi / 2), wings=wings,
        height=rng.uniform(7, 12), roof="flat" if hall else str(rng.choice(["gable", "gable", "hip", "flat"])),
        color=ROOFS[rng.integers(*(4, 7) if hall else (0, 6))] + np.float32(rng.normal(0, 9) + rng.normal(0, 4, 3)),
    )  # fmt: skip


def _draw_yard(canvas: Canvas, house: House) -> None:
    """A garden or a gravel yard around the house; its label stays FIELD."""
    rng = canvas.rng
    place, rows, cols = canvas.around(house.row, house.col, reach=house.reach + 26)
    gravel = rng.random() < 0.3
    reach = 6 if gravel else rng.uniform(12, 22)
    alpha = np.clip((reach - house.outside(rows, cols)) / 2, 0, 1) * (canvas.mask[place] == FIELD) * np.float32(0.85)
    color = (GRAVEL if gravel else LAWN) * np.float32(rng.uniform(0.88, 1.1))
    canvas.cover(place, alpha, color + 4 * noise(rng, alpha.shape, 2.5)[..., None])


def cast_house(canvas: Canvas, house: House) -> None:
    """The house's shadow: its outline swept along the ground."""
    place, rows, cols = canvas.around(house.row, house.col, reach=house.reach + house.height)
    steps = np.arange(0, house.height, 1.5)
    swept = [house.outside(rows - s * canvas.sun[0], cols - s * canvas.sun[1]) for s in steps]
    canvas.darken(place, np.clip(0.5 - np.minimum.reduce(swept), 0, 1))


def draw_house(canvas: Canvas, house: House) -> None:
    """The roof of every wing, with chimneys, skylights and vents on top."""
    rng = canvas.rng
    place, rows, cols = canvas.around(house.row, house.col, reach=house.reach)
    along, across = turned(rows, cols, house.angle)
    for p, q, a, b in reversed(house.wings):
        x, y = along - p, across - q
        sun = turned(*np.float32(canvas.sun), house.angle)
        roof = _roof(house, (x, a, sun[0]), (y, b, sun[1])) if a >= b else _roof(house, (y, b, sun[1]), (x, a, sun[0]))
        grain = 0.03 * noise(rng, roof.shape[:2], 2.5) + 0.03 * noise(rng, roof.shape[:2], 12)
        alpha = np.clip(0.5 - np.maximum(np.abs(x) - a, np.abs(y) - b), 0, 1)
        canvas.cover(place, alpha, roof * (1 + grain[..., None]), label=BUILDING)
        for _ in range(rng.integers(1, 4)):
            dx, dy = rng.uniform(-0.7, 0.7) * a, rng.uniform(-0.6, 0.6) * b
            thing = np.clip(rng.uniform(1.2, 2.4) - np.maximum(np.abs(x - dx), np.abs(y - dy)), 0, 1)
            canvas.cover(place, thing * np.float32(0.8), ROOF_THINGS[rng.integers(len(ROOF_THINGS))])


def _roof(house: House, long: tuple[np.ndarray, float, float], short: tuple[np.ndarray, float, float]) -> np.ndarray:
    """(h, w, 3) colours of a roof whose ridge runs along the long axis; axes are (coordinates, half size, sun)."""
    (x, a, sun_x), (y, b, sun_y) = long, short
    if house.roof == "flat":
        parapet = np.maximum(np.abs(x) - a, np.abs(y) - b) > -2.2
        return house.color * np.where(parapet, 1.13, 0.97).astype(np.float32)[..., None]
    light = 1 - 0.24 * np.clip(y, -1, 1) * sun_y + 0 * x
    if house.roof == "hip":
        light = np.where(a - np.abs(x) < b - np.abs(y), 1 - 0.24 * np.sign(x) * sun_x, light)
    courses = 0.03 * np.sin(y * np.float32(2.4))
    return house.color * (light + courses)[..., None] + np.float32(26) * (np.abs(y) < 0.9)[..., None]
