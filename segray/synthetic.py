"""Made-up aerial photographs with exact masks: fields, water, roads, buildings and trees.

For demonstrations and tests that must learn something without any download. Colour alone does not tell the classes
apart, on purpose: grey roofs look like roads, green crops like trees, dark soil like water. One pixel stands for
about 0.5 m. Everything is drawn from the ground upwards on one canvas; whatever lies on top owns the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segray.masks import Classes

CLASSES = Classes(
    names=("field", "water", "road", "building", "tree"),
    colors=((226, 214, 160), (74, 144, 217), (120, 120, 128), (214, 92, 72), (52, 128, 62)),
)
FIELD, WATER, ROAD, BUILDING, TREE = range(5)

CROPS = (  # straw, stubble, meadow, young corn, maize, rape, ploughed, wet soil, fallow
    (190, 172, 120), (168, 150, 108), (118, 140, 78), (136, 158, 84), (82, 112, 56),
    (182, 176, 70), (136, 108, 84), (84, 78, 68), (150, 148, 104),
)  # fmt: skip
ROOFS = (  # clay, old clay, brown, slate, asphalt, concrete, tin
    (172, 92, 68), (146, 78, 62), (112, 84, 72), (92, 96, 104), (124, 124, 126), (168, 166, 160), (196, 198, 200),
)  # fmt: skip
CROWNS = ((62, 84, 42), (72, 98, 46), (54, 78, 48), (88, 104, 52), (96, 92, 50))
DENSITY = 512 * 512  # counts below are given per this many pixels


@dataclass(frozen=True, kw_only=True)
class _Canvas:
    """What is drawn on: image (H, W, 3) float32 of 0..255, mask (H, W) uint8, shade (H, W) float32 of 0..1.

    rows (H, 1) and cols (1, W) are the pixels' coordinates; sun is the unit (row, col) step that shadows take.
    """

    rng: np.random.Generator
    image: np.ndarray
    mask: np.ndarray
    shade: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    sun: tuple[float, float]

    def cover(self, place: tuple, alpha: np.ndarray, color: np.ndarray, label: int | None = None) -> None:
        """Lay `color` over the pixels of `place` with opacity `alpha`; label those that are half covered."""
        part = self.image[place]
        part += alpha[..., None] * (color - part)
        if label is not None:
            self.mask[place][alpha >= 0.5] = label

    def around(self, row: float, col: float, reach: float) -> tuple[tuple, np.ndarray, np.ndarray]:
        """The pixels within `reach` of a point: (their slices, row distances (h, 1), column distances (1, w))."""
        height, width = self.mask.shape
        top, left = (min(max(int(v - reach), 0), n) for v, n in ((row, height), (col, width)))
        bottom, right = (min(max(int(v + reach) + 2, 0), n) for v, n in ((row, height), (col, width)))
        place = (slice(top, bottom), slice(left, right))
        return place, self.rows[place[0]] - np.float32(row), self.cols[:, place[1]] - np.float32(col)


@dataclass(frozen=True, kw_only=True)
class _Road:
    """A smooth curve v = f(u) in coordinates turned by `angle` about (row, col); |u - middle| <= half_length."""

    row: float
    col: float
    angle: float
    half_width: float
    waves: tuple[tuple[float, float, float], ...]  # (amplitude, wavelength, phase)
    middle: float = 0.0
    half_length: float = 1e6

    def bend(self, u: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """f(u) and its slope."""
        turns = [(a, 2 * np.pi / length, phase) for a, length, phase in self.waves]
        return (
            sum(a * (np.sin(k * u + phase) - np.sin(phase)) for a, k, phase in turns),
            sum(a * k * np.cos(k * u + phase) for a, k, phase in turns),
        )

    def distance(self, canvas: _Canvas) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) distance from the centre line and (H, W) position along it, in pixels."""
        u, v = _turn(canvas.rows - self.row, canvas.cols - self.col, self.angle)
        line, slope = self.bend(u)
        across = (v - line) / np.sqrt(1 + slope * slope)
        beyond = np.maximum(np.abs(u - self.middle) - self.half_length, 0)
        return np.hypot(across, beyond).astype(np.float32), u

    def point(self, u: float, side: float) -> tuple[float, float, float]:
        """(row, col, direction) of the point at `u` along the road and `side` pixels off it."""
        line, slope = self.bend(u)
        turn = np.arctan(slope)
        a, b = u - side * np.sin(turn), line + side * np.cos(turn)
        row = self.row + a * np.sin(self.angle) + b * np.cos(self.angle)
        col = self.col + a * np.cos(self.angle) - b * np.sin(self.angle)
        return float(row), float(col), float(self.angle + turn)


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A made-up aerial photograph: image (H, W, 3) uint8 and mask (H, W) uint8 of CLASSES; the same seed, the same."""
    if height < 1 or width < 1:
        raise ValueError(f"a scene has at least 1 x 1 pixels, not {height} x {width}")
    rng = np.random.default_rng(seed)
    azimuth = rng.uniform(0.15, 0.85) * np.pi  # shadows fall to the lower half of the picture
    canvas = _Canvas(
        rng=rng,
        image=np.zeros((height, width, 3), np.float32),
        mask=np.zeros((height, width), np.uint8),
        shade=np.zeros((height, width), np.float32),
        rows=np.arange(height, dtype=np.float32)[:, None],
        cols=np.arange(width, dtype=np.float32)[None, :],
        sun=(float(np.sin(azimuth)), float(np.cos(azimuth))),
    )
    edges = _fields(canvas)
    _water(canvas)
    roads = _roads(canvas)
    houses = _houses(canvas, roads)
    trees = _trees(canvas, edges, houses)
    for house in houses:
        _cast_house(canvas, house)
    for tree in trees:
        _cast_tree(canvas, tree)
    canvas.image[...] *= 1 - canvas.shade[..., None] * np.float32([0.56, 0.52, 0.44])  # skylight makes shadows blue
    for house in houses:
        _draw_house(canvas, house)
    leaves = _noise(rng, canvas.mask.shape, 2.2)
    for tree in trees:
        _draw_tree(canvas, tree, leaves)
    return _expose(canvas), canvas.mask


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """(H, W) float32 smooth noise of about unit variance whose bumps are `cell` pixels wide (cubic B-spline)."""
    grid = rng.standard_normal([int(n / cell) + 5 for n in shape], dtype=np.float32) * np.float32(2.1)
    for axis, length in enumerate(shape):
        at = np.arange(length) / cell
        first, t = at.astype(int), (at % 1).astype(np.float32)
        taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        weights = [tap[:, None] if axis == 0 else tap for tap in taps]
        grid = sum(w / np.float32(6) * grid.take(first + k, axis=axis) for k, w in enumerate(weights))
    return grid


def _turn(rows: np.ndarray, cols: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (along, across) in a frame turned by `angle`."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cols * cos + rows * sin, rows * cos - cols * sin


def _fields(canvas: _Canvas) -> np.ndarray:
    """Crop parcels with rows, tramlines and patchy growth; returns the (H, W) bool borders between them."""
    rng, shape = canvas.rng, canvas.mask.shape
    u, v = _turn(canvas.rows, canvas.cols, rng.uniform(0, np.pi))
    u = (u + 9 * _noise(rng, shape, 110)).ravel()
    v = (v + 9 * _noise(rng, shape, 110)).ravel()
    parcel, flat = np.zeros(u.size, np.int32), canvas.image.reshape(-1, 3)
    pending, count = [np.arange(u.size)], 0
    while pending:
        members = pending.pop()
        a, b = u[members], v[members]
        turn = rng.normal(0, 0.09) + (np.pi / 2 if np.ptp(b) > np.ptp(a) else 0.0)
        along, across = _turn(b, a, turn)
        if members.size > rng.uniform(0.6, 1.7) * DENSITY / 13:
            near = along < along.min() + np.ptp(along) * rng.uniform(0.35, 0.65)
            pending += [members[near], members[~near]]
            continue
        count += 1
        parcel[members], flat[members] = count, _crop(rng, across)
    parcel = parcel.reshape(shape)
    patches = 5 * _noise(rng, shape, 40) + 4 * _noise(rng, shape, 9) + 5 * _noise(rng, shape, 3)
    canvas.image[...] *= 1 + patches[..., None] * np.float32([0.009, 0.008, 0.008])
    edges = np.zeros(shape, bool)
    edges[1:] |= parcel[1:] != parcel[:-1]
    edges[:, 1:] |= parcel[:, 1:] != parcel[:, :-1]
    verge = _blur(_blur(edges.astype(np.float32)))
    canvas.cover(np.s_[:, :], np.minimum(verge * 1.6, 0.8), np.float32([104, 110, 72]))
    return edges


def _crop(rng: np.random.Generator, across: np.ndarray) -> np.ndarray:
    """(N, 3) colours of a parcel's pixels from their positions (N,) across its rows."""
    color = np.float32(CROPS[rng.integers(len(CROPS))]) * rng.uniform(0.88, 1.1) + rng.normal(0, 5, 3)
    rows = rng.uniform(1, 9) * np.sin(across * (2 * np.pi / rng.uniform(4, 10)))
    track = np.abs(across % rng.uniform(34, 60) - 8)
    tramline = rng.uniform(0, 16) * ((track > 2) & (track < 4.5))
    return (color + (rows - tramline)[:, None]).astype(np.float32)


