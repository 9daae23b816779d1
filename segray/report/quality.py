"""How good a model is, as its page shows it: confusion matrix and reliability diagram, and how they look."""

from __future__ import annotations

STYLE = """
.matrix { width: auto; font-size: 12px; }
.matrix td, .matrix th { border: 1px solid var(--page); padding: 0 3px; height: 27px; vertical-align: middle; }
.matrix td { min-width: 28px; text-align: center; background: var(--panel); font-variant-numeric: tabular-nums; }
.matrix tbody th { text-align: right; padding-right: 10px; max-width: 16em; }
.matrix thead th { height: auto; padding: 6px 4px; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 16em; line-height: 1.2; }
.matrix tbody th, .matrix thead span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.matrix.roomy { font-size: 13px; }
.matrix.roomy td { min-width: 54px; height: 36px; }
.matrix .strong { color: #fff; }
.reliable { fill: var(--accent); opacity: .55; }
.reliable:hover { opacity: .8; }
svg.square { max-width: 400px; }
svg .even { stroke: var(--text); stroke-dasharray: 4 3; }
.quiet + .charts { margin-top: 16px; }
.bins td, .bins th { padding: 3px 12px 3px 0; }
@media print { .matrix:not(.roomy) { font-size: 8px; }
  .matrix:not(.roomy) :is(td, thead th) { min-width: 15px; padding: 0; font-size: 8px; } }
"""

QUALITY = """
{% if matrix %}
<section>
<h2>Confusion matrix</h2>
<p class="quiet">Rows are the truth, columns the prediction; numbers are percentages of their row.</p>
<div class="scroll">
<table class="matrix{{ " roomy" if matrix.rows | length <= 12 }}">
<thead><tr><th></th>
{% for name in matrix.columns %}
<th title="{{ name }}"><span>{{ name }}</span></th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in matrix.rows %}
<tr><th title="{{ row.name }}">{{ row.name }}</th>
{% for cell in row.cells %}
<td title="{{ cell.hint }}"{% if cell.share > 0.7 %} class="strong"{% endif %}
{% if cell.share %} style="background: rgb({{ "30 64 175" if cell.right else "185 28 28" }} /
 {{ "%.3f" | format(cell.share) }})"{% endif %}>{{ cell.text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
{% if confusions %}
<section>
<h2>Largest confusions</h2>
<table>
<thead><tr><th>Truth</th><th>Predicted</th><th class="right">Pixels</th><th class="right">Of the truth</th></tr></thead>
<tbody>
{% for row in confusions %}
<tr><td>{{ row.truth }}</td><td>{{ row.predicted }}</td>
<td class="right">{{ row.pixels }}</td><td class="right">{{ row.share }}</td></tr>
{% endfor %}
</tbody>
</table>
</section>
{% endif %}
{% if reliability %}
<section>
<h2>Reliability</h2>
<p class="quiet">Top: the share of pixels that are right, by confidence; on the dashed line, it is what the confidence
claims. Below: how many pixels have that confidence. The expected calibration error (ECE) is the mean distance from the
line over all pixels. Confidences come from logits divided by the temperature T.</p>
<div class="charts">
{% for chart in reliability %}
<figure>
<figcaption>{{ chart.title }}</figcaption>
<svg class="square" viewBox="0 0 {{ chart.width }} {{ chart.height }}" role="img"
 aria-label="Accuracy by confidence, {{ chart.title }}">
{{ axes(chart, chart.floor) }}
{% for x, y, width, height, hint in chart.bars + chart.shares %}
<rect class="reliable" x="{{ x }}" y="{{ y }}" width="{{ width }}" height="{{ height }}">
<title>{{ hint }}</title></rect>
{% endfor %}
<line class="grid" x1="{{ chart.left }}" x2="{{ chart.right }}" y1="{{ chart.floor }}" y2="{{ chart.floor }}"></line>
<line class="even" x1="{{ chart.left }}" x2="{{ chart.right }}" y1="{{ chart.bottom }}" y2="{{ chart.top }}"></line>
{% for x, y in chart.dots %}
<circle cx="{{ x }}" cy="{{ y }}" r="3"></circle>
{% endfor %}
</svg>
</figure>
{% endfor %}
<div class="scroll">
<table class="bins">
<thead><tr><th>Confidence</th><th class="right">Mean</th><th class="right">Accuracy</th><th class="right">Pixels</th>
</tr></thead>
<tbody>
{% for row in bins %}
<tr><td>{{ row.range }}</td><td class="right">{{ row.confidence }}</td><td class="right">{{ row.accuracy }}</td>
<td class="right">{{ row.pixels }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</div>
</section>
{% endif %}
"""
