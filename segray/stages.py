"""The stages of a segmentation, each measured alone: reading, decoding, the network, writing.

A stage is measured on all cores at once, in processes of one thread each, as the job uses them: cores share caches and
memory, so each is slower beside the others than alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from segray import walk
from segray.archives.images import read_for
from segray.grid import Window, reflect, windows
from segray.inputs import prepare
from segray.ordered import in_order
from segray.plan import Item, read_shard
from segray.regions import Region, WindowMask
from segray.shards import Place, mask_of, read_masks, window_of, write_shard
from segray.storage import File
from segray.uris import filesystem
from segray.walk import READ_THREADS, Segmented

if TYPE_CHECKING:
    import torch

    from segray.segmenter import Segmenter
    from segray.work import Work

PIECE_BYTES = 8 * 2**20
NETWORK_S = 4.0  # how long the network runs in one measurement
WARM_UP = 3  # batches
TOGETHER_S = 600.0  # patience for the slowest process to start
ALIGNED = 2048  # side of decoded windows, pixels: chosen so that no block of a common raster is decoded twice

Decoding = tuple[str, str, Window | None]  # an image, its part of a file, and a window of it


@dataclass(frozen=True, kw_only=True)
class Cost:
    """amount: of what a stage works on (pixels, bytes, tiles). seconds: elapsed. cpu_seconds: of all processes."""

    amount: float
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Amount per elapsed second."""
        return self.amount / self.seconds


class Clock:
    """Sums the seconds and CPU seconds of this process while entered; calls `ready` before it first starts."""

    def __init__(self, ready: Callable[[], object] = lambda: None) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.ready, self.waited = ready, False

    def __enter__(self) -> Clock:
        self.wait()
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.cpu_seconds += time.process_time() - self._start[1]

    def wait(self) -> None:
        """Call `ready`, once."""
        if not self.waited:
            self.waited = True
            self.ready()