def _water(canvas: _Canvas) -> None:
    """A winding river, lakes, or both."""
    rng, (height, width) = canvas.rng, canvas.mask.shape
    level = np.full((height, width), -1e3, np.float32)
    with_river = rng.random() < 0.6
    if with_river:
        waves = tuple((rng.uniform(0.05, 0.1) * k, k, rng.uniform(0, 6.28)) for k in rng.uniform(220, 800, 3))
        river = _Road(
            row=height * rng.uniform(0.2, 0.8), col=width * rng.uniform(0.2, 0.8), angle=rng.uniform(0, np.pi),
            half_width=rng.uniform(15, 26), waves=waves,
        )  # fmt: skip
        level = river.half_width - river.distance(canvas)[0]
    for _ in range(rng.poisson(height * width / DENSITY * (0.4 if with_river else 0.8)) + (not with_river)):
        radius = rng.uniform(45, 85)
        row, col = rng.uniform(0.05, 0.95, 2) * (height, width)
        along, across = _turn(canvas.rows - row, canvas.cols - col, rng.uniform(0, np.pi))
        level = np.maximum(level, radius - np.hypot(along * rng.uniform(0.6, 0.95), across * 1.15))
    level += 4 * _noise(rng, level.shape, 45) + 1.2 * _noise(rng, level.shape, 12)
    bank = np.clip(1 - np.abs(level + 3) / 5, 0, 1) * 0.8
    canvas.cover(np.s_[:, :], bank, np.float32([112, 106, 80]))
    depth = np.clip(level / 30, 0, 1)[..., None]
    tint = rng.uniform(0.8, 1.25)
    color = np.float32([70, 84, 72]) * (1 - depth) + np.float32([42, 62, 70]) * depth
    ripples = _noise(rng, level.shape, 3) * 1.6 + _noise(rng, level.shape, 60) * 3
    glint = np.clip(_noise(rng, level.shape, 90) - 1.1, 0, 1) * 40
    canvas.cover(np.s_[:, :], np.clip(level + 0.5, 0, 1), color * tint + (ripples + glint)[..., None], WATER)


