"""The plan: the table of all shards and what each segments, written once to OUTPUT/plan/ and read on every restart.

`plan-NNNNN.parquet` holds up to `SHARDS_A_FILE` shards in small row groups, so that a worker reads little beyond its
own; `plan.json`, written last, holds the fingerprint of all that can change a pixel. Shard ids continue across files.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray import grid
from segray.errors import SegrayError
from segray.grid import Lattice, Window
from segray.resample import Scaling
from segray.storage import File, exists, publish, read_bytes, read_text, retry
from segray.store_errors import describe
from segray.uris import ending, filesystem, join

Part = TypeVar("Part")
SHARDS_A_FILE = 1024
# In a row group: if each held one shard, a worker would parse the metadata of 1024 to find its own; the limit on items
# bounds the driver's memory.
SHARDS_A_GROUP, ITEMS_A_GROUP = 32, 4096
IMAGES_A_SHARD = 1024  # a shard is also the unit of retry: keep one of tiny images at seconds of work
FORMAT_VERSION = 1
AFRESH = "start afresh with --overwrite or give another --output"
DAMAGE = (pa.ArrowException, tarfile.TarError, OSError, ValueError, LookupError, TypeError, AttributeError) + (
    OverflowError, RecursionError, StopIteration,
)  # fmt: skip
# Approximate pixels per byte of pictures that are planned by their listed size alone, by ending.
# Pictures in tables have no ending, and are mostly JPEGs.
PIXELS_A_BYTE = {".jpg": 4.0, ".jpeg": 4.0, ".webp": 8.0, "": 4.0}


@dataclass(frozen=True, kw_only=True, slots=True)  # there is at least one per image
class Item:
    """A piece of work: a block of windows of an image, or a whole image whose size is known once it is read.

    part: see `storage.File`. height, width: of the block in pixels, 0 for a whole image not yet measured. error: why
    the image cannot be segmented, known from its header. estimate: approximate pixels of work. source_height,
    source_width: size of an image that is segmented on a coarser grid, to which all else then refers; 0 otherwise.
    """

    image: str
    etag: str
    part: str = ""
    row_off: int = 0
    col_off: int = 0
    height: int = 0
    width: int = 0
    image_height: int = 0
    image_width: int = 0
    source_height: int = 0
    source_width: int = 0
    estimate: int = 0
    error: str | None = None

    @property
    def block(self) -> Window | None:
        """The rectangle to segment; None for the whole image."""
        return Window(self.row_off, self.col_off, self.height, self.width) if self.height else None

    @property
    def scaling(self) -> Scaling | None:
        """How the image and its coarser grid correspond; None if it is segmented as it is."""
        if not self.source_height:
            return None
        source = {"height": self.source_height, "width": self.source_width}
        return Scaling(**source, to_height=self.image_height, to_width=self.image_width)


SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        *((name, pa.string()) for name in ("image", "etag", "part")),
        *((name, pa.int32()) for name in ("row_off", "col_off", "height", "width", "image_height", "image_width")),
        *((name, pa.int32()) for name in ("source_height", "source_width")),
        ("estimate", pa.int64()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What plan.json says. files: shards in each plan file. images, skipped: counts. fingerprint: see `check`."""

    uri: str
    fingerprint: dict
    files: tuple[int, ...]
    images: int
    skipped: int

    @property
    def shards(self) -> int:
        """How many shards there are; their ids are 0, 1, 2, ..."""
        return sum(self.files)


def whole(file: File) -> Item:
    """The item of a whole picture, planned by its listed size alone."""
    pixels = int(file.size * PIXELS_A_BYTE.get(ending(file.uri), 1.0)) + 1
    return Item(image=file.uri, etag=file.etag, part=file.part, estimate=pixels)


def cut(
    file: File,
    *,
    height: int,
    width: int,
    lattice: Lattice,
    shard_pixels: int,
    scaling: Scaling | None = None,
    blocks: Iterable[Window] | None = None,
) -> Iterator[Item]:
    """The items of an image of known size: blocks of about a shard's pixels, or the given ones, if only some have data.

    scaling: to the coarser grid on which it is segmented.
    """
    source: dict[str, int] = {}
    if scaling is not None:
        source = {"source_height": height, "source_width": width}
        height, width = scaling.to_height, scaling.to_width
    base = Item(image=file.uri, etag=file.etag, part=file.part, image_height=height, image_width=width, **source)
    for block in grid.blocks(height, width, lattice, shard_pixels) if blocks is None else blocks:
        yield replace(base, **asdict(block), estimate=block.pixels)


def group(items: Iterable[Part], limit: int, *, size: Callable[[Part], int], most: int) -> Iterator[list[Part]]:
    """Consecutive items in groups of at most `most`, whose sizes add up to at most `limit`; one item may exceed it."""
    found: list[Part] = []
    total = 0
    for item in items:
        if found and (total + size(item) > limit or len(found) == most):
            yield found
            found, total = [], 0
        found.append(item)
        total += size(item)
    if found:
        yield found


def write_files(uri: str, shards: Iterable[list[Item]]) -> tuple[int, ...]:
    """Write the plan files as the shards come, holding one file in memory; returns how many shards each has."""
    files: list[int] = []
    stream = enumerate(shards)
    while first := next(stream, None):
        of_file = chain([first], islice(stream, SHARDS_A_FILE - 1))
        groups = group(of_file, ITEMS_A_GROUP, size=lambda numbered: len(numbered[1]), most=SHARDS_A_GROUP)
        files.append(_write_file(uri, len(files), groups))
    return tuple(files)


