"""The script of the viewer: a canvas that shows a scene's image and mask. A page's policy allows it by its hash alone.

The view is written to the address after #, and read from there, so that a place can be linked to.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
"use strict";
(() => {
const root = document.getElementById("viewer"), one = name => root.querySelector(name);
const data = JSON.parse(document.getElementById("viewer-data").textContent);
const canvas = one("canvas"), context = canvas.getContext("2d"), boxes = [...root.querySelectorAll("ul input")];
const EARTH_RADIUS = 6378137, LONGEST_BAR = 120;
// x, y: the scene's pixel in the middle; zoom: pixels of the page per pixel of the scene; 0 shows all
const view = { scene: 0, x: 0, y: 0, zoom: 0, opacity: 0.5 };
const hidden = new Set();
let current = null, wanted = null, colored = null, planned = 0, noting = 0;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const scene = () => data.scenes[view.scene];

async function unpack(entry) {
  if (entry.ids) return;
  const bytes = Uint8Array.from(atob(entry.mask), letter => letter.charCodeAt(0));
  const source = new ReadableStream({ start(to) { to.enqueue(bytes); to.close(); } });
  const reader = source.pipeThrough(new DecompressionStream("deflate")).getReader();
  const ids = new Uint8Array(entry.rows * entry.columns);
  for (let at = 0, part = await reader.read(); !part.done; part = await reader.read()) {
    ids.set(part.value, at);
    at += part.value.length;
  }
  for (let at = entry.columns; at < ids.length; at++) ids[at] ^= ids[at - entry.columns];
  if (entry.image) {
    const image = new Image();
    image.src = entry.image;
    await image.decode();
    entry.picture = cut(image, entry, ids);
  }
  entry.ids = ids;
}

function sheet(width, height) { return Object.assign(document.createElement("canvas"), { width, height }); }

function fill(target, entry, ids, table) {
  const brush = target.getContext("2d"), pixels = brush.createImageData(entry.columns, entry.rows);
  const words = new Uint32Array(pixels.data.buffer);
  for (let at = 0; at < words.length; at++) words[at] = table[ids[at]];
  brush.putImageData(pixels, 0, 0);
}

// the image where it has data: a JPEG shows the rest black or white
function cut(image, entry, ids) {
  const result = sheet(image.naturalWidth, image.naturalHeight), brush = result.getContext("2d");
  const cover = sheet(entry.columns, entry.rows), factor = entry.factor;
  fill(cover, entry, ids, new Uint32Array(256).fill(0xff000000, 0, 255));
  brush.drawImage(image, 0, 0);
  brush.globalCompositeOperation = "destination-in";
  brush.imageSmoothingEnabled = false;
  brush.scale(result.width / entry.width, result.height / entry.height);
  brush.drawImage(cover, 0, 0, entry.columns * factor, entry.rows * factor);
  return result;
}

function paint() {
  const entry = scene(), table = new Uint32Array(256), bytes = new Uint8ClampedArray(table.buffer);
  data.colors.forEach((color, id) => { if (!hidden.has(id)) bytes.set([...color, 255], 4 * id); });
  colored = sheet(entry.columns, entry.rows);
  fill(colored, entry, entry.ids, table);
}

const fit = () => Math.min(canvas.clientWidth / scene().width, canvas.clientHeight / scene().height);

function limit() {
  const entry = scene(), all = fit();
  if (!(view.zoom > 0)) Object.assign(view, { zoom: all, x: entry.width / 2, y: entry.height / 2 });
  view.zoom = clamp(view.zoom, all / 2, Math.max(all, 16 / entry.factor));
  view.x = clamp(view.x, 0, entry.width);
  view.y = clamp(view.y, 0, entry.height);
}

function draw() {
  planned = 0;
  if (!current) return;
  limit();
  const entry = current, width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.save();
  context.translate(width / 2 - view.x * view.zoom, height / 2 - view.y * view.zoom);
  context.scale(view.zoom, view.zoom);
  context.beginPath();
  context.rect(0, 0, entry.width, entry.height);
  context.clip();
  context.imageSmoothingQuality = "high";
  if (entry.picture) context.drawImage(entry.picture, 0, 0, entry.width, entry.height);
  context.globalAlpha = view.opacity;
  context.imageSmoothingEnabled = view.zoom * entry.factor * ratio < 1;
  context.drawImage(colored, 0, 0, entry.columns * entry.factor, entry.rows * entry.factor);
  context.restore();
  scaleBar();
  root.dataset.drawn = new URLSearchParams(state()).toString();
}

function plan() { if (!planned) planned = requestAnimationFrame(draw); }

function place(x, y) {
  const t = current.transform;
  return t && [t[0] * x + t[1] * y + t[2], t[3] * x + t[4] * y + t[5]];
}

function scaleBar() {
  const bar = one(".scale"), entry = current;
  bar.hidden = !entry.metres;
  if (!entry.metres) return;
  const stretch = entry.mercator ? Math.cosh(place(view.x, view.y)[1] / EARTH_RADIUS) : 1;
  const metres = entry.metres / stretch / view.zoom, power = 10 ** Math.floor(Math.log10(metres * LONGEST_BAR));
  const length = [5, 2, 1].map(times => times * power).find(long => long <= metres * LONGEST_BAR * 1.0001);
  const shown = length >= 1000 ? [length / 1000, "km"] : length >= 1 ? [length, "m"] : [length * 100, "cm"];
  one(".scale i").style.width = `${length / metres}px`;
  one(".scale span").textContent = `${+shown[0].toPrecision(3)} ${shown[1]}`;
}

function tell(x, y) {
  const entry = current, col = Math.floor(x), row = Math.floor(y), parts = [];
  if (col >= 0 && row >= 0 && col < entry.width && row < entry.height) {
    const id = entry.ids[Math.floor(row / entry.factor) * entry.columns + Math.floor(col / entry.factor)];
    parts.push(`column ${col}, row ${row}`, id < data.names.length ? data.names[id] : "no class");
    const at = place(x, y), digits = entry.degrees ? 6 : 1;
    if (at) parts.push(`x ${at[0].toFixed(digits)}, y ${at[1].toFixed(digits)}${entry.crs ? ` (${entry.crs})` : ""}`);
  }
  one(".where").textContent = parts.join(" \\u00b7 ");
}

const under = (left, top) => [
  view.x + (left - canvas.clientWidth / 2) / view.zoom, view.y + (top - canvas.clientHeight / 2) / view.zoom];

function zoomAt(factor, left, top) {
  const [x, y] = under(left, top), before = view.zoom;
  view.zoom *= factor;
  limit();
  const moved = 1 - before / view.zoom;
  view.x += (x - view.x) * moved;
  view.y += (y - view.y) * moved;
  changed();
}

const zoomMiddle = factor => zoomAt(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);

function changed() {
  if (!current) return;
  plan();
  clearTimeout(noting);
  noting = setTimeout(() => {
    limit();
    history.replaceState(null, "", `#${new URLSearchParams(state())}`);
  }, 300);
}

function state() {
  const short = value => +value.toPrecision(7);
  const values = { scene: view.scene, x: short(view.x), y: short(view.y), zoom: short(view.zoom), mask: view.opacity };
  return hidden.size ? { ...values, hide: [...hidden].join(" ") } : values;
}

function follow() {
  const given = new URLSearchParams(location.hash.slice(1)), number = (name, other) => {
    const value = parseFloat(given.get(name));
    return Number.isFinite(value) ? value : other;
  };
  const chosen = clamp(Math.round(number("scene", view.scene)), 0, data.scenes.length - 1);
  const same = current && chosen === view.scene, entry = data.scenes[chosen];
  const next = {
    scene: chosen,
    zoom: number("zoom", same ? view.zoom : 0),
    x: number("x", same ? view.x : entry.width / 2),
    y: number("y", same ? view.y : entry.height / 2),
    opacity: clamp(number("mask", current ? view.opacity : entry.image ? 0.5 : 1), 0, 1),
  };
  hidden.clear();
  for (const id of (given.get("hide") || "").split(" ").filter(Boolean)) hidden.add(parseInt(id, 10));
  boxes.forEach(box => { box.checked = !hidden.has(+box.value); });
  return show(next);
}

async function show(next) {
  const entry = data.scenes[next.scene];
  wanted = entry;
  one(".scene").value = next.scene;
  try {
    await unpack(entry);
  } catch (error) {
    one(".where").textContent = `This browser cannot show the overview: ${error.message}`;
    return;
  }
  if (entry !== wanted) return;  // another one was chosen meanwhile
  Object.assign(view, next);
  one(".opacity").value = view.opacity;
  current = entry;
  paint();
  draw();
  tell(view.x, view.y);
}

const touches = new Map();
const spread = () => {
  const [a, b] = [...touches.values()];
  return b ? { left: (a[0] + b[0]) / 2, top: (a[1] + b[1]) / 2, far: Math.hypot(a[0] - b[0], a[1] - b[1]) }
    : { left: a[0], top: a[1], far: 0 };
};
canvas.addEventListener("pointerdown", event => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  touches.set(event.pointerId, [event.offsetX, event.offsetY]);
});
canvas.addEventListener("pointermove", event => {
  if (!current) return;
  if (touches.has(event.pointerId)) {
    const before = spread();
    touches.set(event.pointerId, [event.offsetX, event.offsetY]);
    const now = spread();
    view.x -= (now.left - before.left) / view.zoom;
    view.y -= (now.top - before.top) / view.zoom;
    if (before.far && now.far) zoomAt(now.far / before.far, now.left, now.top);
    changed();
  }
  tell(...under(event.offsetX, event.offsetY));
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, event => touches.delete(event.pointerId));
}
canvas.addEventListener("wheel", event => {
  if (!current || (event.deltaY > 0 && view.zoom <= fit() * 1.001)) return;  // all is seen: the page scrolls on
  event.preventDefault();
  const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
  zoomAt(2 ** clamp(-pixels / 240, -1, 1), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("dblclick", event => current && zoomAt(2, event.offsetX, event.offsetY));
const keys = {
  ArrowLeft: () => { view.x -= 60 / view.zoom; }, ArrowRight: () => { view.x += 60 / view.zoom; },
  ArrowUp: () => { view.y -= 60 / view.zoom; }, ArrowDown: () => { view.y += 60 / view.zoom; },
  "+": () => zoomMiddle(1.5), "=": () => zoomMiddle(1.5), "-": () => zoomMiddle(1 / 1.5), 0: () => { view.zoom = 0; },
};
canvas.addEventListener("keydown", event => {
  if (!current || !keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
  limit();
  changed();
  tell(view.x, view.y);
});
one(".closer").addEventListener("click", () => current && zoomMiddle(1.5));
one(".farther").addEventListener("click", () => current && zoomMiddle(1 / 1.5));
one(".all").addEventListener("click", () => { view.zoom = 0; changed(); });  // drawing finds what fits
one(".opacity").addEventListener("input", event => { view.opacity = +event.target.value; changed(); });
one(".scene").addEventListener("change", event => {
  show({ scene: +event.target.value, zoom: 0 }).then(changed);
});
one("ul").addEventListener("change", () => {
  hidden.clear();
  boxes.forEach(box => { if (!box.checked) hidden.add(+box.value); });
  if (current) paint();
  changed();
});
data.scenes.forEach((entry, index) => {
  one(".scene").add(Object.assign(new Option(entry.name, index), { title: entry.title }));
});
root.hidden = false;
new ResizeObserver(plan).observe(canvas);
addEventListener("hashchange", follow);
follow();
})();
"""

SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
