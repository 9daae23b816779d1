"""The segmentation job: plan, run, sum up. The same settings again continue where the last run stopped."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
from tqdm import tqdm

from segray import cluster
from segray import plan as plans
from segray.archives.images import read_for
from segray.errors import SegrayError
from segray.masks import decode_png
from segray.model_dir import Description, read_description
from segray.outputs import check_place, earlier, metadata, missing_shards, plan_of
from segray.overviews import overviews
from segray.places import SEGMENTATION
from segray.report import Picture, for_eyes, segmentation_page
from segray.settings import PathSettings, SegmentSettings
from segray.shards import OK, read_masks, window_of
from segray.stopwatch import peak_memory
from segray.storage import exists, publish, read_text, remove_leftovers
from segray.store_errors import UNREADABLE
from segray.summary import Totals
from segray.tasks import DEATHS, in_tasks
from segray.uris import join
from segray.versions import versions
from segray.work import Work, probe

log = logging.getLogger("segray")
PICTURES = 6  # on the page
SHARDS_AN_ACTOR, THREADS = 4, 4  # wanted per actor on CPUs, about; two threads take 53% of the time of one
# Approximate memory of an actor on CPUs: torch with a running network, and per pixel of its shard four bands, validity,
# mask, and what is being read or written at that moment.
ACTOR_BYTES, BYTES_A_PIXEL = 5 * 2**28, 8
NOTE_EVERY_S = 15.0


def segment(settings: SegmentSettings) -> dict:
    """Segment an archive into mask shards under OUTPUT; returns the content of summary.json.

    SegrayError on bad input: a damaged model, an archive without a usable image, an output of another job.
    """
    description = read_description(settings.model)
    check_place(settings)
    work = segment_work(settings, description)
    cluster.start()
    work = with_devices(work, settings)
    work = replace(work, metadata=metadata(settings, description, work))
    plan = plan_of(settings, description, work)
    cluster.check_shared(settings.output, SEGMENTATION)
    missing = missing_shards(settings.output, settings.formats[-1], plan.shards)
    summary_uri = join(settings.output, "summary.json")
    if not missing and exists(summary_uri):
        log.info("nothing to do: all %d shards of %d images are there", plan.shards, plan.images)
        return json.loads(read_text(summary_uri))
    other = f"; files passed over, as their endings are no image format's: {plan.skipped}" if plan.skipped else ""
    log.info("%d images in %d shards%s; %d shards to do", plan.images, plan.shards, other, len(missing))
    totals = earlier(settings, plan, missing)
    started = time.time()
    this_run, seconds = _run(settings, work, missing, shards=plan.shards)
    totals.add(this_run)
    remove_leftovers(join(settings.output, "masks"))
    pictures = _pictures(work, plan)
    summary = _summary(settings, description, plan, totals=totals, this_run=this_run, seconds=seconds, work=work)
    summary |= _costs(this_run, started)
    shown = overviews(settings.output, settings.formats[-1], plan, spec=work.spec)
    page = segmentation_page(classes=description.classes, summary=summary, pictures=pictures, overviews=shown)
    publish(join(settings.output, "report.html"), page)
    publish(summary_uri, json.dumps(summary, indent=1).encode())
    return summary


def make_work(settings: PathSettings, description: Description) -> Work:
    """What workers need to know, from the settings and the model; `with_devices` fills in the devices."""
    bands = settings.bands
    if bands is not None and len(bands) != len(description.spec.bands):
        raise SegrayError(
            f"--bands names {len(bands)} band(s), but the model takes {len(description.spec.bands)}; name that many"
        )
    try:
        spec = description.spec.with_overrides(
            tile=settings.tile,
            overlap=settings.overlap,
            **({"band_names": bands} if bands and isinstance(bands[0], str) else {"bands": bands}),
            scale=settings.scale,
            resolution=settings.resolution,
        )
    except ValueError as error:
        raise SegrayError(f"{error}; correct --tile, --overlap or --bands") from error
    return Work(
        plan=join(settings.output, "plan"),
        output=settings.output,
        model=settings.model,
        digest=description.digest,
        classes=description.classes,
        spec=spec,
        explicit_bands=bands is not None,
        precision=settings.precision or "",
        blend=settings.blend,
        compiled=settings.compile,
        tta=settings.tta,
    )


def segment_work(settings: SegmentSettings, description: Description) -> Work:
    """`make_work`, with the settings that only a segmentation has."""
    work = make_work(settings, description)
    if settings.grid == "model" and work.spec.resolution is None:
        raise SegrayError("--grid model needs the metres per pixel that the network sees; give --resolution")
    return replace(
        work,
        window=settings.window,
        formats=settings.formats,
        shard_pixels=int((settings.shard_mpx or 0) * 1e6),
        enlarge=settings.grid == "source",
        detailed=settings.confidence,
    )


def with_devices(work: Work, settings: PathSettings) -> Work:
    """The same work, set up for the devices of the connected cluster.

    ModelError when the model does not work there; SegrayError when --actors is not given and no node is there yet from
    which to derive it.
    """
    on_gpu = cluster.use_gpu(settings.device)
    if settings.actor_range is None:
        cluster.check_there("--actors", gpu=on_gpu)
    batch_size, shard_mpx = (16, 64.0) if on_gpu else (1, 4.0)
    work = replace(
        work,
        on_gpu=on_gpu,
        batch_size=settings.batch_size or batch_size,
        shard_pixels=work.shard_pixels or int(shard_mpx * 1e6),
    )
    return replace(work, precision=probe(work))


def actor_range(settings: PathSettings, work: Work, shards: int, *, more_bytes: int = 0) -> tuple[int, int]:
    """(MIN, MAX) actors: --actors, else one per GPU, or per CPU core that has memory for it; never more than shards.

    On CPUs, few shards get fewer actors with more threads: with a shard or two each, some would soon be idle.
    more_bytes: memory that an actor needs beyond that of segmenting a shard.
    """
    slots = _slots(work, more_bytes)
    few = slots if work.on_gpu else max(shards // SHARDS_AN_ACTOR, -(-slots // THREADS))
    low, high = settings.actor_range or (min(slots, few),) * 2
    return min(low, shards), min(high, shards)


def _slots(work: Work, more_bytes: int = 0) -> int:
    bytes_each = ACTOR_BYTES + work.shard_pixels * BYTES_A_PIXEL + more_bytes
    return cluster.slots(on_gpu=work.on_gpu, bytes_each=bytes_each)


def with_threads(work: Work, actors: int) -> Work:
    """The same work for that many actors; where they are few, each uses several cores of a node."""
    return replace(work, threads=cluster.cores_each(cluster.nodes(), actors))


def _run(settings: SegmentSettings, work: Work, missing: list[int], *, shards: int) -> tuple[Totals, float]:
    """Segment the missing ones of all shards; returns their totals and the seconds it took."""
    start = time.monotonic()
    from segray import pipeline  # imports Ray Data, 64 MB that planning does without

    totals, progress = Totals(), _Progress(len(missing))

    def on_result(shard: Totals) -> None:
        totals.add(shard)
        progress.show(totals)

    if missing:
        # as for all shards, whatever is missing: another number of threads changes the last bits of some networks
        low, high = actor_range(settings, work, shards)
        work = with_threads(work, high)
        actors = min(low, len(missing)), min(high, len(missing))
        pipeline.run(work, missing, actors=actors, on_result=on_result, fresh=len(missing) == shards)
    progress.close()
    return totals, time.monotonic() - start


class _Progress:
    """A progress bar on a terminal; elsewhere a log line now and then."""

    def __init__(self, shards: int) -> None:
        self.shards, self.start, self.noted = shards, time.monotonic(), time.monotonic()
        self.bar = tqdm(total=shards, unit="shard") if sys.stdout.isatty() and shards else None

    def show(self, totals: Totals) -> None:
        mpx = totals.pixels / 1e6
        if self.bar is not None:
            self.bar.set_postfix_str(f"{mpx:.0f} Mpx", refresh=False)
            self.bar.update(totals.shards - self.bar.n)
            return
        now = time.monotonic()
        if now - self.noted > NOTE_EVERY_S or totals.shards == self.shards:
            self.noted = now
            rate = mpx / max(now - self.start, 1e-9)
            failed = totals.image_counts()["failed"]
            done = f"{totals.shards} of {self.shards} shards"
            log.info("%s, %.1f Mpx, %.2f Mpx/s, %d images failed", done, mpx, rate, failed)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _summary(
    settings: SegmentSettings,
    description: Description,
    plan: plans.Plan,
    *,
    totals: Totals,
    this_run: Totals,
    seconds: float,
    work: Work,
) -> dict:
    """The content of summary.json: counts over all runs, rates of this one."""
    km2, run_km2 = totals.area_m2 / 1e6, this_run.area_m2 / 1e6
    # --actors may allow more than could be placed
    actors = min(_slots(work), actor_range(settings, work, max(1, this_run.shards))[1])
    gpu_hours = actors * seconds / 3600 if work.on_gpu else None
    return {
        "archive": settings.archive,
        "output": settings.output,
        "images": totals.image_counts(),
        "failed_share": totals.failed_share(),
        "skipped_files": plan.skipped,
        "windows": totals.windows,
        "shards": {"total": plan.shards, "this_run": this_run.shards},
        "pixels": {"total": totals.pixels, "valid": totals.valid_pixels, "per_class": totals.class_pixels},
        "confidence": totals.mean_confidence(),
        "seam_disagreement": totals.mean_seam_disagreement(),
        "km2": km2 or None,
        "seconds": seconds,
        "mpx_per_s": this_run.pixels / 1e6 / seconds if this_run.pixels else None,
        "km2_per_h": run_km2 / seconds * 3600 if run_km2 else None,
        "gpu_hours": gpu_hours,
        "gpu_hours_per_1000_km2": gpu_hours / run_km2 * 1000 if gpu_hours and run_km2 else None,
        "actors": actors,
        "model": {"model": settings.model, "digest": description.digest, "network": description.network_name},
        "settings": work.metadata["settings"],
        "failures": totals.failures,
        "versions": versions(),
    }


def _costs(this_run: Totals, started: float) -> dict:
    """The entries of summary.json on the time and memory of this run's processes."""
    return {
        "start_up_seconds": max(0.0, this_run.began - started) if this_run.shards else None,
        "stage_seconds": dict(sorted(this_run.seconds.items())),
        "peak_memory": {"driver": peak_memory(), **this_run.peak_bytes},
    }


