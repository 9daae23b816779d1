"""Making the plan of a segmentation: list on the driver, read headers in Ray tasks, group items into shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter

import ray

from segray.archives.members import CONTAINERS, kind_of
from segray.cluster import noting_waits
from segray.errors import SegrayError
from segray.expand import Cutting, Found, expand, failed, is_small
from segray.plan import IMAGES_A_SHARD, Item, ListingDigest, Plan, group, whole, write_files
from segray.storage import File
from segray.tasks import DEATHS, result_of

FILES_A_TASK = 500
TASKS_IN_FLIGHT = 64  # bounds what the driver holds, and keeps a cluster busy
KILLED = "reading its header killed its process (out of memory, or a fault of a decoder)"
Running = list[Item] | Iterator[Found]


def make_plan(uri: str, files: Iterable[File], cutting: Cutting) -> tuple[Plan, ListingDigest]:
    """Write the plan files for an archive's listing, in bounded memory; `plan.save` makes them valid.

    SegrayError when no image of the archive can be segmented, with the reason for the first.
    """
    digest, seen = ListingDigest(), _Seen()
    items = seen.watch(_items(digest.watch(files), cutting, seen))
    shards = group(items, cutting.shard_pixels, size=attrgetter("estimate"), most=IMAGES_A_SHARD)
    counts = write_files(uri, shards)
    if not seen.usable:
        reason = f"the first: {seen.error}" if seen.error else "it holds files for images, but no image in them"
        raise SegrayError(f"none of the {seen.images} images can be segmented; {reason}")
    plan = Plan(uri=uri, fingerprint={}, files=counts, images=seen.images, skipped=seen.skipped)
    return plan, digest


def _items(files: Iterable[File], cutting: Cutting, seen: _Seen) -> Iterator[Item]:
    """The items of the files, in listing order whatever order the tasks end in."""
    running: deque[Running] = deque()
    for chunk in _chunks(files):
        if all(is_small(file) for file in chunk):
            running.append([whole(file) for file in chunk])
        else:
            running.append(_found(_expand.remote(chunk, cutting), chunk, cutting))
        while running and (isinstance(running[0], list) or len(running) >= TASKS_IN_FLIGHT):
            yield from _done(running.popleft(), seen)
    yield from chain.from_iterable(_done(items, seen) for items in running)


def _chunks(files: Iterable[File]) -> Iterator[tuple[File, ...]]:
    """Up to `FILES_A_TASK` images each, or one file that holds many."""
    chunk: list[File] = []
    for file in files:
        alone = kind_of(file.uri) is not None
        if chunk and (alone or len(chunk) == FILES_A_TASK):
            yield tuple(chunk)
            chunk = []
        if alone:
            yield (file,)
        else:
            chunk.append(file)
    if chunk:
        yield tuple(chunk)


def _done(running: Running, seen: _Seen) -> Iterator[Item]:
    if isinstance(running, list):
        yield from running
        return
    for found in running:
        seen.skipped += found.skipped
        yield from found.items


def _found(results: ray.ObjectRefGenerator, files: tuple[File, ...], cutting: Cutting) -> Iterator[Found]:
    """What a task finds in files; if its process dies, what one task per file finds; a failed item if that dies too.

    Only a container, which is alone in its task, gives several results; those given before the death
    are not given again. Any other task has one result, after which nothing is left to do.
    """
    given = 0
    try:
        for found in noting_waits(map(result_of, results)):
            given += 1
            yield found
        return
    except DEATHS:
        several = kind_of(files[0].uri) in CONTAINERS
    if given and not several:
        return
    for file, again in [(file, _expand.remote((file,), cutting)) for file in files]:
        now = 0
        try:
            for now, found in enumerate(map(result_of, again), 1):
                if now > given:
                    yield found
        except DEATHS:
            if several or not now:
                yield Found(items=[failed(file, f"{file.uri}: {KILLED}")])


@ray.remote(num_cpus=1, num_returns="streaming")
def _expand(files: tuple[File, ...], cutting: Cutting) -> Iterator[Found]:
    yield from expand(files, cutting)


class _Seen:
    """Counts images; remembers whether any item can be segmented, and the error of the first that cannot."""

    def __init__(self) -> None:
        self.usable = False
        self.error: str | None = None
        self.images = self.skipped = 0

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        last = None
        for item in items:
            self.images += item.image != last
            last = item.image
            self.usable = self.usable or item.error is None
            self.error = self.error or item.error
            yield item
