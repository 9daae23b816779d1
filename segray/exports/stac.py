"""A STAC item of an exported scene (STAC 1.1.0 with the extensions projection 2.0.0 and classification 2.0.0)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

import shapely
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from segray.archives.metadata import name_of
from segray.exports.names import public
from segray.footprints import footprint
from segray.grid import Window
from segray.masks import IGNORE, Classes
from segray.scenes import Masks, Scene
from segray.shards import CONFIDENCE, MASK

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
]
# STAC requires a time. Masks have none, and the time of the export would differ from run to run: hence an interval
# that says nothing, within the range of 64-bit nanoseconds (tables of items use them).
TIMES = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "2199-12-31T23:59:59Z"}


def item(masks: Masks, scene: Scene, name: str, assets: dict[str, tuple[str, str, str]]) -> dict:
    """The item of a scene. name: its id. assets: format -> (path from the collection, media type, layer).

    geometry and bbox: longitude and latitude in degrees; where these are unknown, null and absent.
    """
    facts = {"title": public(scene.image), "proj:shape": [scene.height, scene.width]}
    if scene.transform is not None:
        facts["proj:transform"] = list(scene.transform)
    kind = {"data_type": "uint8", "nodata": IGNORE}
    bands = {
        MASK: {"name": "class", **kind, "classification:classes": classes(masks.classes)},
        CONFIDENCE: {"name": "confidence", **kind, "unit": "percent"},
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": name,
        **_place(scene),
        "properties": {**TIMES, **facts, **_projection(scene.crs)},
        "links": [],
        "assets": {
            fmt: {
                "href": f"./{quote(path)}",
                "type": media_type,
                "roles": ["data"],
                **({"bands": [bands[layer]]} if media_type.startswith("image/") else {}),
            }
            for fmt, (path, media_type, layer) in sorted(assets.items())
        },
    }


def classes(legend: Classes) -> list[dict]:
    """The `classification:classes` of a legend, and 255 for no data."""
    entries = [
        {"value": index, "name": short, "description": name, "color_hint": "{:02X}{:02X}{:02X}".format(*color)}
        for index, (short, name, color) in enumerate(zip(_short(legend.names), legend.names, legend.colors))
    ]
    return [*entries, {"value": IGNORE, "name": "nodata", "description": "no data", "nodata": True}]


def _short(names: Iterable[str]) -> list[str]:
    """The names without characters that are not allowed; `class_7` where nothing, or the name of another, is left."""
    found = ["nodata"]  # the name of 255
    for index, name in enumerate(names):
        short = re.sub(r"[^0-9A-Za-z_-]+", "_", name)
        found.append(short if short.strip("_") and short not in found else f"class_{index}")
    return found[1:]


@lru_cache(64)  # PROJ searches its whole catalogue for a CRS without a code: up to 120 ms
def _projection(crs: str | None) -> dict:
    if crs is None:
        return {}
    try:
        parsed = CRS.from_user_input(crs)
        if "[" not in (name := name_of(parsed.wkt)):
            return {"proj:code": name}
        return {"proj:code": None, "proj:wkt2": parsed.to_wkt(version="WKT2_2019")}
    except (CRSError, CPLE_BaseError):
        return {"proj:code": None}


def _place(scene: Scene) -> dict:
    """The geometry and the bbox of a scene, as in RFC 7946."""
    located = scene.crs and scene.transform is not None
    wkb = footprint(scene.crs, scene.transform, Window(0, 0, scene.height, scene.width)) if located else None
    if wkb is None:
        return {"geometry": None}
    geometry = shapely.from_wkb(wkb)
    west, south, east, north = geometry.bounds
    if geometry.geom_type == "MultiPolygon":  # it crosses the antimeridian: west is above east (5.2)
        west, east = geometry.geoms[0].bounds[0], geometry.geoms[-1].bounds[2]
    return {"geometry": shapely.geometry.mapping(geometry), "bbox": [west, south, east, north]}