def _roads(canvas: _Canvas) -> list[_Road]:
    """Two families of through roads and the streets that leave them, drawn; minor ones first, under the others."""
    rng, (height, width) = canvas.rng, canvas.mask.shape
    heading, spacing, roads = rng.uniform(0, np.pi), 430, []
    for turn in (0.0, np.pi / 2 + rng.normal(0, 0.2)):
        angle = heading + turn
        for k in range(-int(np.hypot(height, width) / spacing / 2), int(np.hypot(height, width) / spacing / 2) + 1):
            shift = (k + rng.uniform(-0.3, 0.3)) * spacing
            roads.append(_through_road(rng, height / 2 + shift * np.cos(angle), width / 2 - shift * np.sin(angle), angle))
    inside = [(road, *road.point(u, 0)) for road in roads for u in np.arange(-height - width, height + width, 60.0)]
    inside = [(road, row, col, way) for road, row, col, way in inside if 0 <= row < height and 0 <= col < width]
    for _ in range(round(3 * height * width / DENSITY) if inside else 0):
        road, row, col, way = inside[rng.integers(len(inside))]
        length, side = rng.uniform(60, 110), rng.choice([-1.0, 1.0])
        roads.append(_Road(
            row=row, col=col, angle=way + np.pi / 2 + rng.normal(0, 0.12), half_width=rng.uniform(4.2, 5.2),
            waves=((rng.uniform(2, 10), rng.uniform(160, 300), rng.uniform(0, 6.28)),),
            middle=side * length, half_length=length,
        ))  # fmt: skip
    for road in sorted(roads, key=lambda road: road.half_width):
        _draw_road(canvas, road)
    return roads


