"""A shard's way from plan items to mask rows, without Ray: read, segment, make rows.

Each step takes and returns an iterable, so that a shard streams through one process image by image, or is passed
between processes as a list.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from segray.archives.images import read_for, read_header
from segray.archives.raster import Raster
from segray.errors import ImageError
from segray.grid import Window, read_extent, split
from segray.inputs import InputSpec
from segray.masks import IGNORE, Classes
from segray.ordered import in_order
from segray.plan import Item
from segray.regions import Region, WindowMask, unless_all
from segray.resample import Scaling
from segray.shards import MaskRow, Place, failed_row, mask_row

if TYPE_CHECKING:  # CPU workers that read and write do without torch and its 500 MB
    from segray.segmenter import Segmenter

READ_THREADS = 8  # object stores have latency, not low bandwidth: ask for several images at once
# They live as long as the process: malloc would give new threads for each shard new arenas, and keep the memory of all.
_readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="segray-read")
UNMEASURED = Window(0, 0, 0, 0)
NO_NUMBERS = "the network gives no numbers (NaN) for it; try --precision fp32, and look for extreme pixel values"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What became of an item: a region to segment, or the windows that failed and why. seconds: that reading took.

    scaling: from the region's grid to the image's, if the masks are to be on the latter.
    """

    place: Place
    region: Region | None = None
    scaling: Scaling | None = None
    failed: tuple[Window, ...] = ()
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """A reading after the network: the masks of its windows, or its failure passed on, or both.

    scaling: see Reading. failed: windows on the grid that the masks are published on. error: why they failed.
    """

    place: Place
    masks: tuple[WindowMask, ...] = ()
    scaling: Scaling | None = None
    failed: tuple[Window, ...] = ()
    error: str | None = None

    def on_grid(self) -> Iterator[WindowMask]:
        """The masks, enlarged if asked for, one at a time: all at once may take hundreds of times the memory."""
        return (enlarged(mask, self.scaling) if self.scaling else mask for mask in self.masks)


def read_items(
    items: Iterable[Item],
    spec: InputSpec,
    *,
    blend: str,
    window: int,
    explicit_bands: bool,
    enlarge: bool = True,
    ahead: int = READ_THREADS,
) -> Iterator[Reading]:
    """Read the items concurrently, at most `ahead` at a time, and give them in their order.

    enlarge: masks of images that are segmented on a coarser grid are to be on the images' own grid.
    """
    read = partial(_timed, spec=spec, blend=blend, window=window, explicit_bands=explicit_bands, enlarge=enlarge)
    return in_order(read, items, pool=_readers, ahead=ahead)


def read_item(item: Item, *, spec: InputSpec, blend: str, window: int, explicit_bands: bool, enlarge: bool) -> Reading:
    """Read one item; whatever is wrong with its image becomes a failed reading, here and nowhere else."""
    scaling = item.scaling if enlarge else None
    if item.error:
        return _unread(item, window, item.error, scaling)
    try:
        size = {"height": item.image_height, "width": item.image_width}
        extent = read_extent(item.block, **size, lattice=spec.lattice(blend)) if item.block else None
        options = {"part": item.part, "window": extent, "explicit_bands": explicit_bands}
        raster = read_for(item.image, spec, **options)
        if item.block and (raster.height, raster.width) != (item.image_height, item.image_width):
            raise ImageError(f"{item.image} changed while it was segmented; run again with --overwrite")
    except ImageError as error:
        return _unread(item, window, str(error), scaling)
    return _region(item, raster, window, enlarge=enlarge)


def segment(readings: Iterable[Reading], segmenter: Segmenter) -> Iterator[Segmented]:
    """Segment the readings, in their order; failed ones are passed on."""
    behind: deque[Reading] = deque()

    def regions() -> Iterator[Region]:
        for reading in readings:
            region = reading.region
            behind.append(replace(reading, region=None))
            if region is not None:
                yield region

    for masks in segmenter.segment(regions()):
        while behind[0].error is not None:
            yield _failed(behind.popleft())
        yield _segmented(behind.popleft(), masks)
    while behind:
        yield _failed(behind.popleft())


def rows(results: Iterable[Segmented], classes: Classes) -> Iterator[MaskRow]:
    """The rows of a shard, those of an item in scan order, whichever of its windows failed."""
    for result in results:
        found = (mask_row(result.place, mask, classes) for mask in result.on_grid())
        if not result.failed:
            yield from found
        else:
            failed = (failed_row(result.place, window, result.error or "") for window in result.failed)
            yield from sorted(chain(found, failed), key=lambda row: (row.row_off, row.col_off))


