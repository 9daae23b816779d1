"""Roads: smooth curves across the scene, and side streets off them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segray.synthetic.canvas import ROAD, WATER, Canvas, Patch, noise, turned

SPACING = 430  # pixels between the through roads of one family
TARMAC, SHOULDER, PAINT = np.float32([[128, 127, 126], [132, 128, 96], [214, 212, 200]])


@dataclass(frozen=True, kw_only=True)
class Road:
    """A smooth curve v = f(u) in a frame turned by `angle` about (row, col), for |u - middle| <= half_length.

    waves: (amplitude, wavelength, phase) of the sines that f sums up. Lengths are pixels, angles radians.
    """

    row: float
    col: float
    angle: float
    half_width: float
    waves: tuple[tuple[float, float, float], ...]
    middle: float = 0.0
    half_length: float = float("inf")

    def bend(self, u: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """f(u) and its slope; f(0) = 0."""
        # Plain floats, since NumPy's own scalars would turn float32 pixels into float64.
        terms = [(float(a), float(2 * np.pi / length), float(phase)) for a, length, phase in self.waves]
        line = sum(a * (np.sin(k * u + phase) - math.sin(phase)) for a, k, phase in terms)
        return line, sum(a * k * np.cos(k * u + phase) for a, k, phase in terms)

    def distance(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(h, w) distance from the centre line, and (h, w) position along it, of the pixels at rows x columns."""
        u, v = turned(rows - np.float32(self.row), cols - np.float32(self.col), self.angle)
        line, slope = self.bend(u)
        across = (v - line) / np.sqrt(1 + slope * slope)
        if self.half_length == float("inf"):
            return np.abs(across), u
        return np.hypot(across, np.maximum(np.abs(u - self.middle) - self.half_length, 0)), u

    def point(self, u: float, side: float) -> tuple[float, float, float]:
        """(row, col, direction) of the point at `u` along the road and `side` pixels off it."""
        line, slope = self.bend(u)
        turn = np.arctan(slope)
        a, b = u - side * np.sin(turn), line + side * np.cos(turn)
        row = self.row + a * np.sin(self.angle) + b * np.cos(self.angle)
        col = self.col + a * np.cos(self.angle) - b * np.sin(self.angle)
        return float(row), float(col), float(self.angle + turn)

    def sites(self, canvas: Canvas, *, step: float, margin: float = 0.0) -> list[tuple[float, float, float, float]]:
        """(u, row, col, direction) every `step` along the road, where that is on the canvas or up to `margin` off."""
        (height, width), reach = canvas.mask.shape, min(sum(canvas.mask.shape), self.half_length)
        points = ((u, *self.point(u, 0)) for u in np.arange(self.middle - reach, self.middle + reach, step))
        return [p for p in points if -margin <= p[1] < height + margin and -margin <= p[2] < width + margin]


def draw_roads(canvas: Canvas) -> list[Road]:
    """Two crossing families of through roads, and side streets off them; narrower roads lie underneath wider ones."""
    rng, (height, width) = canvas.rng, canvas.mask.shape
    heading, half, roads = rng.uniform(0, np.pi), int(np.hypot(height, width) / SPACING / 2), []
    for angle in (heading, heading + np.pi / 2 + rng.normal(0, 0.2)):
        for k in range(-half, half + 1):
            shift = (k + rng.uniform(-0.3, 0.3)) * SPACING
            row, col = height / 2 + shift * np.cos(angle), width / 2 - shift * np.sin(angle)
            roads.append(_through(rng, row, col, angle=angle))
    junctions = [site for road in roads for site in road.sites(canvas, step=60)]
    for _ in range(round(3 * canvas.amount) if junctions else 0):
        _, row, col, way = junctions[rng.integers(len(junctions))]
        street = _street(rng, row, col, angle=way + np.pi / 2)
        wet = [canvas.mask[int(r), int(c)] == WATER for _, r, c, _ in street.sites(canvas, step=8)]
        if sum(wet) < 0.3 * len(wet) and not wet[0] and not wet[-1]:  # it may bridge a river, not end in a lake
            roads.append(street)
    for road in sorted(roads, key=lambda road: road.half_width):
        _draw(canvas, road)
    return roads


def _through(rng: np.random.Generator, row: float, col: float, *, angle: float) -> Road:
    """A road from edge to edge through (row, col)."""
    waves = tuple((rng.uniform(0.01, 0.045) * k, k, rng.uniform(0, 6.28)) for k in rng.uniform(260, 900, 2))
    return Road(row=row, col=col, angle=angle, half_width=rng.uniform(5.5, 9), waves=waves)


def _street(rng: np.random.Generator, row: float, col: float, *, angle: float) -> Road:
    """A dead end that starts at (row, col)."""
    length, side = rng.uniform(60, 110), rng.choice([-1.0, 1.0])
    return Road(
        row=row, col=col, angle=angle + rng.normal(0, 0.12), half_width=rng.uniform(4.4, 5.4),
        waves=((rng.uniform(2, 10), rng.uniform(160, 300), rng.uniform(0, 6.28)),),
        middle=side * length, half_length=length,
    )  # fmt: skip


def _draw(canvas: Canvas, road: Road) -> None:
    """Tarmac with worn wheel tracks, a shoulder, and a dashed centre line where it is wide."""
    rng, half = canvas.rng, road.half_width
    place, distance, u = _extent(canvas, road)
    canvas.cover(place, np.clip(1 - (distance - half) / 4, 0, 1) * 0.6, SHOULDER * np.float32(rng.uniform(0.85, 1.1)))
    color = TARMAC * np.float32(rng.uniform(0.8, 1.25)) + np.float32(rng.normal(0, 2.5, 3))
    wear = 9 * np.cos(distance * np.float32(2 * np.pi / half))
    wear = np.where(wear > 0, wear * 0.6, wear) + 5 * noise(rng, u.shape, 35) + 3 * noise(rng, u.shape, 3)
    canvas.cover(place, np.clip(half - distance + 0.5, 0, 1), color - wear[..., None], label=ROAD)
    if half > 6.5:
        canvas.cover(place, np.clip(1.1 - distance, 0, 1) * (u % 22 < 13) * np.float32(0.75), PAINT)


def _extent(canvas: Canvas, road: Road) -> tuple[Patch, np.ndarray, np.ndarray]:
    """The rectangle of pixels that a road may touch: (its slices, distances (h, w), positions (h, w))."""
    reach = min(road.half_length, sum(canvas.mask.shape)) + 20
    row, col, _ = road.point(road.middle, 0)
    place, _, _ = canvas.around(row, col, reach=reach)
    distance, u = road.distance(canvas.rows[place[0]], canvas.cols[:, place[1]])
    near = distance < road.half_width + 5
    tall, wide = (_span(near.any(axis=axis)) for axis in (1, 0))
    whole = (slice(place[0].start + tall.start, place[0].start + tall.stop),
             slice(place[1].start + wide.start, place[1].start + wide.stop))  # fmt: skip
    return whole, distance[tall, wide], u[tall, wide]


def _span(hit: np.ndarray) -> slice:
    """The smallest slice that holds every True of (n,)."""
    found = np.flatnonzero(hit)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)
