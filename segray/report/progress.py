"""How a training went, as its page shows it: curves of several classes, where the time went, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segray.masks import Classes
from segray.report.charts import Axes, Frame
from segray.report.wording import duration, is_number, percent

MOST_LINES = 30  # classes in one chart; more could not be told apart
COLORS = {  # of the stages, the largest first in most trainings
    "steps": (76, 120, 200),
    "validation": (63, 156, 106),
    "waiting for data": (224, 150, 40),
    "publishing": (176, 92, 192),
}
Rows = Sequence[dict]

STYLE = """
svg .line { stroke-width: 1.6; }
svg .rim { stroke: #888; stroke-width: 2.8; }
.charts .legend { margin: 6px 0 8px; font-size: 13px; }
"""

PROGRESS = """
{% for chart in plots %}
<figure>
<figcaption>{{ chart.title }}</figcaption>
<svg viewBox="0 0 {{ chart.width }} {{ chart.height }}" role="img" aria-label="{{ chart.title }} by epoch">
{{ axes(chart, chart.bottom) }}
{% for points, color, hint in chart.areas %}
<polygon points="{{ points }}" style="fill: {{ rgb(color) }}"><title>{{ hint }}</title></polygon>
{% endfor %}
{% for points, color, hint in chart.lines %}
<polyline class="rim" points="{{ points }}"></polyline>
<polyline class="line" points="{{ points }}" style="stroke: {{ rgb(color) }}"><title>{{ hint }}</title></polyline>
{% endfor %}
</svg>
<ul class="legend">
{% for _, color, hint in chart.areas or chart.lines %}
<li>{{ swatch(color) }}{{ hint }}</li>
{% endfor %}
</ul>
</figure>
{% endfor %}
"""


@dataclass(frozen=True, kw_only=True)
class Plot(Frame):
    """Lines or areas of several colours: (points in SVG units, colour, what it is)."""

    lines: Sequence[tuple[str, tuple[int, int, int], str]] = ()
    areas: Sequence[tuple[str, tuple[int, int, int], str]] = ()


def class_plot(classes: Classes, history: Rows) -> Plot | None:
    """The IoU of each class by epoch, in the colours of the legend; None for too many classes or under two epochs."""
    names = list(zip(classes.names, classes.colors))
    rows = [row for row in history if row.get("val_iou")]
    series = [
        [(row["epoch"], row["val_iou"][k]) for row in rows if is_number(row["val_iou"][k])] for k in range(len(names))
    ]
    longest = max(map(len, series), default=0)
    if longest < 2 or len(names) > MOST_LINES:
        return None
    epochs = [epoch for points in series for epoch, _ in points]
    highest = max(value for points in series for _, value in points)
    axes = Axes(min(epochs), max(epochs), 0.0, highest or 1.0)
    lines = [
        (axes.points(points), color, f"{name} {percent(points[-1][1])}")
        for (name, color), points in zip(names, series)
        if points
    ]
    return Plot(title="Validation IoU by class", x_ticks=axes.x_ticks, y_ticks=axes.y_ticks, lines=lines)


def stage_plot(history: Rows) -> Plot | None:
    """The seconds of each epoch as stacked stages, and the share of each stage in all epochs; None without an epoch."""
    rows = [row for row in history if row.get("stage_seconds")]
    if not rows:
        return None
    totals = [sum(row["stage_seconds"].values()) for row in rows]
    axes, total = Axes(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5, 0.0, max(totals) or 1.0), sum(totals)
    below, areas = [0.0] * len(rows), []
    for stage, color in COLORS.items():
        seconds = [row["stage_seconds"].get(stage, 0.0) for row in rows]
        below = [low + more for low, more in zip(below, seconds)]
        steps = [(row["epoch"] + side, top) for row, top in zip(rows, below) for side in (-0.5, 0.5)]
        outline = [(steps[0][0], 0.0), *steps, (steps[-1][0], 0.0)]
        share = percent(sum(seconds) / total if total else None)
        areas.append((axes.points(outline), color, f"{stage} {share}, {duration(sum(seconds))}"))
    # each area reaches down to 0, where those drawn later cover it
    return Plot(title="Seconds per epoch", x_ticks=axes.x_ticks, y_ticks=axes.y_ticks, areas=areas[::-1])