def _through_road(rng: np.random.Generator, row: float, col: float, angle: float) -> _Road:
    """A road from edge to edge through (row, col)."""
    waves = tuple((rng.uniform(0.01, 0.045) * k, k, rng.uniform(0, 6.28)) for k in rng.uniform(260, 900, 2))
    return _Road(row=row, col=col, angle=angle, half_width=rng.uniform(5.5, 9), waves=waves)


def _draw_road(canvas: _Canvas, road: _Road) -> None:
    """Tarmac with worn wheel tracks, a verge, and a dashed centre line where it is wide."""
    rng, (distance, u) = canvas.rng, road.distance(canvas)
    place = _bounds(distance < road.half_width + 6)
    distance, u, half = distance[place], u[place], road.half_width
    verge = np.clip(1 - (distance - half) / 4, 0, 1) * 0.6
    canvas.cover(place, verge, np.float32([132, 128, 96]) * rng.uniform(0.85, 1.1))
    color = np.float32([128, 127, 126]) * rng.uniform(0.8, 1.25) + rng.normal(0, 4, 3)
    wear = 9 * np.cos(distance * (2 * np.pi / half)) + 5 * _noise(rng, distance.shape, 35) + 3 * _noise(rng, u.shape, 3)
    surface = (color - np.where(wear > 0, wear * 0.6, wear)[..., None]).astype(np.float32)
    canvas.cover(place, np.clip(half - distance + 0.5, 0, 1), surface, ROAD)
    if half > 6.5:
        dash = np.clip(1.1 - distance, 0, 1) * (u % 22 < 13) * 0.75
        canvas.cover(place, dash, np.float32([214, 212, 200]))


def _bounds(hit: np.ndarray) -> tuple[slice, slice]:
    """The smallest rectangle that holds every True of (H, W)."""
    spans = []
    for axis in (1, 0):
        found = np.flatnonzero(hit.any(axis=axis))
        spans.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))
    return spans[0], spans[1]


