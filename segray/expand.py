"""From an archive's listing to items of a plan: headers read, members listed, large images cut; one task's work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from threading import Semaphore

import numpy as np

from segray.archives import mosaic
from segray.archives.images import is_picture, is_unpacked, read_header
from segray.archives.levels import is_level
from segray.archives.members import CONTAINERS, is_row, kind_of
from segray.archives.options import ArchiveOptions
from segray.archives.raster import Header
from segray.archives.rasters import scaling_of
from segray.errors import ImageError, SegrayError
from segray.grid import Lattice
from segray.inputs import InputSpec, check_pixels
from segray.listing import no_file
from segray.plan import Item, cut, whole
from segray.storage import File, stat
from segray.store_errors import FINAL_ERRORS, reason_of
from segray.uris import is_local, local_path

MAX_BLOCK_BYTES = 2**29  # of a block of many bands or wide types: an actor holds it whole
# A picture up to this size is planned from its listing alone: no request per object. Larger ones may need cutting.
SMALL_PICTURE_BYTES = 4 * 2**20
MEMBERS_AT_A_TIME = 5000  # of a file that may hold millions
THREADS = 16
UNPACKED_BYTES = 2**25  # larger members that must be read whole even for their header are read two at a time
_UNPACKING = Semaphore(2)


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What decides how images are cut into items, and which of them can be segmented."""

    spec: InputSpec
    explicit_bands: bool
    lattice: Lattice
    shard_pixels: int
    options: ArchiveOptions


@dataclass(frozen=True, kw_only=True)
class Found:
    """Items, and how many members were skipped because they are not images."""

    items: list[Item]
    skipped: int = 0


def is_small(file: File) -> bool:
    """Whether a file is planned from its listing alone."""
    whole = is_picture(file.uri) or is_row(file.uri)
    return file.error is None and whole and 0 <= file.size <= SMALL_PICTURE_BYTES


def expand(files: tuple[File, ...], cutting: Cutting) -> Iterator[Found]:
    """The items of listed images in their order, or those of one file that holds many, some thousands at a time."""
    kind = kind_of(files[0].uri) if len(files) == 1 and files[0].error is None else None
    if kind is None:
        yield Found(items=_measured(files, cutting))
        return
    try:
        file = _known(files[0])
        if kind in mosaic.TILESETS:
            level = mosaic.level(kind, file.uri, etag=file.etag, zoom=cutting.options.zoom)
            yield Found(items=_measured([level], cutting))
        else:
            members = CONTAINERS[kind].members(file, cutting.options.column)
            while chunk := list(islice(members, MEMBERS_AT_A_TIME)):
                images = [member for member in chunk if member is not None]
                yield Found(items=_measured(images, cutting), skipped=len(chunk) - len(images))
    except SegrayError as error:
        yield Found(items=[failed(files[0], str(error))])


def _measured(files: Iterable[File], cutting: Cutting) -> list[Item]:
    """The items of images, whose headers are read concurrently."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda file: _items(file, cutting), files)))


def _items(file: File, cutting: Cutting) -> list[Item]:
    if is_small(file):
        return [whole(file)]
    if file.error is not None:
        return [failed(file, file.error)]
    try:
        file = _known(file)
        large = file.size > UNPACKED_BYTES and is_unpacked(file.uri, file.part)
        with _UNPACKING if large else nullcontext():
            header = read_header(file.uri, part=file.part)
        _check(file, header, cutting)
    except SegrayError as error:
        return [failed(file, str(error))]
    most = MAX_BLOCK_BYTES // (len(cutting.spec.bands) * np.dtype(header.dtype).itemsize)
    size = {"height": header.height, "width": header.width}
    shard_pixels = min(cutting.shard_pixels, most)
    blocks = None
    if is_level(file.uri):
        options = {"lattice": cutting.lattice, "max_pixels": shard_pixels}
        blocks = mosaic.occupied_blocks(mosaic.occupied(file), mosaic.tile_size(file), **size, **options)
    scaling = scaling_of(header, cutting.spec.resolution)
    options = {"lattice": cutting.lattice, "shard_pixels": shard_pixels, "scaling": scaling, "blocks": blocks}
    return list(cut(file, **size, **options))


def _known(file: File) -> File:
    """The file with its size and tag, which a list does not give; ImageError when its store does not give them."""
    if file.size >= 0:
        return file
    try:
        known = stat(file)
    except (ValueError, LookupError, OSError) as error:  # LookupError: of fsspec, for an address that is none
        if isinstance(error, OSError) and not isinstance(error, FINAL_ERRORS) and not is_local(file.uri):
            raise  # of a store that fails; of a disk it is a name that is too long, or a link to itself
        raise ImageError(f"{file.uri} cannot be read: {reason_of(error)}") from error
    path = local_path(file.uri)
    if error := path and no_file(path):
        raise ImageError(error)
    return known


def _check(file: File, header: Header, cutting: Cutting) -> None:
    spec = cutting.spec.for_bands(header.names, file.uri)
    if header.bands == 1 and header.dtype == "uint8":  # 8-bit grey is checked when it is read
        return
    seen = {"bands": header.bands, "alpha": header.alpha, "dtype": np.dtype(header.dtype)}
    check_pixels(spec, **seen, explicit_bands=cutting.explicit_bands, source=file.uri)


def failed(file: File, error: str) -> Item:
    """The item of a file that cannot be segmented."""
    return Item(image=file.uri, etag=file.etag, part=file.part, estimate=1, error=error)
