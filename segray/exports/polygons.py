"""Masks as vector regions: one GeoParquet 1.1 file per scene, one polygon per 4-connected region of one class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from segray.errors import SegrayError
from segray.exports.features import Batch, FeatureWriter, polygons_of
from segray.exports.ground import Ground, ground_of
from segray.exports.names import mirror
from segray.exports.style import qml, style_of
from segray.grid import Window
from segray.rings import Rings, rings_of
from segray.scenes import Masks, Scene, SceneReader
from segray.settings import ExportSettings
from segray.shards import MASK
from segray.tracing import Regions, Tracer

PER_SCENE = True
LAYER = MASK
MEDIA_TYPE = "application/vnd.apache.parquet"

STRIP_ROWS, STRIP_PIXELS = 512, 2**24  # read at a time: at most this many rows, and pixels where rows are long
# Simplifying needs all polygons of a scene in memory: at the measured 0.3 kB per vertex, this stays near 3 GB.
MAX_SIMPLIFIED = 10_000_000


def name(scene: Scene, archive: str) -> str:
    """The path of the scene's file in the output."""
    return mirror(scene.image, archive, ".parquet")


def beside(uri: str) -> list[str]:
    """The URI of a file's style."""
    return [style_of(uri)]


def write(masks: Masks, scene: Scene, path: str, settings: ExportSettings) -> dict:
    """Write a scene's regions to a local file and their style beside it; returns how many were written and left out.

    settings.min_area: square metres; smaller regions are left out. settings.simplify: metres; vertices whose triangle
    with their neighbours is smaller than the square of this are removed. Both are in pixels where areas are unknown.

    Features come by the last row that they reach, then by their first pixel in scan order: the order in which regions
    become complete, whatever the windows and shards. `pixels` and `area_m2` are those of the mask, even where the
    geometry is simplified. Areas are on the ground (see `ground_of`); null without a CRS, where coordinates are columns
    and rows unless the image has a transform.
    """
    ground = ground_of(scene.image, scene.crs, scene.transform, height=scene.height, width=scene.width)
    with FeatureWriter(path, masks, scene, ground) as writer:
        left_out = 0
        held: list[Batch] = []
        for regions in _regions(masks, scene, ground, nodes=settings.simplify is not None):
            areas = ground.areas(regions.pixels, regions.measures)
            keep = (areas if ground.has_area else regions.pixels) >= (settings.min_area or 0)
            left_out += len(keep) - int(keep.sum())
            kept = regions.select(keep)
            batch = Batch(regions=kept, areas_m2=areas[keep], rings=rings_of(kept))
            if settings.simplify is None:
                writer.add(batch)
            else:
                held.append(batch)
                _check_size(held, scene)
        if settings.simplify is not None:
            tolerance = settings.simplify / ground.pixel_size_m(scene.height, scene.width)
            for batch in _simplified(held, scene, tolerance):
                writer.add(batch)
    Path(style_of(path)).write_bytes(qml(masks.classes))
    return {"features": writer.features, "features_left_out": left_out}


def _regions(masks: Masks, scene: Scene, ground: Ground, *, nodes: bool) -> Iterator[Regions]:
    """The regions of a scene, strip by strip, as they close."""
    reader, tracer = SceneReader(masks, scene), Tracer(scene.width, measure=ground.run_m2, nodes=nodes)
    rows = max(1, min(STRIP_ROWS, STRIP_PIXELS // scene.width))
    for top in range(0, scene.height, rows):
        strip = Window(top, 0, min(rows, scene.height - top), scene.width)
        yield tracer.add(reader.read(strip)) if reader.pieces(strip) else tracer.skip(strip.height)
    yield tracer.close()


def _check_size(held: list[Batch], scene: Scene) -> None:
    vertices = sum(len(batch.rings.points) for batch in held)
    if vertices > MAX_SIMPLIFIED:
        raise SegrayError(
            f"{scene.image} has more than {MAX_SIMPLIFIED:,} vertices to simplify at once; "
            f"leave small regions out with --min_area, or give no --simplify"
        )


def _simplified(held: list[Batch], scene: Scene, tolerance: float) -> Iterator[Batch]:
    """The batches with simpler boundaries; neighbours keep sharing theirs, and the scene's four corners stay.

    Visvalingam and Whyatt's rule on the edges of the whole coverage (GEOS's CoverageSimplifier): vertices are removed
    in the order of the area of the triangle that they span, and never so that edges cross.
    """
    parts = [polygons_of(batch.rings) for batch in held]
    whole = shapely.coverage_simplify(np.concatenate([*parts, _pins(scene)]), tolerance)
    start = 0
    for batch, part in zip(held, parts):
        if len(part):
            _, points, (rings, polygons) = shapely.to_ragged_array(whole[start : start + len(part)])
            simpler = Rings(points=points, rings=rings, polygons=polygons)
            yield Batch(regions=batch.regions, areas_m2=batch.areas_m2, rings=simpler)
        start += len(part)


def _pins(scene: Scene) -> np.ndarray:
    """(4,) triangles that touch the scene's corners from outside: a point where polygons meet is kept."""
    corners = ((x, y) for x in (0, scene.width) for y in (0, scene.height))
    outside = [((x, 1 if x else -1), (y, 1 if y else -1)) for x, y in corners]
    return shapely.polygons([[(x, y), (x + s, y + 2 * t), (x + 2 * s, y + t)] for (x, s), (y, t) in outside])