def _timed(item: Item, **options: object) -> Reading:
    start = time.perf_counter()
    reading = read_item(item, **options)
    return replace(reading, seconds=time.perf_counter() - start)


def _segmented(reading: Reading, masks: list[WindowMask]) -> Segmented:
    place, scaling = reading.place, reading.scaling
    broken = [mask.window for mask in masks if _has_no_numbers(mask)]
    return Segmented(
        place=place,
        masks=tuple(mask for mask in masks if not _has_no_numbers(mask)),
        scaling=scaling,
        failed=tuple(scaling.enlarged(window) if scaling else window for window in broken),
        error=f"{place.image}: {NO_NUMBERS}" if broken else None,
    )


def _has_no_numbers(mask: WindowMask) -> bool:
    return mask.confidence is not None and math.isnan(mask.confidence)


def enlarged(result: WindowMask, scaling: Scaling) -> WindowMask:
    """The mask of a window, brought to its image's grid and counted anew; confidence and disagreement stay as they are.

    Sampled pixels become those of the image that contain their centres.
    """
    mask, window = scaling.enlarge(result.mask, result.window)
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(result.pixel_counts)]
    confidences, sampled = result.confidences, result.sampled
    if confidences is not None:
        confidences = scaling.enlarge(confidences, result.window)[0]
    if sampled is not None:
        down, across = scaling.factors
        rows, cols = ((places + 0.5) * factor for places, factor in ((sampled.rows, down), (sampled.cols, across)))
        sampled = replace(sampled, rows=rows.astype(np.int64), cols=cols.astype(np.int64))
    changed = {"mask": mask, "confidences": confidences, "sampled": sampled}
    return replace(result, window=window, pixel_counts=counts, valid_pixels=int(counts.sum()), **changed)


def _unread(item: Item, window: int, error: str, scaling: Scaling | None) -> Reading:
    windows = _windows(item.block, window, scaling) if item.block else (UNMEASURED,)
    size = {"height": item.image_height, "width": item.image_width}
    if scaling is not None:
        size = {"height": scaling.height, "width": scaling.width}
        windows = tuple(scaling.enlarged(part) for part in windows)
    georeference = _georeference(item, coarse=scaling is None)
    place = Place(image=item.image, etag=item.etag, **size, **georeference)
    return Reading(place=place, failed=windows, error=error)


def _georeference(item: Item, *, coarse: bool) -> dict:
    """CRS and transform of an image that could not be read, if its header can, so that a map shows what is missing.

    coarse: give those of the grid that it is segmented on, not of its own.
    """
    if item.block is None or item.error:  # reading it may be what killed a process
        return {}
    try:
        header = read_header(item.image, part=item.part)
    except ImageError:
        return {}
    scaling, transform = item.scaling, header.transform
    planned = (scaling.height, scaling.width) if scaling else (item.image_height, item.image_width)
    if transform is None or (header.height, header.width) != planned:  # another size: it is another image by now
        return {}
    return {"crs": header.crs, "transform": scaling.transform(transform) if scaling and coarse else transform}


def _region(item: Item, raster: Raster, window: int, *, enlarge: bool) -> Reading:
    block = item.block or Window(0, 0, raster.height, raster.width)
    height, width, transform = raster.height, raster.width, raster.transform
    scaling = raster.scaling if enlarge else None
    if scaling is not None:
        height, width = scaling.height, scaling.width
    elif raster.scaling is not None and transform is not None:
        transform = raster.scaling.transform(transform)
    place = Place(image=item.image, etag=item.etag, height=height, width=width, crs=raster.crs, transform=transform)
    region = Region(
        height=raster.height,
        width=raster.width,
        block=block,
        windows=_windows(block, window, scaling),
        extent=raster.window,
        pixels=raster.pixels,
        valid=unless_all(raster.valid),
    )
    return Reading(place=place, region=region, scaling=scaling)


def _windows(block: Window, window: int, scaling: Scaling | None) -> tuple[Window, ...]:
    """The windows of a block, so small on a coarse grid that they are at most `window` long when they are enlarged."""
    return tuple(split(block, max(1, int(window / max(scaling.factors))) if scaling else window))


def _failed(reading: Reading) -> Segmented:
    return Segmented(place=reading.place, failed=reading.failed, error=reading.error)
