"""Making the plan of a segmentation: list on the driver, read headers in Ray tasks, group into shards in a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import ray

from segray.archives import Archive
from segray.archives.images import is_picture, read_header
from segray.errors import ImageError, MismatchError, SegrayError
from segray.grid import Lattice
from segray.inputs import InputSpec, check_pixels
from segray.plan import Item, ListingDigest, Plan, cut, group, save, whole, write_files
from segray.storage import File

FILES_A_TASK = 500
MAX_BLOCK_BYTES = 2**29  # of a block of many bands or wide types: an actor holds it whole
TASKS_IN_FLIGHT = 64  # bounds what the driver holds, and keeps a cluster busy
# A picture up to this size is planned from its listing alone: no request per object. Larger ones may need cutting.
SMALL_PICTURE_BYTES = 4 * 2**20


def make_plan(
    uri: str, archive: Archive, *, spec: InputSpec, explicit_bands: bool, lattice: Lattice, shard_pixels: int
) -> tuple[Plan, ListingDigest]:
    """Write the plan files of an archive; `finish_plan` makes them valid. Memory does not grow with the archive.

    SegrayError when no image of the archive can be segmented, with the reason of the first.
    """
    digest = ListingDigest()
    files = digest.watch(archive.images())
    seen = _Seen()
    items = seen.watch(_items(files, spec, explicit_bands, lattice, shard_pixels))
    counts = write_files(uri, group(items, shard_pixels))
    if seen.error and not seen.usable:
        raise SegrayError(f"none of the {digest.images} images can be segmented; the first: {seen.error}")
    return Plan(uri=uri, fingerprint={}, files=counts, images=digest.images, skipped=archive.skipped), digest


def finish_plan(plan: Plan, fingerprint: dict) -> Plan:
    """Write plan.json with the fingerprint; the plan is valid from here on."""
    finished = Plan(**{**vars(plan), "fingerprint": fingerprint})
    save(finished)
    return finished


def _items(
    files: Iterable[File], spec: InputSpec, explicit_bands: bool, lattice: Lattice, shard_pixels: int
) -> Iterator[Item]:
    """The items of the files in listing order, whatever order the header tasks end in."""
    running: deque[list[Item] | ray.ObjectRef] = deque()
    stream = iter(files)
    while chunk := tuple(islice(stream, FILES_A_TASK)):
        if all(_is_small(file) for file in chunk):
            running.append([whole(file) for file in chunk])
        else:
            running.append(_measure.remote(chunk, spec, explicit_bands, lattice, shard_pixels))
        while running and (isinstance(running[0], list) or len(running) >= TASKS_IN_FLIGHT):
            yield from _done(running.popleft())
    yield from chain.from_iterable(_done(items) for items in running)


def _done(items: list[Item] | ray.ObjectRef) -> list[Item]:
    return items if isinstance(items, list) else ray.get(items)


def _is_small(file: File) -> bool:
    return is_picture(file.uri) and file.size <= SMALL_PICTURE_BYTES


@ray.remote(num_cpus=1)
def _measure(
    files: tuple[File, ...], spec: InputSpec, explicit_bands: bool, lattice: Lattice, shard_pixels: int
) -> list[Item]:
    """The items of files whose headers must be read, several at once."""
    from concurrent.futures import ThreadPoolExecutor

    def items(file: File) -> list[Item]:
        if _is_small(file):
            return [whole(file)]
        try:
            header = read_header(file.uri)
            if not (header.bands == 1 and header.dtype == "uint8"):  # 8-bit grey is judged when it is read
                dtype = np.dtype(header.dtype)
                check_pixels(spec, bands=header.bands, dtype=dtype, explicit_bands=explicit_bands, source=file.uri)
        except (ImageError, MismatchError) as error:
            return [Item(image=file.uri, etag=file.etag, estimate=1, error=str(error))]
        most = MAX_BLOCK_BYTES // (header.bands * np.dtype(header.dtype).itemsize)
        size = {"height": header.height, "width": header.width}
        return list(cut(file, **size, lattice=lattice, shard_pixels=min(shard_pixels, most)))

    with ThreadPoolExecutor(16) as pool:
        return list(chain.from_iterable(pool.map(items, files)))


class _Seen:
    """Remembers whether any item can be segmented, and the first reason why one cannot."""

    def __init__(self) -> None:
        self.usable = False
        self.error: str | None = None

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self.usable = self.usable or item.error is None
            self.error = self.error or item.error
            yield item
