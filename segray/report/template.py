"""The one template of all pages; sections that a page has no data for are left out."""

from __future__ import annotations

from segray.report import progress, quality, viewer

STYLE = """
:root { color-scheme: light dark; --page: #fff; --panel: #f6f7f9; --line: #e2e5ea; --text: #1b2027; --quiet: #5a6472;
  --accent: #2457c5; --hatch: #e0e4e9; --tall: 560px; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 48px 28px 64px; }
h1 { font-size: 28px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; margin: 0; }
h2 { font-size: 18px; font-weight: 650; margin: 0 0 14px; break-after: avoid; }
section { margin-top: 44px; }
p { margin: 6px 0; }
.quiet, figcaption, small { color: var(--quiet); }
.mono { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 28px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.card b { display: block; font-size: 23px; line-height: 1.3; font-weight: 600; }
.card span { font-size: 13px; color: var(--quiet); display: block; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 7px; border-radius: 3px; flex: none;
  border: 1px solid #8886; vertical-align: -1px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 16px; padding: 0; list-style: none;
  font-size: 14px; }
.bars { columns: 440px; column-gap: 40px; margin: 0; padding: 0; list-style: none; }
.bars li { display: grid; break-inside: avoid; padding: 3px 0;
  grid-template-columns: minmax(0, 9em) 1fr 4.4em 5.2em; gap: 10px; align-items: center; }
.bar { display: block; height: 12px; border-radius: 3px; background: var(--panel); min-width: 60px; }
.bar i { display: block; height: 100%; border-radius: 3px; border: 1px solid #8886; }
.bar i.none { border: 0; }
.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { font-weight: 600; text-align: left; }
thead th { color: var(--quiet); font-size: 13px; vertical-align: bottom; }
td, th { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th.right, td.right { text-align: right; }
.facts th { width: 13em; font-weight: 400; color: var(--quiet); }
.scores td, .scores tbody th { vertical-align: middle; }
.scores tbody th, .matrix tbody th { font-weight: 400; }
.scores .wide { width: 30%; }
.scores th:first-child { min-width: 9em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(310px, 100%), 1fr)); gap: 24px; }
.charts figure, .picture { margin: 0; break-inside: avoid; }
.charts figcaption { font-size: 14px; font-weight: 600; color: var(--text); margin-bottom: 6px; }
svg { display: block; width: 100%; max-width: 520px; height: auto; font-size: 11px; }
svg text { fill: var(--quiet); }
svg .grid { stroke: var(--line); }
svg .best { stroke: var(--quiet); stroke-dasharray: 3 3; }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg circle { fill: var(--accent); }
.picture { margin-bottom: 34px; }
.quiet + .picture { margin-top: 16px; }
.picture figcaption { margin-bottom: 8px; }
.picture figcaption .mono { color: var(--text); }
.panes { display: grid; grid-template-columns: repeat(var(--panes), minmax(0, 1fr)); gap: 10px; }
.pane { font-size: 13px; color: var(--quiet); }
.pane img { display: block; width: min(100%, calc(var(--tall) * var(--ratio))); height: auto; border-radius: 4px;
  margin-bottom: 4px; }
.pane img.ids { image-rendering: pixelated; }
.pane img.ids, .hatch { background: repeating-linear-gradient(45deg, var(--hatch) 0 5px, var(--page) 5px 10px); }
details { border-bottom: 1px solid var(--line); padding: 9px 0; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 3.5em; font-variant-numeric: tabular-nums; }
details ul { columns: 460px; margin: 8px 0 4px; padding-left: 4.6em; list-style: none; }
details li { break-inside: avoid; }
footer { margin-top: 56px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 13px; color: var(--quiet); }
@media screen and (prefers-color-scheme: dark) { :root { --page: #12151a; --panel: #1b2027; --line: #2c333d;
  --text: #e7eaee; --quiet: #9ba5b3; --accent: #7ea6ff; --hatch: #252c35; } }
@media (max-width: 640px) { main { padding: 28px 16px 40px; } .panes { grid-template-columns: repeat(2, 1fr); }
  .bars li { grid-template-columns: minmax(0, 8em) 1fr 4.4em; } .bars .pixels { display: none; } }
@media print { body { font-size: 12px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } section { margin-top: 28px; } .card, tr { break-inside: avoid; }
  :root { --tall: 300px; } .scores .wide { display: none; } }
"""

