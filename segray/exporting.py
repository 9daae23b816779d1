"""The export job: writes the scenes of mask shards as files. Run again with the same settings, it continues."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TextIO

import ray

from segray import cluster
from segray.errors import SegrayError, one_line
from segray.export_removal import remove_former
from segray.export_tasks import Exporter, Outcome
from segray.exports import EXPORTS
from segray.exports.names import ending_of
from segray.listing import files_if_any
from segray.places import EXPORT, check_unclaimed, lies_in
from segray.plan import group
from segray.scenes import Masks, Scene, open_masks, pieces_of, whole
from segray.scratch import scratch
from segray.settings import ExportSettings
from segray.storage import exists, publish, publish_file, read_text, remove, remove_leftovers
from segray.tasks import DEATHS, in_tasks, result_of
from segray.uris import join, real

log = logging.getLogger("segray")
FORMAT_VERSION = 2
SUMMARY, COLLECTION = "summary.json", "collection.json"
SHARDS_A_TASK, STATISTICS_IN_FLIGHT = 16, 4  # tasks at once, whose results wait on the driver
GROUP_PIXELS, GROUP_SCENES = 2**24, 256  # at most, of a task, which reads a shard once for all its scenes
MAX_FAILURES = 100  # that summary.json lists
NOTE_EVERY_S = 15.0


@dataclass(kw_only=True)
class _Counts:
    """Sums over the outcomes of scenes. written: a file of all scenes counts as one. lost: such files that failed."""

    scenes: int = 0
    written: int = 0
    there: int = 0
    failed: int = 0
    incomplete: int = 0
    lost: list[dict] = field(default_factory=list)
    failures: list[dict] = field(default_factory=list)
    facts: Counter = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.written += outcome.written
        self.facts.update(outcome.facts)
        if not outcome.scenes:
            self.lost += [] if outcome.error is None else [{"file": outcome.image, "error": outcome.error}]
            return
        self.scenes += outcome.scenes
        self.there += outcome.there
        self.incomplete += outcome.incomplete
        if outcome.error is not None:
            self.failed += 1
            self.failures = [*self.failures, {"image": outcome.image, "error": outcome.error}][:MAX_FAILURES]


def export(settings: ExportSettings) -> dict:
    """Write the scenes of a segmentation as files under OUTPUT; returns what this run did, in the form of summary.json.

    A run that writes nothing leaves the summary.json of the former one.
    SegrayError on bad input: no finished segmentation, an output that holds another export or lies in the archive.
    """
    masks = open_masks(settings.masks)
    if lacking := [name for name in settings.formats if EXPORTS[name].LAYER not in masks.layers]:
        raise SegrayError(
            f"{masks.output} has no {lacking[0]} of pixels; segment with --{lacking[0]} into another OUTPUT"
        )
    _check_place(settings, masks)
    cluster.start()
    usual = ending_of(pieces_of(masks, 0)[0].image)  # of the archive's first image
    exporter = Exporter(masks=masks, settings=settings, usual=usual)
    _claim(settings, masks, exporter)
    cluster.check_shared(settings.output, EXPORT)
    start, counts = time.monotonic(), _Counts()
    with scratch() as folder:
        path = os.path.join(folder, COLLECTION)
        with open(path, "w", encoding="utf-8") as file:
            _collect(outcomes_of(exporter), counts, file)
        remove_leftovers(settings.output)
        summary_uri, collection_uri = join(settings.output, SUMMARY), join(settings.output, COLLECTION)
        summary = _summary(settings, counts, time.monotonic() - start)
        if not counts.written and exists(collection_uri) and _tells(summary_uri, summary):
            if not counts.lost:
                done = counts.scenes - counts.failed
                log.info("nothing to do: all of %d scenes that can be exported are there", done)
            return summary
        publish_file(collection_uri, path)
    publish(summary_uri, json.dumps(summary, indent=1).encode())
    return summary


def _tells(summary_uri: str, summary: dict) -> bool:
    """Whether the summary of an earlier run says what is missing now: it may have been killed before it wrote one."""
    earlier = _read_record(summary_uri) if exists(summary_uri) else {}
    return all(earlier.get(name) == summary[name] for name in ("scenes", "failed", "incomplete", "lost"))


def scenes_of(masks: Masks) -> Iterator[Scene]:
    """The scenes of all shards in the order of the plan; memory does not grow with their number."""
    parts = in_tasks(partial(_read_parts, masks), _chunks(masks), in_flight=STATISTICS_IN_FLIGHT)
    return whole(chain.from_iterable(parts))


def _chunks(masks: Masks) -> Iterator[range]:
    return (range(masks.shards)[k : k + SHARDS_A_TASK] for k in range(0, masks.shards, SHARDS_A_TASK))


def _read_parts(masks: Masks, shards: range) -> list[Scene]:
    """What a few shards hold of each scene, in their order; read concurrently, since stores have latency."""
    with ThreadPoolExecutor(len(shards)) as pool:
        return list(chain.from_iterable(pool.map(partial(pieces_of, masks), shards)))


@ray.remote(num_cpus=1, max_retries=1)
def _export(exporter: Exporter, scenes: list[Scene]) -> list[Outcome]:
    return list(exporter.outcomes(scenes))


@ray.remote(num_cpus=1, max_retries=1)
def _export_all(exporter: Exporter, name: str) -> Outcome:
    parts = (_read_parts(exporter.masks, shards) for shards in _chunks(exporter.masks))
    return exporter.all_in_one(name, list(whole(chain.from_iterable(parts))))


def outcomes_of(exporter: Exporter) -> Iterator[Outcome]:
    """What became of every scene, in the order of the plan, and of the formats that put all scenes in one file."""
    running: deque[tuple[list[Scene], ray.ObjectRef]] = deque()
    for scenes in _groups(exporter.masks):
        running.append((scenes, _export.remote(exporter, scenes)))
        if len(running) > 2 * cluster.cpus():
            yield from _got(exporter, *running.popleft())
    for scenes, task in running:
        yield from _got(exporter, scenes, task)
    for name in exporter.formats(per_scene=False):
        yield _got_all(exporter, name)


def _got_all(exporter: Exporter, name: str) -> Outcome:
    """The outcome of a file of all scenes, which has failed if writing it kills the process."""
    file = EXPORTS[name].FILE
    log.info("writing %s", file)
    try:
        (outcome,) = cluster.noting_waits(map(result_of, [_export_all.remote(exporter, name)]))
        return outcome
    except DEATHS as error:
        reason = f"{file} killed the process that wrote it; run the export again with more memory: {one_line(error)}"
        return Outcome(scenes=0, image=file, error=reason)


def _got(exporter: Exporter, scenes: list[Scene], task: ray.ObjectRef) -> list[Outcome]:
    """The outcomes of a task; if its process died, each scene is tried alone, and one that kills its own has failed."""
    try:
        (outcomes,) = cluster.noting_waits(map(result_of, [task]))
        return outcomes
    except DEATHS as error:
        if len(scenes) == 1:
            reason = f"{scenes[0].image} killed the process that exported it: {one_line(error)}"
            return [Outcome(image=scenes[0].image, error=reason)]
    return [outcome for scene in scenes for outcome in _got(exporter, [scene], _export.remote(exporter, [scene]))]


def _groups(masks: Masks) -> Iterator[list[Scene]]:
    """The scenes in groups, each for a task."""
    return group(scenes_of(masks), GROUP_PIXELS, size=lambda scene: scene.height * scene.width, most=GROUP_SCENES)


def _collect(outcomes: Iterable[Outcome], counts: _Counts, file: TextIO) -> None:
    """Count the outcomes and write their items, one a line, as a STAC item collection."""
    file.write('{"type": "FeatureCollection", "features": [')
    noted, separator = time.monotonic(), "\n"
    for outcome in outcomes:
        counts.add(outcome)
        if outcome.item is not None:
            file.write(separator + json.dumps(outcome.item))
            separator = ",\n"
        if time.monotonic() - noted > NOTE_EVERY_S:
            noted = time.monotonic()
            numbers = counts.scenes, counts.written, counts.there, counts.failed
            log.info("%d scenes: %d written, %d there before, %d failed", *numbers)
    file.write("\n]}\n")


def _check_place(settings: ExportSettings, masks: Masks) -> None:
    """SegrayError if the output lies among what it is made of, holds the archive, or belongs to another job."""
    output, source, archive = settings.output, settings.masks, masks.archive.split("::")[-1]
    kept = (archive, join(source, "masks"), join(source, "plan"))
    if any(lies_in(output, folder) for folder in kept) or real(output) == real(source) or lies_in(archive, output):
        raise SegrayError(f"--output {settings.output} holds the masks or their imagery; give a folder of its own")
    check_unclaimed(output, EXPORT)


def _claim(settings: ExportSettings, masks: Masks, exporter: Exporter) -> None:
    """Record in the output which export it holds; SegrayError when it holds another, unless --overwrite."""
    uri, wanted = join(settings.output, EXPORT), _record(settings, masks)
    had = _read_record(uri) if exists(uri) else None
    if had is None:
        _check_empty(settings.output)
    elif settings.overwrite:
        remove(join(settings.output, SUMMARY))
        remove_former(exporter, _groups(masks), former=had, collection=join(settings.output, COLLECTION))
    elif had == wanted:
        return
    else:
        differing = next((key for key in wanted if had.get(key) != wanted[key]), "format_version")
        raise SegrayError(
            f"{settings.output} holds another export: its {differing} was {had.get(differing)} and is now "
            f"{wanted.get(differing)}; give another --output, or --overwrite"
        )
    publish(uri, json.dumps(wanted, indent=1, sort_keys=True).encode())


def _check_empty(output: str) -> None:
    """SegrayError when a folder holds any file: an export could take it for its own."""
    first = next(files_if_any(output), None)
    if first is not None:
        raise SegrayError(f"{output} holds {first.uri}, but no export; give an empty --output")


def _record(settings: ExportSettings, masks: Masks) -> dict:
    """What can change a byte of the output."""
    return {
        "format_version": FORMAT_VERSION,
        "archive": masks.archive,
        "model_digest": masks.metadata["model_digest"],
        "segmentation": masks.metadata["settings"],
        "masks_digest": masks.digest,
        "format": ",".join(settings.formats),
        "min_area": settings.min_area,
        "simplify": settings.simplify,
        "max_zoom": settings.max_zoom,
    }


def _read_record(uri: str) -> dict:
    try:
        record = json.loads(read_text(uri))
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {}


def _summary(settings: ExportSettings, counts: _Counts, seconds: float) -> dict:
    return {
        "masks": settings.masks,
        "output": settings.output,
        "format": list(settings.formats),
        "scenes": counts.scenes,
        "written": counts.written,
        "skipped": counts.there,
        "failed": counts.failed,
        "incomplete": counts.incomplete,  # scenes with a part that was not segmented and is 255
        "failed_share": counts.failed / max(1, counts.scenes),
        "lost": counts.lost,  # files of all scenes that were not written
        "seconds": seconds,
        "totals": dict(counts.facts),
        "failures": counts.failures,
    }
