"""Line charts of a page: points and ticks in SVG units, ready to be drawn by the template."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from segray.report.wording import is_number, number

WIDTH, HEIGHT = 360, 200  # SVG units, as are the margins
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 26
MOST_DOTS = 100  # a longer curve is drawn without dots


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A curve. path: (x, y) in SVG units; ticks: (place in SVG units, label); best: index into dots or None."""

    title: str
    path: str
    dots: list[tuple[float, float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best: tuple[float, float, str] | None
    right: int = WIDTH - RIGHT
    left: int = LEFT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(title: str, values: Iterable[tuple[int, float | None]], *, best: int | None) -> Chart | None:
    """The curve of (epoch, value) pairs, missing values left out; None when there is nothing to draw.

    best: the epoch to mark.
    """
    points = sorted(((epoch, value) for epoch, value in values if is_number(value)), key=lambda point: point[0])
    if not points:
        return None
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), count=4)
    x_first, x_last = points[0][0], points[-1][0]
    x_low, x_high = (x_first, x_last) if x_first < x_last else (x_first - 1, x_first + 1)
    x_ticks = ticks(x_low, x_high, count=6, whole=True)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    dots = [(x_at(x), y_at(y), f"epoch {x}: {number(y)}") for x, y in points]
    marked = [dot for dot, (epoch, _) in zip(dots, points) if epoch == best]
    return Chart(
        title=title,
        path=" ".join(f"{x},{y}" for x, y, _ in dots),
        dots=dots if len(dots) <= MOST_DOTS else [],
        x_ticks=[(x_at(x), number(x)) for x in x_ticks if x_first <= x <= x_last],
        y_ticks=[(y_at(y), number(y)) for y in y_ticks],
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