@dataclass(frozen=True, kw_only=True)
class _House:
    """One or two rectangles (centre offsets p, q and half sizes a, b in a frame turned by `angle`) under a roof."""

    row: float
    col: float
    angle: float
    wings: tuple[tuple[float, float, float, float], ...]
    height: float
    roof: str
    color: np.ndarray

    @property
    def reach(self) -> float:
        """Pixels from the centre that the house may touch."""
        return max(np.hypot(abs(p) + a, abs(q) + b) for p, q, a, b in self.wings) + 2

    def outside(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Distance to the outer wall of points given relative to the centre, negative inside."""
        along, across = _turn(rows, cols, self.angle)
        walls = [np.maximum(np.abs(along - p) - a, np.abs(across - q) - b) for p, q, a, b in self.wings]
        return np.minimum.reduce(walls)


def _houses(canvas: _Canvas, roads: list[_Road]) -> list[_House]:
    """Houses along the roads, close together in villages; each stands free of roads, water and its neighbours."""
    rng, (height, width) = canvas.rng, canvas.mask.shape
    taken = _blur((canvas.mask != FIELD).astype(np.float32), 2) > 0.05
    sites = [(road, u) for road in roads for u in np.arange(-height - width, height + width, 34.0)]
    sites = [(road, u) for road, u in sites if abs(u - road.middle) < road.half_length]
    sites = [(road, u, *road.point(u, 0)) for road, u in sites]
    sites = [site for site in sites if -30 < site[2] < height + 30 and -30 < site[3] < width + 30]
    villages = rng.integers(len(sites), size=round(1 + 1.2 * height * width / DENSITY)) if sites else ()
    houses = []
    for road, u, row, col, _ in sites:
        near = min(np.hypot(row - sites[k][2], col - sites[k][3]) for k in villages)
        for side in (-1.0, 1.0):
            if rng.random() < 0.12 + 0.85 * np.exp(-((near / 170) ** 2)):
                house = _house(rng, road, u + rng.uniform(-7, 7), side)
                place, rows, cols = canvas.around(house.row, house.col, house.reach + 4)
                walls = house.outside(rows, cols)
                if walls.size and not taken[place][walls < 4].any():
                    taken[place] |= walls < 4
                    houses.append(house)
    for house in houses:
        _draw_yard(canvas, house)
    return houses


def _house(rng: np.random.Generator, road: _Road, u: float, side: float) -> _House:
    """A dwelling, or now and then a large flat-roofed hall, beside the road."""
    hall = rng.random() < 0.14
    a, b = (rng.uniform(24, 38), rng.uniform(15, 22)) if hall else (rng.uniform(11, 17), rng.uniform(8, 11.5))
    wings = ((0.0, 0.0, a, b),)
    if not hall and rng.random() < 0.35:
        deep = rng.uniform(8, 13)
        wings += ((rng.choice([-1.0, 1.0]) * (a - 8), side * deep, 8.0, deep),)
    along = hall or rng.random() < 0.75
    setback = road.half_width + (b if along else a) + rng.uniform(7, 16)
    row, col, way = road.point(u, side * setback)
    return _House(
        row=row, col=col, angle=way + rng.normal(0, 0.05) + (0 if along else np.pi / 2), wings=wings,
        height=rng.uniform(7, 12), roof="flat" if hall else rng.choice(["gable", "gable", "hip", "flat"]),
        color=np.float32(ROOFS[rng.integers(4 if hall else 0, 7 if hall else 6)]) + rng.normal(0, 7, 3),
    )  # fmt: skip


def _draw_yard(canvas: _Canvas, house: _House) -> None:
    """A garden or a gravel yard around the house; it stays labelled as open land."""
    rng = canvas.rng
    place, rows, cols = canvas.around(house.row, house.col, house.reach + 26)
    gravel = rng.random() < 0.3
    reach = 6 if gravel else rng.uniform(12, 22)
    alpha = np.clip((reach - house.outside(rows, cols)) / 2, 0, 1) * (canvas.mask[place] == FIELD) * 0.85
    color = np.float32([158, 152, 138] if gravel else [112, 138, 78]) * rng.uniform(0.88, 1.1)
    canvas.cover(place, alpha, color + 4 * _noise(rng, alpha.shape, 2.5)[..., None])


def _cast_house(canvas: _Canvas, house: _House) -> None:
    """The shadow: the outline swept along the ground."""
    place, rows, cols = canvas.around(house.row, house.col, house.reach + house.height)
    steps = np.arange(0, house.height, 1.5)
    shifted = [house.outside(rows - s * canvas.sun[0], cols - s * canvas.sun[1]) for s in steps]
    _darken(canvas, place, np.clip(0.5 - np.minimum.reduce(shifted), 0, 1))


def _darken(canvas: _Canvas, place: tuple, amount: np.ndarray) -> None:
    np.maximum(canvas.shade[place], amount, out=canvas.shade[place])


def _draw_house(canvas: _Canvas, house: _House) -> None:
    """Roof faces lit by their slope, with courses of tiles, a ridge or a parapet, and a few things on top."""
    rng = canvas.rng
    place, rows, cols = canvas.around(house.row, house.col, house.reach)
    along, across = _turn(rows, cols, house.angle)
    sun_across, sun_along = _turn(*canvas.sun, house.angle)[::-1]
    for p, q, a, b in reversed(house.wings):
        x, y = along - p, across - q
        swap = b > a
        slope, facing = (x, sun_along) if swap else (y, sun_across)
        light = 1 - 0.24 * np.clip(slope, -1, 1) * facing
        if house.roof == "hip":
            ends = (b - np.abs(y) if swap else a - np.abs(x)) < (a - np.abs(x) if swap else b - np.abs(y))
            light = np.where(ends, 1 - 0.24 * np.sign(y if swap else x) * (sun_across if swap else sun_along), light)
        if house.roof == "flat":
            rim = np.maximum(np.abs(x) - a, np.abs(y) - b) > -2.2
            light = np.where(rim, 1.13, 0.97)
        courses = 0.03 * np.sin((x if swap else y) * 2.4) * (house.roof != "flat")
        grain = 0.03 * _noise(rng, x.shape, 2.5) + 0.03 * _noise(rng, x.shape, 12)
        color = house.color * (light + courses + grain)[..., None]
        if house.roof != "flat":
            color = color + 26 * (np.abs(slope) < 0.9)[..., None]
        alpha = np.clip(0.5 - np.maximum(np.abs(x) - a, np.abs(y) - b), 0, 1)
        canvas.cover(place, alpha, color.astype(np.float32), BUILDING)
        for _ in range(rng.integers(1, 4)):  # chimneys, skylights, vents
            dx, dy = rng.uniform(-0.7, 0.7) * a, rng.uniform(-0.6, 0.6) * b
            box = np.clip(rng.uniform(1.2, 2.4) - np.maximum(np.abs(x - dx), np.abs(y - dy)), 0, 1)
            canvas.cover(place, box * 0.8, np.float32(rng.choice([[60, 62, 66], [206, 206, 202], [120, 78, 66]])))


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """A crown: a disc of `radius` with lobes."""

    row: float
    col: float
    radius: float
    lobes: tuple[float, float, float]  # (phase of 3, phase of 5, depth)
    color: np.ndarray

    def dome(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Distance from the trunk over the crown's radius in that direction: 1 on the outline."""
        turn = np.arctan2(rows, cols)
        one, two, depth = self.lobes
        edge = 1 + depth * (np.sin(3 * turn + one) + 0.7 * np.sin(5 * turn + two))
        return np.hypot(rows, cols) / (self.radius * edge)


def _trees(canvas: _Canvas, edges: np.ndarray, houses: list[_House]) -> list[_Tree]:
    """Woods, hedgerows on parcel borders, garden trees and single trees; none on roads, water or roofs."""
    rng, shape = canvas.rng, canvas.mask.shape
    free = _blur((canvas.mask != FIELD).astype(np.float32), 3) < 0.02
    for house in houses:
        place, rows, cols = canvas.around(house.row, house.col, house.reach + 6)
        free[place] &= house.outside(rows, cols) > 5
    wood = _noise(rng, shape, 95)
    spots = [rng.uniform(0, 1, (n, 2)) * shape for n in [round(shape[0] * shape[1] / k) + 2 for k in (60, 9000)]]
    spots[0] = spots[0][wood[tuple(spots[0].astype(int).T)] > np.quantile(wood, 0.9)]
    hedge = np.argwhere(edges & (_noise(rng, shape, 50) > 0.5))
    spots.append(hedge[rng.random(len(hedge)) < 0.1] + rng.normal(0, 1.5, (1, 2)))
    spots += [(house.row, house.col) + rng.normal(0, 30, (rng.integers(0, 4), 2)) for house in houses]
    inside = [spot for spot in np.concatenate(spots) if all(0 <= v < n for v, n in zip(spot, shape))]
    hue = _noise(rng, shape, 60)
    return [_tree(rng, spot, hue[tuple(spot.astype(int))]) for spot in inside if free[tuple(spot.astype(int))]]


def _tree(rng: np.random.Generator, spot: np.ndarray, hue: float) -> _Tree:
    kind = int(np.clip(2 + 1.3 * hue + rng.normal(0, 0.8), 0, len(CROWNS) - 1))
    return _Tree(
        row=float(spot[0]), col=float(spot[1]), radius=rng.uniform(6, 11),
        lobes=(rng.uniform(0, 6.28), rng.uniform(0, 6.28), rng.uniform(0.05, 0.11)),
        color=np.float32(CROWNS[kind]) * rng.uniform(0.85, 1.15),
    )  # fmt: skip


def _cast_tree(canvas: _Canvas, tree: _Tree) -> None:
    """The crown's shadow."""
    shift = tree.radius * 0.8
    place, rows, cols = canvas.around(
        tree.row + shift * canvas.sun[0], tree.col + shift * canvas.sun[1], tree.radius * 1.3
    )
    _darken(canvas, place, np.clip((1 - tree.dome(rows, cols)) * 4, 0, 1))


def _draw_tree(canvas: _Canvas, tree: _Tree, leaves: np.ndarray) -> None:
    """A leafy dome, bright towards the sun."""
    place, rows, cols = canvas.around(tree.row, tree.col, tree.radius * 1.3)
    dome = tree.dome(rows, cols)
    facing = -(rows * canvas.sun[0] + cols * canvas.sun[1]) / tree.radius
    light = 0.92 + 0.32 * facing - 0.28 * dome**2 + 0.11 * leaves[place]
    alpha = np.clip((1 - dome) * tree.radius + 0.5, 0, 1)
    canvas.cover(place, alpha, (tree.color * np.maximum(light, 0.25)[..., None]).astype(np.float32), TREE)


def _expose(canvas: _Canvas) -> np.ndarray:
    """The camera: uneven light, the colour cast of the day, haze, a slightly soft lens, sensor noise; (H, W, 3) uint8."""
    rng, shape = canvas.rng, canvas.mask.shape
    image = canvas.image * (1 + 0.05 * _noise(rng, shape, 260))[..., None]
    image = image * np.float32(rng.uniform(0.92, 1.1) * rng.uniform(0.96, 1.04, 3)) + np.float32(rng.uniform(0, 14))
    image = _blur(image) + rng.standard_normal((*shape, 3), dtype=np.float32) * np.float32(2.2)
    image += rng.standard_normal((*shape, 1), dtype=np.float32) * np.float32(2.2)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray, times: int = 1) -> np.ndarray:
    """A binomial (1 2 1) / 4 blur of both axes; edges are repeated."""
    for _ in range(times):
        for axis in (0, 1):
            ends = [(1, 1) if k == axis else (0, 0) for k in range(image.ndim)]
            padded, n = np.pad(image, ends, mode="edge"), image.shape[axis]
            first, mid, last = (np.take(padded, range(k, k + n), axis) for k in range(3))
            image = (first + 2 * mid + last) / np.float32(4)
    return image
