"""A STAC item of an exported scene (STAC 1.1.0 with the extensions projection 2.0.0 and classification 2.0.0)."""

from __future__ import annotations

import math
import re
import struct
from urllib.parse import quote

from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError

from segray.exports.scenes import Masks, Scene
from segray.grid import Window
from segray.masks import IGNORE, Classes
from segray.shards import footprint

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
]
# STAC wants a time, which masks do not know, and the time of the export would differ from run to run. So an interval
# that says nothing, within what 64-bit nanoseconds can count (tables of items use them).
TIMES = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "2199-12-31T23:59:59Z"}


def item(masks: Masks, scene: Scene, name: str, assets: dict[str, tuple[str, str]]) -> dict:
    """The item of a scene. name: its id. assets: format -> (path from the collection, media type).

    geometry and bbox: longitude and latitude in degrees; null and absent without a CRS that leads there.
    """
    rings = _rings(scene)
    facts = {"title": scene.image, "proj:shape": [scene.height, scene.width]}
    if scene.transform is not None:
        facts["proj:transform"] = list(scene.transform)
    bands = [
        {"name": "class", "data_type": "uint8", "nodata": IGNORE, "classification:classes": classes(masks.classes)}
    ]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": name,
        "geometry": _geometry(rings),
        **({"bbox": _bbox(rings)} if rings else {}),
        "properties": {**TIMES, **facts, **_projection(scene.crs)},
        "links": [],
        "assets": {
            fmt: {
                "href": f"./{quote(path)}",
                "type": media_type,
                "roles": ["data"],
                **({"bands": bands} if media_type.startswith("image/") else {}),
            }
            for fmt, (path, media_type) in sorted(assets.items())
        },
    }


def classes(legend: Classes) -> list[dict]:
    """The `classification:classes` of a legend, and 255 as what has no data."""
    entries = [
        {
            "value": index,
            "name": re.sub(r"[^0-9A-Za-z_-]+", "_", name) or f"class_{index}",  # no other characters are allowed
            "description": name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*color),
        }
        for index, (name, color) in enumerate(zip(legend.names, legend.colors))
    ]
    return [*entries, {"value": IGNORE, "name": "nodata", "description": "no data", "nodata": True}]


def _projection(crs: str | None) -> dict:
    if crs is None:
        return {}
    try:
        authority = CRS.from_user_input(crs).to_authority()
        return {"proj:code": ":".join(authority)} if authority else {"proj:code": None, "proj:wkt2": _wkt2(crs)}
    except (CRSError, CPLE_BaseError):
        return {"proj:code": None}


def _wkt2(crs: str) -> str:
    return CRS.from_user_input(crs).to_wkt(version="WKT2_2019")


def _rings(scene: Scene) -> list[list[list[float]]]:
    """The scene's outline, closed and counterclockwise: one ring, or one on each side of the antimeridian."""
    if not scene.crs or scene.transform is None:
        return []
    try:
        wkb = footprint(scene.crs, scene.transform, Window(0, 0, scene.height, scene.width))
    except (RasterioError, CPLE_BaseError):
        return []
    if wkb is None:
        return []
    values = struct.unpack_from("<10d", wkb, 13)
    corners = list(zip(values[:8:2], values[1:8:2]))
    if max(x for x, _ in corners) - min(x for x, _ in corners) > 180 and all(abs(x) <= 180 for x, _ in corners):
        corners = [(x % 360, y) for x, y in corners]  # it is the short way round
    east = [(x - 360, y) for x, y in _clip(corners, 180.0, side=1)]
    rings = [ring for ring in (_clip(corners, 180.0, side=-1), east) if len(ring) >= 3]
    return [_closed(ring) for ring in rings]


def _clip(ring: list[tuple[float, float]], limit: float, *, side: int) -> list[tuple[float, float]]:
    """The part of a convex ring on one side of a meridian, -1 for west (Sutherland and Hodgman 1974)."""
    found = []
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]]):
        inside, next_inside = (x0 - limit) * side > 0, (x1 - limit) * side > 0
        if inside or (side < 0 and x0 == limit):
            found.append((x0, y0))
        if inside != next_inside and limit not in (x0, x1):
            found.append((limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)))
    return found


def _closed(ring: list[tuple[float, float]]) -> list[list[float]]:
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]]))
    ordered = ring if area > 0 or math.isnan(area) else ring[::-1]
    return [list(point) for point in (*ordered, ordered[0])]


def _geometry(rings: list[list[list[float]]]) -> dict | None:
    if not rings:
        return None
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": [rings[0]]}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def _bbox(rings: list[list[list[float]]]) -> list[float]:
    """[west, south, east, north]; west is above east where the scene crosses the antimeridian (RFC 7946, 5.2)."""
    ys = [y for ring in rings for _, y in ring]
    west = min(x for x, _ in rings[0])
    return [west, min(ys), max(x for x, _ in rings[-1]), max(ys)]
