"""The overview of a page: what it packs, and what a browser shows."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.masks import Classes
from segray.reduction import majority
from segray.report import Overview, segmentation_page
from segray.report.overview import BYTES, LONGEST, factor_of, viewer_data
from segray.report.script import SCRIPT

CLASSES = Classes(names=("red", "</script> & green", "blue"), colors=((250, 0, 0), (0, 250, 0), (0, 0, 250)))
SUMMARY = {"images": {"ok": 1, "failed": 0}, "pixels": {"valid": 1, "total": 1, "per_class": [1, 0, 0]}}
NASTY = '</script><script>alert(1)</script>\u2028".tif'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--force-device-scale-factor=1",
]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def quarters(size: int = 400) -> np.ndarray:
    """A mask: classes 0 and 1 above, 2 and no data below."""
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 2, size // 2 :], mask[size // 2 :, : size // 2], mask[size // 2 :, size // 2 :] = 1, 2, 255
    return mask


def overview(mask: np.ndarray | None = None, **more: object) -> Overview:
    mask = quarters() if mask is None else mask
    values = {"title": "/a/b/scene.tif", "factor": 1, "height": mask.shape[0], "width": mask.shape[1]}
    return Overview(mask=mask, **{**values, **more})


def page(*overviews: Overview) -> bytes:
    return segmentation_page(classes=CLASSES, summary=SUMMARY, pictures=[], overviews=overviews)


def scenes(*overviews: Overview) -> list[dict]:
    return json.loads(viewer_data(overviews, CLASSES))["scenes"]


def unpacked(entry: dict) -> np.ndarray:
    rows = np.frombuffer(zlib.decompress(base64.b64decode(entry["mask"])), np.uint8)
    return np.bitwise_xor.accumulate(rows.reshape(entry["rows"], entry["columns"]), axis=0)


def test_the_mask_comes_back_to_the_pixel():
    mask = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
    (entry,) = scenes(overview(mask))
    np.testing.assert_array_equal(unpacked(entry), mask)
    assert (entry["width"], entry["height"], entry["factor"]) == (53, 37, 1)


def test_a_page_never_weighs_more_than_it_may():
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 32, (2048, 2048)).astype(np.uint8)  # noise: too large whole; four, even halved
    image = rng.integers(0, 256, (2048, 2048, 3)).astype(np.uint8)
    for count in (1, 4):
        shown = [overview(mask, image=image, factor=3, height=6144, width=6143)] * count
        entries = scenes(*shown)
        assert sum(len(entry["mask"]) + len(entry["image"]) for entry in entries) <= BYTES * 4 / 3 + 1000
        for entry in entries:
            assert entry["factor"] > 3 and entry["factor"] % 3 == 0
            assert entry["columns"] == -(-6143 // entry["factor"])
    small = unpacked(entries[0])
    np.testing.assert_array_equal(small, majority(majority(mask, 2), 2)[: small.shape[0]])


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(1, 1, 1), (2048, 5, 1), (2049, 5, 2), (60_000, 60_000, 30), (5, 4097, 3)]
)
def test_the_factor_keeps_an_overview_small(height, width, factor):
    assert factor_of(height, width) == factor
    assert max(-(-height // factor), -(-width // factor)) <= LONGEST


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        ("EPSG:32630", (0.5, 0.0, 531000.0, 0.0, -0.5, 4829000.0), 0.5),
        ("EPSG:3857", (2.0, 0.0, 0.0, 0.0, -2.0, 8399737.9), 2.0),  # on the map; the viewer halves them at 60 degrees
        ("EPSG:4326", (0.001, 0.0, 10.0, 0.0, -0.001, 60.2), 0.001 * 111_195 / 2),
        ("EPSG:3395", (2.0, 0.0, 0.0, 0.0, -2.0, 8362698.5), 1.0),
        ("EPSG:2263", (1.0, 0.0, 984000.0, 0.0, -1.0, 200000.0), 0.3048),  # feet
        ("EPSG:32630", (0.3, 0.4, 531000.0, 0.4, -0.3, 4829000.0), 0.5),
        (None, None, None),
        (None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), None),
        ('LOCAL_CS["site",UNIT["metre",1]]', (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), None),
    ],
)
def test_metres_of_a_pixel(crs, transform, metres):
    (entry,) = scenes(overview(crs=crs, transform=transform))
    assert entry["metres"] == (None if metres is None else pytest.approx(metres, rel=0.005))
    assert entry["mercator"] is (crs == "EPSG:3857") and entry["degrees"] is (crs == "EPSG:4326")


def test_names_are_what_tells_scenes_apart():
    titles = ["s3://b/a/x/1.tif", "s3://b/a/x/2.tif", "s3://b/a/xy/1.tif"]
    assert [e["name"] for e in scenes(*(overview(title=t) for t in titles))] == ["x/1.tif", "x/2.tif", "xy/1.tif"]
    assert scenes(overview(title="/a/one.tif"))[0]["name"] == "one.tif"
    assert [e["title"] for e in scenes(overview(title=NASTY))] == [NASTY]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(400, 400\); it should be uint8 of shape \(200, 200\)"):
        overview(factor=2)


def test_only_the_viewers_script_may_run_and_data_is_none():
    text = page(overview(title=NASTY), overview()).decode()
    assert text.count("<script") == 2 == text.count("</script>")
    assert "alert(1)" in text and "<script>alert" not in text
    assert re.search(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]+='\"", text
    )
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", text)
    plain = segmentation_page(classes=CLASSES, summary=SUMMARY, pictures=[]).decode()
    assert "<script" not in plain and "script-src" not in plain


def browse(folder: Path, html: bytes, hash_: str = "", *more: str) -> str:
    """What Chromium prints for a page that is opened from a file."""
    path = folder / "report.html"
    path.write_bytes(html)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *more, f"file://{path}{hash_}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def drawn(folder: Path, html: bytes, hash_: str = "") -> dict[str, str]:
    """What the viewer says that it drew."""
    text = browse(folder, html, hash_, "--window-size=1000,1400", "--dump-dom")
    found = re.search(r'data-drawn="([^"]*)"', text)
    assert found, "nothing was drawn"
    where = re.search(r'id="viewer-where">([^<]*)<', text).group(1)
    return {**dict(pair.split("=") for pair in found.group(1).split("&amp;")), "where": where}


def shot(folder: Path, html: bytes, hash_: str, *more: str) -> np.ndarray:
    """A screenshot of the page, (H, W, 3) uint8, with the viewer where `canvas_of` finds it."""
    target = folder / "shot.png"
    browse(folder, html, hash_, "--window-size=1000,1400", f"--screenshot={target}", *more)
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


def share_of(picture: np.ndarray, color: tuple[int, int, int]) -> float:
    """The share of pixels of a colour, up to rounding; swatches and letters are far below a thousandth."""
    return float((abs(picture - color).max(axis=-1) < 12).mean())


@needs_browser
def test_a_browser_shows_the_whole_scene_first(tmp_path):
    seen = drawn(tmp_path, page(overview(crs="EPSG:32630", transform=(0.5, 0.0, 531000.0, 0.0, -0.5, 4829000.0))))
    assert (seen["scene"], seen["x"], seen["y"], seen["mask"]) == ("0", "200", "200", "1")
    assert "column 200, row 200" in seen["where"] and "no class" in seen["where"]
    assert "x 531100.0, y 4828900.0 (EPSG:32630)" in seen["where"]
    picture = shot(tmp_path, page(overview()), "")
    shares = [share_of(picture, color) for color in CLASSES.colors]
    assert min(shares) > 0.03 and max(shares) - min(shares) < 0.003


@needs_browser
def test_a_link_says_what_is_seen(tmp_path):
    html = page(overview(), overview(np.full((100, 300), 1, np.uint8), title="/a/b/other.tif"))
    seen = drawn(tmp_path, html, "#scene=0&x=100&y=50&zoom=12")
    assert (seen["x"], seen["y"], seen["zoom"]) == ("100", "50", "12") and "· red" in seen["where"]
    assert share_of(shot(tmp_path, html, "#x=100&y=100&zoom=12"), CLASSES.colors[0]) > 0.3
    assert share_of(shot(tmp_path, html, "#x=300&y=100&zoom=12"), CLASSES.colors[1]) > 0.3
    assert (
        share_of(shot(tmp_path, html, "#x=100&y=100&zoom=12&hide=0"), CLASSES.colors[0]) < 0.005
    )  # the bar of shares has this colour too
    assert (drawn(tmp_path, html, "#scene=1")["scene"], drawn(tmp_path, html, "#scene=1")["x"]) == ("1", "150")
    assert share_of(shot(tmp_path, html, "#scene=1"), CLASSES.colors[1]) > 0.1
    beyond = drawn(tmp_path, html, "#scene=9&x=-5&y=1e9&zoom=1e9")
    assert (beyond["scene"], beyond["x"], beyond["y"], beyond["zoom"]) == ("1", "0", "100", "16")


@needs_browser
def test_the_image_lies_under_the_mask_where_it_has_data(tmp_path):
    image = np.full((200, 200, 3), (90, 90, 90), np.uint8)
    html = page(overview(image=image))
    clear = shot(tmp_path, html, "#mask=0")
    assert share_of(clear, (90, 90, 90)) == pytest.approx(
        3 * share_of(shot(tmp_path, html, "#mask=1"), (250, 0, 0)), 0.02
    )
    assert share_of(shot(tmp_path, html, "#mask=0.5"), (170, 45, 45)) > 0.03


@needs_browser
def test_a_reduced_mask_lies_where_its_scene_is(tmp_path):
    fine = overview(quarters(601))
    coarse = overview(majority(quarters(601), 4), factor=4, height=601, width=601)
    pictures = [shot(tmp_path, page(each), "#x=300&y=300&zoom=2") for each in (fine, coarse)]
    assert (abs(pictures[0] - pictures[1]).max(axis=-1) > 12).mean() < 0.01
    assert drawn(tmp_path, page(coarse), "#x=450&y=100&zoom=2")["where"].startswith("column 450, row 100")


@needs_browser
@pytest.mark.parametrize("mercator", [False, True])
def test_the_scale_bar_is_as_long_as_it_says(tmp_path, mercator):
    crs, top = ("EPSG:3857", 8399737.9) if mercator else ("EPSG:32630", 4829000.0)
    transform = (1.0, 0.0, 531000.0, 0.0, -1.0, top)
    text = browse(tmp_path, page(overview(crs=crs, transform=transform)), "#x=200&y=200&zoom=2", "--dump-dom")
    length, unit = re.search(r'class="scale"><span>([\d.]+) (\w+)<', text).groups()
    width = float(re.search(r'<i style="width: ([\d.]+)px', text).group(1))
    metres = 1.0 / math.cosh((top - 200) / 6378137) if mercator else 1.0
    assert unit == "m" and float(length) == pytest.approx(width / 2 * metres, rel=0.005)
    assert "hidden" in re.search(
        r'<div class="scale"[^>]*>', browse(tmp_path, page(overview()), "", "--dump-dom")
    ).group(0)


@needs_browser
def test_dark_pages_have_a_dark_viewer(tmp_path):
    dark = shot(tmp_path, page(overview()), "", "--blink-settings=preferredColorScheme=0")
    light = shot(tmp_path, page(overview()), "", "--blink-settings=preferredColorScheme=1")
    assert np.median(dark) < 60
    assert np.median(light) > 200


def test_the_script_asks_for_nothing():
    assert not re.search(r"fetch|XMLHttp|WebSocket|import\(|eval|innerHTML|document\.write|sendBeacon", SCRIPT)


def test_the_jpeg_is_the_image():
    image = np.zeros((300, 200, 3), np.uint8)
    image[:, :100] = (200, 30, 30)
    (entry,) = scenes(overview(image=image))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["image"].partition(",")[2]))))
    assert shown.shape == image.shape and abs(shown.astype(int) - image).mean() < 3


# Frames are rare without a screen, so a timer draws here; the events are those that a browser would send.
ACT = """
<script>window.requestAnimationFrame = call => setTimeout(call, 1);</script>
<script>setTimeout(async () => {
const viewer = document.getElementById("viewer"), canvas = viewer.querySelector("canvas"), seen = [];
const box = canvas.getBoundingClientRect(), pause = time => new Promise(done => setTimeout(done, time));
const send = (target, event) => { target.dispatchEvent(event); return pause(60); };
const point = (type, id, x, y) => send(canvas, new PointerEvent(type,
  { pointerId: id, clientX: box.left + x, clientY: box.top + y, bubbles: true }));
const key = name => send(canvas, new KeyboardEvent("keydown", { key: name, cancelable: true }));
const note = () => seen.push(viewer.dataset.drawn);
canvas.setPointerCapture = () => {};
note();
await send(canvas, new WheelEvent("wheel",
  { deltaY: -240, clientX: box.left + 10, clientY: box.top + 20, cancelable: true }));
note();
await point("pointerdown", 1, 100, 100); await point("pointermove", 1, 130, 80); await point("pointerup", 1, 130, 80);
note();
await point("pointerdown", 1, 100, 100); await point("pointerdown", 2, 200, 100);
await point("pointermove", 2, 300, 100); await point("pointerup", 1, 100, 100); await point("pointerup", 2, 300, 100);
note();
await key("ArrowRight"); note();
await key("-"); note();
await key("0"); note();
viewer.querySelectorAll("ul input")[1].click(); await pause(60); note();
viewer.querySelector(".scene").value = 1;
await send(viewer.querySelector(".scene"), new Event("change", { bubbles: true }));
await pause(300); note();
document.body.dataset.seen = seen.join("|") + "|" + location.hash.slice(1);
}, 400);</script></body>
"""


@needs_browser
def test_mouse_touch_and_keys_move_the_view(tmp_path):
    html = page(overview(), overview(np.zeros((60, 80), np.uint8), title="/a/b/other.tif")).decode()
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("</body>", ACT)
    text = browse(tmp_path, html.encode(), "#x=200&y=200&zoom=2", "--window-size=1000,1400", "--dump-dom")
    found = re.search(r'data-seen="([^"]*)"', text).group(1).replace("&amp;", "&").split("|")
    views = [dict(pair.split("=") for pair in each.split("&")) for each in found]
    first, wheel, drag, pinch, right, out, whole, hidden, other, link = views
    x, y, zoom = ([float(view[name]) for view in views] for name in ("x", "y", "zoom"))
    assert first["zoom"] == "2" and zoom[1] == 4
    # what was under the pointer still is: half as far from the middle, in pixels of the scene
    left, top = 984 / 2, 620 / 2
    assert 200 - left / 4 < x[1] < 200 > y[1] > 200 - top / 4
    assert (x[2], y[2]) == pytest.approx((x[1] - 30 / 4, y[1] + 20 / 4), abs=1e-3) and drag["zoom"] == wheel["zoom"]
    assert zoom[3] == pytest.approx(8) and pinch != drag
    assert (x[4], y[4]) == pytest.approx((x[3] + 60 / 8, y[3]), abs=1e-3) and right["zoom"] == pinch["zoom"]
    assert zoom[5] == pytest.approx(8 / 1.5) and out["x"] == right["x"]
    assert (whole["x"], whole["y"]) == ("200", "200") and zoom[6] < 2
    assert hidden["hide"] == "1" and "hide" not in whole
    assert (other["scene"], other["x"], other["y"]) == ("1", "40", "30")
    assert link["hide"] == "1" and link["scene"] in ("0", "1")