def _pictures(work: Work, plan: plans.Plan) -> list[Picture]:
    """A few windows with their masks, from shards spread over the archive, each read in a task."""
    shards = sorted({int(shard) for shard in np.linspace(0, plan.shards - 1, PICTURES)})
    of_shard = partial(_pictures_of, work, count=max(1, PICTURES // plan.shards))
    pictures = []
    try:
        for part in in_tasks(of_shard, shards):
            pictures += part
    except DEATHS as error:  # the masks are there, and the page can do with fewer pictures
        log.info("the page has fewer pictures: a process that read one died (%s)", type(error).__name__)
    return pictures


def _pictures_of(work: Work, shard: int, *, count: int) -> list[Picture]:
    """The windows with the most classes in a shard, except those whose images are gone or have another size by now."""
    spec = replace(work.spec, resolution=None) if work.enlarge else work.spec
    parts = {item.image: item.part for item in plans.read_shard(work.plan, shard)}
    shown = [(row, mask) for row, mask in read_masks(work.output, shard, work.formats[-1]) if row["status"] == OK]
    shown.sort(key=lambda pair: -sum(pixels > 0.02 * pair[0]["valid_pixels"] for pixels in pair[0]["pixel_counts"]))
    seen, order = Counter(), []  # one window of every image before a second one of any
    for row, _ in shown:
        order.append(seen[row["image"]])
        seen[row["image"]] += 1
    pictures = []
    for row, mask in [shown[index] for index in np.argsort(order, kind="stable")[:count]]:
        window = window_of(row)
        options = {"part": parts[row["image"]], "window": window, "explicit_bands": work.explicit_bands}
        with suppress(*UNREADABLE):
            raster = read_for(row["image"], spec, **options)
            if (raster.height, raster.width) != (row["image_height"], row["image_width"]):
                continue  # it was replaced since: the mask is not of this image
            part = window.within(raster.window)
            whole = (window.height, window.width) == (row["image_height"], row["image_width"])
            place = "" if whole else f"row {window.row_off}, column {window.col_off}: "
            note = f"{place}confidence {row['confidence']:.2f}"
            image = for_eyes(raster.pixels[(slice(None), *part)], raster.valid[part])
            pictures.append(Picture(title=row["image"], image=image, mask=decode_png(mask), note=note))
    return pictures
