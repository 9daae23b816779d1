"""The viewer of a page, which pans and zooms whole scenes: its part of the template, and how it looks."""

from __future__ import annotations

STYLE = """
.viewer { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--panel); }
.viewer .bar-of-tools { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; padding: 10px 14px;
  font-size: 14px; }
.viewer label { display: inline-flex; align-items: center; gap: 8px; max-width: 100%; }
.viewer select { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 8px; min-width: 0; max-width: min(34em, 100%); text-overflow: ellipsis; }
.viewer input { accent-color: var(--accent); margin: 0; }
.viewer input[type=range] { width: 130px; }
.viewer .stage { position: relative; border-block: 1px solid var(--line); }
.viewer canvas { display: block; width: 100%; height: min(64vh, 620px); min-height: 260px; cursor: grab;
  touch-action: none; background: repeating-linear-gradient(45deg, var(--hatch) 0 5px, var(--page) 5px 10px); }
.viewer canvas:active { cursor: grabbing; }
.viewer canvas:focus-visible { outline: 3px solid var(--accent); outline-offset: -3px; }
.viewer .buttons { position: absolute; top: 10px; right: 10px; display: grid; gap: 4px; }
.viewer button { width: 36px; height: 36px; font: 600 18px/1 system-ui, sans-serif; color: var(--text);
  background: var(--page); border: 1px solid var(--line); border-radius: 6px; cursor: pointer; padding: 0; }
.viewer button:hover { border-color: var(--accent); }
.viewer .scale { position: absolute; left: 10px; bottom: 10px; padding: 2px 7px 5px; border-radius: 4px;
  background: var(--page); font-size: 12px; line-height: 1.4; text-align: center; pointer-events: none; }
.viewer .scale i { display: block; height: 5px; border: solid var(--text); border-width: 0 2px 2px; }
.viewer .scale span { white-space: nowrap; }
.viewer .where { margin: 0; padding: 7px 14px; min-height: 35px; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--line); }
.viewer ul { margin: 0; padding: 10px 14px; gap: 6px 18px; max-height: 150px; overflow-y: auto; }
@media (max-width: 640px) { .viewer canvas { height: 52vh; } .viewer .where { min-height: 56px; }
  .viewer button { width: 42px; height: 42px; } .viewer ul label { min-height: 30px; } }
@media print { .viewer .buttons, .viewer .scale, .viewer .bar-of-tools label + label { display: none; }
  .viewer canvas { height: auto; min-height: 0; } .viewer ul { max-height: none; } }
"""

VIEWER = """
{% if viewer %}
<section>
<h2>Overview</h2>
<div class="viewer" id="viewer" hidden>
<div class="bar-of-tools">
<label>Scene <select class="scene"></select></label>
<label>Mask <input class="opacity" type="range" min="0" max="1" step="0.05" aria-label="Opacity of the mask"></label>
</div>
<div class="stage">
<canvas tabindex="0" role="application" aria-describedby="viewer-where" aria-label="The mask over its image: drag or
 use the arrow keys to move, plus and minus to zoom, 0 to see all"></canvas>
<div class="buttons">
<button class="closer" type="button" aria-label="Zoom in">+</button>
<button class="farther" type="button" aria-label="Zoom out">&minus;</button>
<button class="all" type="button" aria-label="Show the whole scene">&#x2922;</button>
</div>
<div class="scale" hidden><span></span><i></i></div>
</div>
<p class="where mono" id="viewer-where"></p>
<ul class="legend" aria-label="Classes that are shown">
{% for name, color in legend %}
<li><label><input type="checkbox" checked value="{{ loop.index0 }}">
<span>{{ swatch(color) }}{{ name }}</span></label></li>
{% endfor %}
</ul>
</div>
{% for note in viewer_notes %}
<p class="quiet">{{ note }}</p>
{% endfor %}
<noscript><p class="quiet">Scripts are switched off here, so the overview cannot be shown.</p></noscript>
<script type="application/json" id="viewer-data">{{ viewer | safe }}</script>
<script>{{ viewer_script | safe }}</script>
</section>
{% endif %}
"""