def save(plan: Plan) -> None:
    """Write plan.json, which makes the plan files valid."""
    values = {name: value for name, value in asdict(plan).items() if name != "uri"}
    publish(join(plan.uri, "plan.json"), json.dumps({"format_version": FORMAT_VERSION, **values}, indent=1).encode())


def load(uri: str) -> Plan | None:
    """The plan in a folder, None when there is none; SegrayError when plan.json is damaged or of a later version."""
    source = join(uri, "plan.json")
    if not exists(source):
        return None
    try:
        document = json.loads(read_text(source))
        if document.pop("format_version") > FORMAT_VERSION:
            raise SegrayError(f"{source} was written by a later segray; update segray or give another --output")
        checked = {"fingerprint": fingerprint(**document["fingerprint"]), "files": tuple(map(int, document["files"]))}
        return Plan(uri=uri, **{**document, **checked})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SegrayError(f"{source} is damaged; {AFRESH}") from error


def read_shard(uri: str, shard: int) -> list[Item]:
    """The items of one shard, from one row group of one plan file."""
    name = f"plan-{shard // SHARDS_A_FILE:05d}.parquet"
    fs, path = filesystem(join(uri, name))

    def read() -> pa.Table:
        with fs.open(path, "rb", cache_type="readahead") as file:
            table = pq.ParquetFile(file)
            return table.read_row_group(_group_of(table.metadata, shard))

    with damage_told(join(uri, name), AFRESH):
        table = retry(read)
        rows = table.filter(pc.equal(table["shard"], shard)).drop_columns(["shard"]).to_pylist()
        return [Item(**row) for row in rows]


def parts(uri: str) -> dict[str, str]:
    """Image -> where it lies in the file that holds it, for the images of a plan that are not files themselves."""
    plan, found = load(uri), {}
    for number in range(len(plan.files) if plan else 0):
        source = join(uri, f"plan-{number:05d}.parquet")
        with damage_told(source, AFRESH):
            table = pq.ParquetFile(pa.BufferReader(read_bytes(source))).read(columns=["image", "part"])
            table = table.filter(pc.not_equal(table["part"], ""))
            found |= dict(zip(table["image"].to_pylist(), table["part"].to_pylist()))
    return found


@contextmanager
def damage_told(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its readers raise into a SegrayError; errors of stores and disks pass."""
    try:
        yield
    except DAMAGE as error:
        # Arrow reports some damage as a plain OSError without a number
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        raise SegrayError(f"{what} is damaged: {describe(error)}; {advice}") from error


def fingerprint(*, archive: str, listing: str, images: int, model: str, settings: dict) -> dict:
    """All that can change a pixel or a shard: the listing's digest with etags, the model's digest, the settings."""
    return {"archive": archive, "listing": listing, "images": images, "model": model, "settings": settings}


def check(plan: Plan, wanted: dict) -> None:
    """SegrayError, saying what differs, unless the plan in the output is that of the wanted job."""
    have = plan.fingerprint
    if have == wanted:
        return
    reasons = [] if have["archive"] == wanted["archive"] else [f"--archive was {have['archive']}"]
    if not reasons and have["listing"] != wanted["listing"]:
        more = f"held {have['images']} images and now holds {wanted['images']}"
        reasons.append(f"the archive {more if have['images'] != wanted['images'] else 'holds other or changed images'}")
    if have["model"] != wanted["model"]:
        reasons.append("the model is another one")
    for name in sorted(set(have["settings"]) | set(wanted["settings"])):
        before, now = have["settings"].get(name), wanted["settings"].get(name)
        if before != now:
            before, now = ("not given" if value is None else value for value in (before, now))
            reasons.append(f"--{name} was {before} and is now {now}")
    raise SegrayError(
        f"{plan.uri} belongs to another job: {'; '.join(reasons)}; "
        "give another --output, or start afresh with --overwrite"
    )


class ListingDigest:
    """sha256 over the URIs, sizes and etags of a listing, taken as it streams by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.images = 0

    def watch(self, files: Iterable[File]) -> Iterator[File]:
        """The same files, counted and digested."""
        for file in files:
            self.images += 1
            self._hash.update(f"{file.uri}\0{file.size}\0{file.etag}\n".encode())
            yield file

    def hexdigest(self) -> str:
        """The digest of the files seen so far."""
        return self._hash.hexdigest()


def _group_of(metadata: pq.FileMetaData, shard: int) -> int:
    """The row group that holds a shard; shards ascend through a file."""
    last = (metadata.row_group(number).column(0).statistics.max for number in range(metadata.num_row_groups))
    return next(number for number, most in enumerate(last) if shard <= most)


def _write_file(uri: str, number: int, groups: Iterable[list[tuple[int, list[Item]]]]) -> int:
    """Write one plan file, with one row group per group of numbered shards; returns how many shards it holds."""
    buffer, count = io.BytesIO(), 0
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd") as writer:
        for shards in groups:
            count += len(shards)
            writer.write_table(_table(shards))
    publish(join(uri, f"plan-{number:05d}.parquet"), buffer.getvalue())
    return count


def _table(shards: list[tuple[int, list[Item]]]) -> pa.Table:
    """The rows of numbered shards, made column by column: a fifth of the time that one dict per item takes."""
    columns = {"shard": [number for number, items in shards for _ in items]}
    for name in SCHEMA.names[1:]:
        columns[name] = [getattr(item, name) for _, items in shards for item in items]
    return pa.Table.from_pydict(columns, schema=SCHEMA)
