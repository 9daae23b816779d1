"""Overviews of a segmentation's largest scenes, made in Ray tasks: no process holds more of a scene than a shard."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from segray.archives.raster import Header
from segray.archives.reduced import read_reduced
from segray.grid import Window
from segray.inputs import InputSpec
from segray.masks import IGNORE, decode_png
from segray.plan import Plan
from segray.reduction import cells, window_majority
from segray.report import Overview, for_eyes
from segray.report.overview import LONGEST, factor_of
from segray.report.pictures import LONGEST as PICTURE_SIDE
from segray.scenes import Scene, scene_of
from segray.shards import OK, read_masks, read_statistics, window_of
from segray.storage import opened
from segray.store_errors import UNREADABLE
from segray.tasks import DEATHS, in_tasks, result_of
from segray.uris import join

log = logging.getLogger("segray")
SCENES = 4  # on a page
# Pixels of masks decoded per scene, at most: 400 windows of 2048 x 2048, half a minute of one core.
MOST_PIXELS = 400 * 2**22
TASKS_IN_FLIGHT = 64  # each returns pieces of a picture, which wait on the driver
COLUMNS = ["shard", "image", "part", "image_height", "image_width", "estimate", "error"]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An image of the plan. pixels: its area, estimated if not measured. part: see `storage.File`."""

    image: str
    part: str
    pixels: int
    shards: tuple[int, ...]


def overviews(output: str, fmt: str, plan: Plan, *, spec: InputSpec) -> list[Overview]:
    """The largest scenes of a finished segmentation, the largest first; not those small enough for the page's pictures.

    Of a scene larger than `MOST_PIXELS`, some shards, evenly spread, are shown by their masks, and each window of the
    others in its most frequent class. A scene's image is shown if it can be read cheaply at a low resolution, and no
    process dies of it. spec: its first three bands are shown as red, green and blue.
    """
    candidates = _largest(plan)
    pictures = [_image.remote(candidate.image, candidate.part, spec) for candidate in candidates]  # the slow part
    found = (_overview(output, fmt, candidate, picture) for candidate, picture in zip(candidates, pictures))
    return [overview for overview in found if overview is not None]


def _largest(plan: Plan) -> list[_Candidate]:
    """The scenes with the most pixels in the plan, whose files are read in tasks."""
    found = in_tasks(partial(_largest_in_file, plan.uri), range(len(plan.files)), in_flight=TASKS_IN_FLIGHT)
    best: dict[str, _Candidate] = {}
    for candidate in chain.from_iterable(found):
        known = best.get(candidate.image, candidate)
        pixels, shards = max(known.pixels, candidate.pixels), {*known.shards, *candidate.shards}
        best[candidate.image] = replace(candidate, pixels=pixels, shards=tuple(sorted(shards)))
        ranked = sorted(best.values(), key=lambda each: (-each.pixels, each.image))
        best = {each.image: each for each in ranked[:SCENES]}
    return list(best.values())


def _overview(output: str, fmt: str, candidate: _Candidate, picture: ray.ObjectRef) -> Overview | None:
    """The overview of a scene, whose image is being read; None if it has no mask or is no larger than the pictures."""
    step = -(-candidate.pixels // MOST_PIXELS)
    shards = ((shard, number % step == 0) for number, shard in enumerate(candidate.shards))
    first, mask = None, None
    for part in in_tasks(partial(_part, output, fmt, candidate.image), shards, in_flight=TASKS_IN_FLIGHT):
        if part is None:
            continue
        scene, pieces = part
        if first is None:
            first, factor = scene, factor_of(scene.height, scene.width)
            mask = np.full((-(-scene.height // factor), -(-scene.width // factor)), IGNORE, np.uint8)
        for window, ids in pieces:
            mask[window.rows, window.cols] = ids
    if first is None or max(first.height, first.width) <= PICTURE_SIDE:
        return None
    note = f"Of {candidate.image}, one shard in {step} is shown in detail, all others by window." if step > 1 else ""
    return Overview(
        title=candidate.image,
        mask=mask,
        factor=factor,
        height=first.height,
        width=first.width,
        image=_image_of(picture),
        crs=first.crs,
        transform=first.transform,
        note=note,
    )


def _image_of(picture: ray.ObjectRef) -> np.ndarray | None:
    """The image of an overview; None if the task that read it died, as the overview can do without."""
    try:
        return result_of(picture)
    except DEATHS as error:
        log.info("a scene has no image on the page: the process that read it died (%s)", type(error).__name__)
        return None


def _largest_in_file(uri: str, number: int) -> list[_Candidate]:
    """The scenes with the most pixels in one plan file; in Arrow throughout, since it may hold a million images."""
    with opened(join(uri, f"plan-{number:05d}.parquet")) as file:
        table = pq.read_table(file, columns=COLUMNS)
    table = table.filter(pc.is_null(table["error"]))
    sizes = ("image_height", "image_width")
    # a measured image has its size in every row; a whole picture has one row, with an estimate
    kinds = [("shard", "list"), *((name, "max") for name in sizes), ("estimate", "sum"), ("part", "max")]
    images = table.group_by("image").aggregate(kinds)
    height, width = (pc.cast(images[f"{name}_max"], pa.int64()) for name in sizes)
    area = pc.multiply(height, width)
    pixels = pc.if_else(pc.greater(area, 0), area, images["estimate_sum"])
    order = [("pixels", "descending"), ("image", "ascending")]
    best = images.append_column("pixels", pixels).sort_by(order).slice(0, SCENES)
    return [
        _Candidate(image=row["image"], part=row["part_max"], pixels=row["pixels"], shards=tuple(row["shard_list"]))
        for row in best.to_pylist()
    ]


def _part(
    output: str, fmt: str, image: str, part: tuple[int, bool]
) -> tuple[Scene, list[tuple[Window, np.ndarray]]] | None:
    """What a shard says of a scene, and its class ids in windows of the overview; None if nothing was segmented.

    part: the shard, and whether its masks are read, or only its statistics.
    """
    shard, detailed = part
    rows = read_masks(output, shard, fmt) if detailed else ((row, None) for row in read_statistics(output, shard, fmt))
    scene, pieces = None, []
    for number, (row, data) in enumerate(rows):
        if row["image"] != image or row["status"] != OK:
            continue
        scene = scene or scene_of(row, shard, number)
        window, factor = window_of(row), factor_of(row["image_height"], row["image_width"])
        owned = cells(window, factor)
        if data is None:
            ids = np.full((owned.height, owned.width), int(np.argmax(row["pixel_counts"])), np.uint8)
        else:
            ids = window_majority(decode_png(data), window, factor)
        pieces.append((owned, ids))
    return None if scene is None else (scene, pieces)


@ray.remote(num_cpus=1)
def _image(uri: str, part: str, spec: InputSpec) -> np.ndarray | None:
    """(h, w, 3) uint8 image for viewing; None if reading it is costly or no longer possible."""
    try:
        found = read_reduced(uri, longest=LONGEST, part=part, choose=partial(_bands_for_eyes, spec, uri))
    except UNREADABLE:
        return None
    return None if found is None else for_eyes(*found)


def _bands_for_eyes(spec: InputSpec, uri: str, header: Header) -> tuple[int, ...]:
    """The model's first three bands; the image's own if it has fewer than the model, as a grey one has."""
    bands = spec.for_bands(header.names, uri).bands[:3]
    return bands if max(bands) < header.bands + header.alpha else tuple(range(min(3, header.bands)))
