"""What the output of a segmentation holds: the plan, the committed shards, and their totals."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from itertools import chain

import numpy as np

from segray import plan as plans
from segray.archives import open_archive
from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.expand import Cutting
from segray.listing import files_if_any
from segray.masks import IGNORE
from segray.model_dir import Description
from segray.places import SEGMENTATION, check_unclaimed, lies_in
from segray.planning import make_plan
from segray.settings import SegmentSettings
from segray.shards import EXTENSIONS, read_statistics, shard_of
from segray.storage import exists, remove
from segray.summary import Totals, summarise
from segray.tasks import in_tasks
from segray.uris import ending, join
from segray.work import Work

PLAIN = ArchiveOptions()
STATISTICS_A_TASK = 64


def check_place(settings: SegmentSettings) -> None:
    """SegrayError when OUTPUT is another job's, or lies in the archive: its masks would then count as imagery.

    Or when the archive is the OUTPUT of a segmentation itself.
    """
    archive = settings.archive.split("::")[-1]
    # a file has nothing below it, and a store may refuse to say so
    if not ending(archive) and exists(join(archive, SEGMENTATION)):
        raise SegrayError(f"--archive {archive} holds masks, the output of a segmentation; give imagery")
    if lies_in(settings.output, archive):
        raise SegrayError(f"--output {settings.output} lies in the archive {settings.archive}; give a folder beside it")
    check_unclaimed(settings.output, SEGMENTATION)


def plan_of(settings: SegmentSettings, description: Description, work: Work) -> plans.Plan:
    """The plan on the output, a new one if there is none; SegrayError when it is another job's. Writes no masks."""
    archive = open_archive(settings.archive, settings.archive_options)
    images = archive.images()
    first = next(images)  # before anything is removed: SegrayError when there is nothing to segment
    images = chain([first], images)  # listed once: a level of a tile tree is one image of millions of files
    if settings.overwrite:
        _remove_results(settings)
    plan = plans.load(work.plan)
    if plan is not None:
        digest = plans.ListingDigest()
        for _ in digest.watch(images):
            pass
    elif exists(join(settings.output, "masks")):
        raise SegrayError(f"{settings.output} holds masks but no plan; give another --output, or --overwrite")
    else:
        cutting = Cutting(
            spec=work.spec,
            explicit_bands=work.explicit_bands,
            lattice=work.spec.lattice(work.blend),
            shard_pixels=work.shard_pixels,
            options=settings.archive_options,
        )
        plan, digest = make_plan(work.plan, images, cutting)
        plan = replace(plan, skipped=plan.skipped + archive.skipped)
    wanted = plans.fingerprint(
        archive=settings.archive,
        listing=digest.hexdigest(),
        images=digest.images,
        model=description.digest,
        settings=settings_of_pixels(settings, work),
    )
    if plan.fingerprint:
        plans.check(plan, wanted)
        return plan
    plan = replace(plan, fingerprint=wanted)
    plans.save(plan)
    return plan


def settings_of_pixels(settings: SegmentSettings, work: Work) -> dict:
    """Every setting that can change a byte of a shard."""
    spec = work.spec
    return {
        "tile": spec.tile,
        "overlap": spec.overlap,
        "blend": work.blend,
        "bands": list(settings.bands) if settings.bands else None,
        "scale": spec.scale,
        **({"scale_given": True} if spec.widened else {}),  # it lets images in, though it may be the model's own
        **({"resolution": spec.resolution, "grid": settings.grid} if spec.resolution else {}),
        "precision": work.precision,
        **({"compile": True} if work.compiled else {}),
        **({"tta": work.tta} if work.tta != "none" else {}),
        "window": settings.window,
        "shard_mpx": work.shard_pixels / 1e6,
        "format": ",".join(settings.formats),
        **({"confidence": True} if settings.confidence else {}),
        "device": "gpu" if work.on_gpu else "cpu",
        **{name: value for name, value in asdict(settings.archive_options).items() if value != getattr(PLAIN, name)},
        # it decides which kernels run, on CPUs only compiled ones; 1 is the default there
        **({"batch_size": work.batch_size} if work.on_gpu or (work.compiled and work.batch_size > 1) else {}),
    }


def metadata(settings: SegmentSettings, description: Description, work: Work) -> dict:
    """What every shard of the job says about itself."""
    return {
        "format_version": plans.FORMAT_VERSION,
        "classes": description.classes.to_json(),
        "ignore_index": IGNORE,
        "model_digest": description.digest,
        "settings": settings_of_pixels(settings, work),
    }


def missing_shards(output: str, fmt: str, shards: int) -> list[int]:
    """The shards that are not committed yet."""
    missing = np.ones(shards, bool)
    for file in files_if_any(join(output, "masks")):
        if 0 <= (shard := shard_of(file.uri, fmt)) < shards:
            missing[shard] = False
    return np.flatnonzero(missing).tolist()


def earlier(settings: SegmentSettings, plan: plans.Plan, missing: list[int]) -> Totals:
    """The totals of the shards that earlier runs published, read back in Ray tasks."""
    totals = Totals()
    is_done = np.ones(plan.shards, bool)
    is_done[missing] = False
    done = np.flatnonzero(is_done)  # Python's own numbers of a million shards take 100 MB
    chunks = (done[start : start + STATISTICS_A_TASK].tolist() for start in range(0, len(done), STATISTICS_A_TASK))
    for part in in_tasks(partial(_statistics, settings.output, settings.formats[-1]), chunks):
        totals.add(part)
    return totals


def _remove_results(settings: SegmentSettings) -> None:
    """Remove what an earlier run left; SegrayError when OUTPUT/masks holds any other files."""
    for file in files_if_any(join(settings.output, "masks")):
        if all(shard_of(file.uri, fmt) < 0 for fmt in EXTENSIONS):
            raise SegrayError(f"{file.uri} is no mask shard, so nothing is overwritten; give another --output")
    # A plan.json never lacks its files; and no summary outlives its masks, or it might be taken for the next ones'.
    for name in (SEGMENTATION, "summary.json", "report.html", "plan", "masks"):
        remove(join(settings.output, name))


def _statistics(output: str, fmt: str, shards: list[int]) -> Totals:
    totals = Totals()
    for shard in shards:
        totals.add(summarise(read_statistics(output, shard, fmt)))
    return totals