PAGE = (
    """
{% macro rgb(color) %}rgb({{ color | join(", ") }}){% endmacro %}
{% macro swatch(color) %}<i class="swatch" style="background: {{ rgb(color) }}"></i>{% endmacro %}
{% macro bar(length, color) %}
<span class="bar"><i{% if not length %} class="none"{% endif %}
 style="width: {{ "%.2f" | format(100 * length) }}%; background: {{ rgb(color) }}"></i></span>
{% endmacro %}
{% macro axes(chart, floor) %}
{% for y, label in chart.y_ticks %}
<line class="grid" x1="{{ chart.left }}" x2="{{ chart.right }}" y1="{{ y }}" y2="{{ y }}"></line>
<text x="{{ chart.left - 8 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
{% for x, label in chart.x_ticks %}
<text x="{{ x }}" y="{{ floor + 18 }}" text-anchor="middle">{{ label }}</text>
{% endfor %}
{% endmacro %}
{% macro legend_of(entries) %}
{% for name, color in entries %}
<li>{{ swatch(color) }}{{ name }}</li>
{% endfor %}
{% endmacro %}
{% macro rows_of(pictures) %}
{% for picture in pictures %}
<figure class="picture">
<figcaption><span class="mono">{{ picture.title }}</span>
{% if picture.note %}
<br>{{ picture.note }}
{% endif %}
</figcaption>
<div class="panes" style="--panes: {{ picture.panes | length }}">
{% for pane in picture.panes %}
<div class="pane"><img src="{{ pane.uri }}" width="{{ pane.width }}" height="{{ pane.height }}"
 style="--ratio: {{ "%.4f" | format(pane.width / pane.height) }}"
 alt="{{ pane.label }} of {{ picture.title }}"{% if pane.ids %} class="ids"{% endif %}>{{ pane.label }}</div>
{% endfor %}
</div>
</figure>
{% endfor %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'
{%- if viewer %}; script-src '{{ viewer_hash }}'{% endif %}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>"""
    + STYLE
    + viewer.STYLE
    + quality.STYLE
    + progress.STYLE
    + """</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
{% if lead %}
<p class="quiet">{{ lead }}</p>
{% endif %}
</header>
<div class="cards">
{% for label, value, note in cards %}
<div class="card"><span>{{ label }}</span><b>{{ value }}</b><span>{{ note }}</span></div>
{% endfor %}
</div>
"""
    + viewer.VIEWER
    + """
{% if charts %}
<section>
<h2>Curves</h2>
<div class="charts">
{% for chart in charts %}
<figure>
<figcaption>{{ chart.title }}</figcaption>
<svg viewBox="0 0 {{ chart.width }} {{ chart.height }}" role="img" aria-label="{{ chart.title }} by epoch">
{{ axes(chart, chart.bottom) }}
{% if chart.best %}
<line class="best" x1="{{ chart.best[0] }}" x2="{{ chart.best[0] }}"
 y1="{{ chart.top }}" y2="{{ chart.bottom }}"></line>
{% endif %}
<polyline points="{{ chart.path }}"></polyline>
{% for x, y, hint in chart.dots %}
<circle cx="{{ x }}" cy="{{ y }}" r="2.5"><title>{{ hint }}</title></circle>
{% endfor %}
{% if chart.best %}
<circle cx="{{ chart.best[0] }}" cy="{{ chart.best[1] }}" r="5"><title>best {{ chart.best[2] }}</title></circle>
{% endif %}
</svg>
</figure>
{% endfor %}
"""
    + progress.PROGRESS
    + """
</div>
<p class="quiet">By epoch. The dashed line marks the epoch of the best validation mean IoU, whose weights are the model.
IoU values below the curves are those of the last epoch.</p>
</section>
{% endif %}
{% if shares %}
<section>
<h2>Classes</h2>
<ul class="bars">
{% for row in shares %}
<li><span>{{ swatch(row.color) }}{{ row.name }}</span>{{ bar(row.bar, row.color) }}
<span class="right">{{ row.share }}</span><span class="right quiet pixels">{{ row.pixels }}</span></li>
{% endfor %}
</ul>
</section>
{% endif %}
{% if scores %}
<section>
<h2>{{ score_title or "Classes" }}</h2>
<div class="scroll">
<table class="scores">
<thead><tr><th>Class</th><th class="wide"></th>
{% for name in score_names %}
<th class="right">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in scores %}
<tr><th>{{ swatch(row.color) }}{{ row.name }}</th><td class="wide">{{ bar(row.bar, row.color) }}</td>
{% for cell in row.cells %}
<td class="right">{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
"""
    + quality.QUALITY
    + """
{% if pictures or not (shares or scores) %}
<section>
<h2>{{ "Pictures" if pictures else "Legend" }}</h2>
<ul class="legend">
{{ legend_of(legend) }}
{% if pictures and error_legend %}
{{ legend_of(error_legend) }}
{% endif %}
<li><i class="swatch hatch"></i>no class</li>
{% if pictures and error_legend %}
<li class="quiet">Errors have the colour of the class that was predicted.</li>
{% endif %}
</ul>
{{ rows_of(pictures) }}
</section>
{% endif %}
{% if reasons %}
<section>
<h2>Why</h2>
<p class="quiet">The tile with the most errors in each of these images, and the evidence for the most frequent error, as
the deepest features of the network have it: red speaks for the predicted class, blue for the true one.</p>
{{ rows_of(reasons) }}
</section>
{% endif %}
{% if failed %}
<section>
<h2>Failed images: {{ "{:,}".format(failed) }} ({{ failed_share }})</h2>
{% if failures.listed < failed %}
<p class="quiet">Only the first {{ "{:,}".format(failures.listed) }} by name are listed; the mask shards hold the
reasons for all.</p>
{% endif %}
{% for group in failures.groups %}
<details{% if loop.first %} open{% endif %}>
<summary><b>{{ group.count }}</b> {{ group.reason }}</summary>
<ul class="mono">
{% for image in group.images %}
<li>{{ image }}</li>
{% endfor %}
{% if group.others %}
<li>and {{ group.others }} more</li>
{% endif %}
</ul>
</details>
{% endfor %}
{% if failures.more %}
<p class="quiet">and {{ "{:,}".format(failures.more) }} more reasons</p>
{% endif %}
</section>
{% endif %}
{% for name, rows in tables if rows %}
<section>
<h2>{{ name }}</h2>
<table class="facts">
<tbody>
{% for key, value in rows %}
<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody>
</table>
</section>
{% endfor %}
<footer>Written by segray, {{ now }}.</footer>
</main>
</body>
</html>
"""
)