def alone(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The result of a function run in a new process, so that CPU time and peak memory are its alone."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


class Workers:
    """Processes that measure a stage at the same time; they are kept from one measurement to the next."""

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        self.count = count
        self._pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(context.Barrier(count),))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def measure(self, stage: Callable[[Work, Any, Clock], float], work: Work, parts: Sequence[Any]) -> Cost:
        """The cost of a stage whose parts, one per process, are done at the same time."""
        if len(parts) != self.count:
            raise ValueError(f"{self.count} processes need as many parts, not {len(parts)}")
        futures = [self._pool.submit(_measure, stage, work, part) for part in parts]
        met = [error for error in (future.exception() for future in futures) if error is not None]
        if met:  # the errors of those that waited for the one that failed tell nothing
            raise next((error for error in met if not isinstance(error, threading.BrokenBarrierError)), met[0])
        costs = [future.result() for future in futures]
        return Cost(
            amount=sum(cost.amount for cost in costs),
            seconds=max(cost.seconds for cost in costs),
            cpu_seconds=sum(cost.cpu_seconds for cost in costs),
        )

    def map(self, function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        """function(part) of each part, in order, computed as processes become free."""
        return list(self._pool.map(function, parts))

    def shares(self, things: Sequence[Any]) -> list[list[Any]]:
        """Things dealt out, one list per process."""
        return [list(things[start :: self.count]) for start in range(self.count)]


def read_pieces(work: Work, pieces: list[tuple[str, int, int]], clock: Clock) -> float:
    """Fetch pieces of files (URI, start, stop), several at once; returns how many bytes."""
    with clock, ThreadPoolExecutor(READ_THREADS) as pool:
        return float(sum(pool.map(_read_piece, pieces)))


def pieces_of(files: Iterable[File]) -> list[tuple[str, int, int]]:
    """(URI, start, stop) of the pieces of files."""
    return [
        (file.uri, start, min(start + PIECE_BYTES, file.size))
        for file in files
        for start in range(0, file.size, PIECE_BYTES)
    ]


def decode(work: Work, parts: list[Decoding], clock: Clock) -> float:
    """Read and decode windows of images (None: whole), which do not overlap; returns how many pixels."""

    def pixels(decoding: Decoding) -> int:
        image, part, window = decoding
        return read_for(image, work.spec, part=part, window=window, explicit_bands=work.explicit_bands).valid.size

    with clock, ThreadPoolExecutor(READ_THREADS) as pool:
        return float(sum(in_order(pixels, parts, pool=pool, ahead=READ_THREADS)))


def decodings(items: Iterable[Item]) -> list[Decoding]:
    """What `decode` reads of a plan's images: each pixel once, in windows aligned with the blocks of rasters."""
    sizes = {(item.image, item.part): (item.image_height, item.image_width) if item.block else None for item in items}
    parts = ((place, windows(*size, ALIGNED) if size else [None]) for place, size in sizes.items())
    return [(*place, window) for place, found in parts for window in found]


def run_network(work: Work, shards: Iterable[int], clock: Clock) -> float:
    """Run the network for about `NETWORK_S` seconds on a batch in its device's memory; returns how many tiles."""
    segmenter = work.segmenter()
    x_NCHW = _a_batch(work, shards, segmenter)
    for _ in range(WARM_UP):
        _forward(segmenter, x_NCHW)
    trial = Clock()
    with trial:
        _forward(segmenter, x_NCHW)
    batches = max(1, round(NETWORK_S / trial.seconds))
    with clock:
        _forward(segmenter, x_NCHW, times=batches)
    return float(batches * len(x_NCHW))


def write(work: Work, part: tuple[str, list[int], str], clock: Clock) -> float:
    """Encode and publish the masks of part = (an output, its shards, the output to write); returns how many pixels."""
    output, shards, to = part
    pixels = 0
    for shard in shards:
        results = [_segmented(row, mask) for row, mask in read_masks(output, shard, work.formats[-1])]
        with clock:
            rows = list(walk.rows(results, work.classes))
            write_shard(to, shard, rows=rows, formats=work.formats, metadata=work.metadata)
        pixels += sum(result.masks[0].mask.size for result in results)
    return float(pixels)


def count_tiles(work: Work, shards: list[int]) -> tuple[int, int]:
    """(needed, computed) tiles of shards: those whose first pixel with a say lies in them, and all.

    That pixel of a tile lies in one shard only, so over all shards `needed` counts each tile with data once.
    """
    needed = computed = 0
    for shard in shards:
        for reading in work.readings(read_shard(work.plan, shard)):
            if reading.region is not None:
                ours, all_ = _tiles_of(reading.region, work)
                needed, computed = needed + ours, computed + all_
    return needed, computed


def _tiles_of(region: Region, work: Work) -> tuple[int, int]:
    lattice, block = work.spec.lattice(work.blend), region.block
    rows = lattice.touching(block.row_off, block.row_off + block.height, region.height)
    cols = lattice.touching(block.col_off, block.col_off + block.width, region.width)
    needed = computed = 0
    for row, col in product(rows, cols):
        top, left = row * lattice.stride, col * lattice.stride
        down = reflect(top, top + lattice.tile, region.height) - region.extent.row_off
        across = reflect(left, left + lattice.tile, region.width) - region.extent.col_off
        if region.valid is None or region.valid[down[:, None], across].any():
            computed += 1
            near = lattice.margins[0]  # in which a tile has no say, unless it is the image's first
            needed += _holds(block, top + near * (row > 0), left + near * (col > 0))
    return needed, computed


def _holds(block: Window, row: int, col: int) -> bool:
    return 0 <= row - block.row_off < block.height and 0 <= col - block.col_off < block.width


_shared: dict[str, threading.Barrier] = {}  # between this process and the others of its `Workers`


def _begin(barrier: threading.Barrier) -> None:
    """Set up a process of `Workers`."""
    _shared["barrier"] = barrier


def _measure(stage: Callable[[Work, Any, Clock], float], work: Work, part: Any) -> Cost:
    clock = Clock(partial(_shared["barrier"].wait, TOGETHER_S))
    try:
        amount = stage(work, part, clock)
        clock.wait()  # the others wait for this process even if it has nothing to do
    except BaseException:
        _shared["barrier"].abort()  # they need not wait any longer
        raise
    return Cost(amount=amount, seconds=clock.seconds, cpu_seconds=clock.cpu_seconds)


def _read_piece(piece: tuple[str, int, int]) -> int:
    uri, start, stop = piece
    fs, path = filesystem(uri)
    return len(fs.cat_file(path, start=start, end=stop))


def _a_batch(work: Work, shards: Iterable[int], segmenter: Segmenter) -> torch.Tensor:
    """A batch of copies of the first tile that can be read, prepared for the network, on its device."""
    import torch

    readings = chain.from_iterable(work.readings(read_shard(work.plan, shard)) for shard in shards)
    region = next(reading.region for reading in readings if reading.region is not None)
    rows, cols = (reflect(0, work.spec.tile, size) for size in region.pixels.shape[1:])
    pixels = np.ascontiguousarray(region.pixels[:, rows[:, None], cols])
    pixels_NCHW = torch.from_numpy(np.stack([pixels] * segmenter.batch_size)).to(segmenter.device)
    return prepare(pixels_NCHW, None, work.spec)


def _forward(segmenter: Segmenter, x_NCHW: torch.Tensor, times: int = 1) -> None:
    import torch

    for _ in range(times):
        segmenter.forward(x_NCHW)
    if segmenter.device.type == "cuda":
        torch.cuda.synchronize(segmenter.device)


def _segmented(row: dict, png: bytes | None) -> Segmented:
    """A written row, turned back into what it was made from."""
    place = Place(
        image=row["image"],
        etag=row["etag"],
        height=row["image_height"],
        width=row["image_width"],
        crs=row["crs"],
        transform=tuple(row["transform"]) if row["transform"] else None,
    )
    mask = WindowMask(
        window=window_of(row),
        mask=mask_of(row, png),
        pixel_counts=np.array(row["pixel_counts"] or [], np.int64),
        valid_pixels=row["valid_pixels"],
        confidence=row["confidence"],
        seam_disagreement=row["seam_disagreement"],
    )
    return Segmented(place=place, masks=(mask,))
