"""Charts of a page: curves and reliability diagrams, in SVG units, ready to be drawn by the template."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from segray.report.wording import is_number, number, percent, pixels

WIDTH, HEIGHT = 368, 200  # SVG units, as are the margins
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 26
MOST_DOTS = 100  # a longer curve is drawn without dots
SIDE, SHARES, BETWEEN = WIDTH - LEFT - RIGHT, 56, 16  # of a reliability diagram: its square, the bars below, the gap


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is around a chart. ticks: (place, label), in SVG units."""

    title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    right: int = WIDTH - RIGHT
    left: int = LEFT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, kw_only=True)
class Chart(Frame):
    """A curve. path: its points as SVG writes them; dots, best: (x, y, hint), in SVG units."""

    path: str
    dots: list[tuple[float, float, str]]
    best: tuple[float, float, str] | None


class Axes:
    """Epochs from left to right, values from the bottom up, in SVG units."""

    def __init__(self, first: float, last: float, lowest: float, highest: float) -> None:
        self.first, self.span = first, last - first
        y_ticks = ticks(lowest, highest, count=4)
        self.low, self.height = y_ticks[0], y_ticks[-1] - y_ticks[0]
        whole = ticks(math.ceil(first), math.floor(last), count=6, whole=True)
        self.x_ticks = [(self.x(x), number(x)) for x in whole if first <= x <= last]
        self.y_ticks = [(self.y(y), label) for y, label in zip(y_ticks, labels(y_ticks))]

    def x(self, epoch: float) -> float:
        """The place of an epoch."""
        return round(LEFT + (epoch - self.first) / self.span * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """The place of a value."""
        return round(HEIGHT - BOTTOM - (value - self.low) / self.height * (HEIGHT - TOP - BOTTOM), 1)

    def points(self, values: Iterable[tuple[float, float]]) -> str:
        """(epoch, value) pairs as the points of a line."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in values)


def line_chart(title: str, values: Iterable[tuple[int, float | None]], *, best: int | None) -> Chart | None:
    """The curve of (epoch, value) pairs, missing values left out; None when there is nothing to draw.

    best: the epoch to mark.
    """
    points = sorted(((epoch, value) for epoch, value in values if is_number(value)), key=lambda point: point[0])
    if not points:
        return None
    first, last, values = points[0][0], points[-1][0], [y for _, y in points]
    alone = 0.5 * (first == last)  # a single epoch lies in the middle
    axes = Axes(first - alone, last + alone, min(values), max(values))
    dots = [(axes.x(x), axes.y(y), f"epoch {x}: {number(y)}") for x, y in points]
    marked = [dot for dot, (epoch, _) in zip(dots, points) if epoch == best]
    return Chart(
        title=title,
        path=axes.points(points),
        dots=dots if len(dots) <= MOST_DOTS else [],
        x_ticks=axes.x_ticks,
        y_ticks=axes.y_ticks,
        best=marked[-1] if marked else None,
    )


def ticks(low: float, high: float, *, count: int, whole: bool = False) -> list[float]:
    """At least two round values, 1, 2 or 5 times a power of ten apart, that enclose low..high; about `count`.

    whole: low and high are integers, and so are the values.
    """
    span = high - low
    if span <= max(abs(high) * 1e-9, 1e-12):  # a flat curve lies in the middle of its chart
        span = abs(high) if abs(high) > 1e-12 else 1.0
        low, high = low - span / 2, high + span / 2
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor * count >= span)
    if whole:
        step = max(1, round(step))
    places = range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    return [place * step if whole else float(f"{place * step:.12g}") for place in places]


def labels(values: list[float]) -> list[str]:
    """The values with enough digits to tell them apart, at least three."""
    texts = ([number(value, digits) for value in values] for digits in range(3, 10))
    return next((found for found in texts if len(set(found)) == len(values)), [number(value) for value in values])


@dataclass(frozen=True, kw_only=True)
class Reliability(Frame):
    """A reliability diagram, in SVG units.

    bars: (x, y, width, height, hint) for the accuracy in each bin of confidence; shares: the same for its share of the
    pixels, drawn below. dots: (x, y) of mean confidence and accuracy. ticks: the same on both axes.
    """

    bars: list[tuple[float, float, float, float, str]]
    shares: list[tuple[float, float, float, float, str]]
    dots: list[tuple[float, float]]
    bottom: int = TOP + SIDE
    floor: int = TOP + SIDE + BETWEEN + SHARES
    width: int = WIDTH + 8  # the last label is wider than the margin
    height: int = TOP + SIDE + BETWEEN + SHARES + BOTTOM


def reliability_chart(title: str, bins: Iterable[dict]) -> Reliability:
    """The diagram of bins as `calibration.calibration_scores` gives them; those without pixels are left out."""
    filled = [row for row in bins if row["pixels"]]
    total, most = sum(row["pixels"] for row in filled), max((row["pixels"] for row in filled), default=1)
    bars, shares, dots = [], [], []
    for row in filled:
        x, width = round(LEFT + row["low"] * SIDE + 1, 1), round((row["high"] - row["low"]) * SIDE - 2, 1)
        share = f"{percent(row['pixels'] / total)} of the pixels, {pixels(row['pixels'])}"
        hint = f"confidence {percent(row['confidence'])}, accuracy {percent(row['accuracy'])}: {share}"
        for bars_of, height, floor in (
            (bars, row["accuracy"] * SIDE, Reliability.bottom),
            (shares, row["pixels"] / most * SHARES, Reliability.floor),
        ):
            bars_of.append((x, round(floor - height, 1), width, round(height, 1), hint))
        dots.append((round(LEFT + row["confidence"] * SIDE, 1), round(TOP + (1 - row["accuracy"]) * SIDE, 1)))
    marks = [(step / 5, f"{20 * step}%") for step in range(6)]
    return Reliability(
        title=title,
        bars=bars,
        shares=shares,
        dots=dots,
        x_ticks=[(round(LEFT + share * SIDE, 1), label) for share, label in marks],
        y_ticks=[(round(TOP + (1 - share) * SIDE, 1), label) for share, label in marks],
    )
