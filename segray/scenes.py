"""What the mask shards of a segmentation hold for each scene: which windows, where they are, and their pixels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, groupby
from numbers import Real

import numpy as np

from segray.archives.kept import Kept
from segray.errors import SegrayError
from segray.footprints import window_transform
from segray.grid import Affine6, Window
from segray.listing import files_if_any
from segray.masks import GREY, IGNORE, MAX_BYTES, PALETTE, Classes, decode_png
from segray.plan import damage_told
from segray.shards import (
    EXTENSIONS,
    MASK,
    OK,
    layers_of,
    read_masks,
    read_metadata,
    read_statistics,
    shard_of,
    window_of,
)
from segray.storage import exists, read_text
from segray.uris import join

PIECE_BYTES = 2**11  # of what is known of a window, about
KEPT_BYTES = 2**27  # of shards in a process, some 32 of 64 megapixels if they hold masks alone
LISTS_KEPT = 4096  # lists of what a shard holds of each scene, for scenes of several shards: some kB each
PIECES_KEPT = 2**18  # where they lie, for scenes of several shards: 0.4 kB each
WINDOWS_KEPT = 16  # decoded, 4 MB each
ROW_BYTES = 2**28  # a row of windows is kept, up to this size, for reading in strips: 130,000 px of windows 2,048 high
CELL = 2048  # pixels; windows are looked up by the squares of this size that they touch


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A window of a scene and where its mask is. number: its row in the shard. status: see `shards`."""

    shard: int
    number: int
    window: Window
    status: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image that was segmented. transform: the affine of the whole image, None without georeference.

    pieces: in the plan's order; together they cover the image once, unless it failed before it was measured: then its
    size is 0. error: why one of the pieces failed, None if none did.
    """

    image: str
    height: int
    width: int
    crs: str | None
    transform: Affine6 | None
    pieces: tuple[Piece, ...]
    error: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether any of it was read."""
        return any(piece.status != "failed" for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The output of a finished segmentation. fmt: of the shards that are read. archive: what was segmented.

    digest: depends on what the masks hold, not on where they lie; it stands for `classes` and `metadata` in a hash.
    """

    output: str
    fmt: str
    shards: int
    archive: str
    classes: Classes = field(hash=False)
    metadata: dict = field(hash=False)
    digest: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """What its shards hold of each pixel, see `shards.layers_of`."""
        return layers_of(self.metadata)


def open_masks(uri: str) -> Masks:
    """The masks in the OUTPUT of a segmentation; SegrayError when it is not one, or is not finished."""
    summary_uri = join(uri, "summary.json")
    if not exists(summary_uri):
        raise SegrayError(f"{uri} is no finished segmentation: it holds no summary.json; give the OUTPUT of segment.py")
    try:
        summary = json.loads(read_text(summary_uri))
        shards, archive, settings = summary["shards"]["total"], summary["archive"], summary["settings"]
        counts = summary["images"], summary["pixels"]
        fmt = settings["format"].split(",")[-1]
        if not isinstance(archive, str) or not isinstance(shards, int) or fmt not in EXTENSIONS:
            raise TypeError(archive, shards, fmt)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SegrayError(f"{summary_uri} is no summary of a segmentation; give the OUTPUT of segment.py") from error
    found = sum(0 <= shard_of(file.uri, fmt) < shards for file in files_if_any(join(uri, "masks")))
    if found != shards:
        raise SegrayError(f"{uri} holds {found} of {shards} shards; run segment.py again to continue it")
    with _damage_told(uri, 0):
        metadata = read_metadata(uri, 0, fmt)
    identity = json.dumps([archive, shards, metadata, *counts], sort_keys=True)
    return Masks(
        output=uri,
        fmt=fmt,
        shards=shards,
        archive=archive,
        classes=Classes.from_json(metadata["classes"], source=uri),
        metadata=metadata,
        digest=hashlib.sha256(identity.encode()).hexdigest(),
    )


def pieces_of(masks: Masks, shard: int) -> list[Scene]:
    """What a shard holds of each scene, in its order: partial scenes, to be put together by `whole`."""
    with _damage_told(masks.output, shard):
        return _scenes(read_statistics(masks.output, shard, masks.fmt), shard)


def whole(parts: Iterable[Scene]) -> Iterator[Scene]:
    """Put scenes together from their consecutive parts, in a stream."""
    for _, group in groupby(parts, key=lambda part: part.image):
        yield _joined(list(group))


def scene_in(masks: Masks, image: str, shards: range, window: Window) -> Scene:
    """The scene of an image whose pieces are in those shards and no others, with the pieces that a window needs.

    A single shard is read whole, since its masks are needed next; of several, all but the masks. Both are kept, and so
    is where the pieces of a scene of several lie: to find them anew for each window takes time as their number squared.
    """
    if len(shards) == 1:
        return _picked(_shards.get((masks, shards[0], MASK))[0], masks, image)
    scene, cells = _placed.get((masks, image, shards))
    return replace(scene, pieces=tuple(_meeting(cells, window)))


class SceneReader:
    """Reads the pixels of a scene; holds a few shards and windows, whatever the size of the scene.

    layer: MASK for class ids, or another of `Masks.layers`.
    """

    def __init__(self, masks: Masks, scene: Scene, layer: str = MASK) -> None:
        self.scene = scene
        self._mask = lru_cache(max(WINDOWS_KEPT, _row(scene) + 1))(partial(_decoded, masks, layer))
        self._cells = _cells_of(scene)

    def piece(self, piece: Piece) -> np.ndarray:
        """(h, w) uint8 of a piece with a mask, 255 where it has no data."""
        return self._mask(piece)

    def pieces(self, window: Window) -> list[Piece]:
        """The pieces with a mask that intersect a window, in the plan's order."""
        return _meeting(self._cells, window)

    def read(self, window: Window) -> np.ndarray:
        """(h, w) uint8 of any window, 255 where there is no data, as beyond the scene's edges."""
        result = np.full((window.height, window.width), IGNORE, np.uint8)
        for piece in self.pieces(window):
            part = piece.window.intersection(window)
            result[part.within(window)] = self._mask(piece)[part.within(piece.window)]
        return result


def forget_shards() -> None:
    """Free the shards that this process keeps."""
    _shards.forget()
    _lists.forget()
    _placed.forget()


def _picked(parts: Iterable[Scene], masks: Masks, image: str) -> Scene:
    """The scene of an image, of which there are parts among others; SegrayError when there is none."""
    scene = next(whole(part for part in parts if part.image == image), None)
    if scene is None:
        raise SegrayError(f"{masks.output} holds no mask of {image} any more; begin again with what it holds now")
    return scene


def _place(masks: Masks, image: str, shards: range) -> tuple[Scene, _Cells]:
    parts = chain.from_iterable(_lists.get((masks, shard)) for shard in shards)
    scene = _picked(parts, masks, image)
    return replace(scene, pieces=()), _cells_of(scene)


def _cells_of(scene: Scene) -> _Cells:
    """The pieces with a mask by the squares that they touch."""
    cells: _Cells = {}
    for piece in scene.pieces:
        for cell in piece.window.squares(CELL) if piece.status == OK else ():
            cells.setdefault(cell, []).append(piece)
    return cells


def _meeting(cells: _Cells, window: Window) -> list[Piece]:
    """The pieces that intersect a window, in the plan's order."""
    near = {piece: None for cell in window.squares(CELL) for piece in cells.get(cell, ())}
    met = (piece for piece in near if piece.window.meets(window))
    return sorted(met, key=lambda piece: (piece.shard, piece.number))


def _row(scene: Scene) -> int:
    """How many windows of a scene lie side by side, or as many as may be kept if fewer."""
    rows = Counter(piece.window.row_off for piece in scene.pieces)
    largest = max((piece.window.height * piece.window.width for piece in scene.pieces), default=1)
    return min(max(rows.values(), default=0), ROW_BYTES // max(1, largest))


def _decoded(masks: Masks, layer: str, piece: Piece) -> np.ndarray:
    _, found = _shards.get((masks, piece.shard, layer))
    if found[piece.number] is None:
        raise SegrayError(f"shard {piece.shard} of {masks.output} lacks a {layer}; run segment.py with --overwrite")
    mask = decode_png(found[piece.number], PALETTE if layer == MASK else GREY)
    if mask.shape != (piece.window.height, piece.window.width):
        place = f"shard {piece.shard} of {masks.output}"
        raise SegrayError(f"{place} holds a mask of another size than its window; run segment.py with --overwrite")
    mask.flags.writeable = False  # it is kept and handed out again
    return mask


def _read_shard(masks: Masks, shard: int, layer: str) -> _Shard:
    with _damage_told(masks.output, shard):
        rows = read_masks(masks.output, shard, masks.fmt, layer, alone=len(masks.layers) > 1)
        return _scenes((row for row, _ in rows), shard), [mask for _, mask in rows]


def _damage_told(output: str, shard: int) -> AbstractContextManager[None]:
    return damage_told(f"shard {shard} of {output}", "remove it and run segment.py again")


def _scenes(rows: Iterable[dict], shard: int) -> list[Scene]:
    return list(whole(scene_of(row, shard, number) for number, row in enumerate(rows)))


def scene_of(row: dict, shard: int, number: int) -> Scene:
    """What a row of a shard says of its scene."""
    window = window_of(row)
    _check_row(row, window, number)
    piece = Piece(shard=shard, number=number, window=window, status=row["status"])
    transform = tuple(row["transform"]) if row["transform"] else None
    if transform is not None:
        # back to the image's first pixel; exact for the window at that pixel, which `_joined` prefers
        transform = window_transform(transform, Window(-window.row_off, -window.col_off, 0, 0))
    return Scene(
        image=row["image"],
        height=row["image_height"],
        width=row["image_width"],
        crs=row["crs"],
        transform=transform,
        pieces=(piece,),
        error=row["error"],
    )


def _check_row(row: dict, window: Window, number: int) -> None:
    """ValueError when a row names no image, or lies outside it."""
    sizes = (*astuple(window), row["image_height"], row["image_width"])
    if not all(isinstance(size, int) and size >= 0 for size in sizes) or window.pixels > MAX_BYTES:
        raise ValueError(f"row {number} is no window: {sizes}")
    if window.row_off + window.height > row["image_height"] or window.col_off + window.width > row["image_width"]:
        raise ValueError(f"row {number} lies outside its image: {sizes}")
    if not isinstance(row["image"], str) or not isinstance(row["status"], str):
        raise ValueError(f"row {number} has no image or no status")
    if row["transform"] and not (len(row["transform"]) == 6 and all(isinstance(v, Real) for v in row["transform"])):
        raise ValueError(f"row {number} has the transform {row['transform']}")


def _joined(parts: list[Scene]) -> Scene:
    """One scene from its parts; what is said of the whole image is taken from the part that knows most."""
    best = max(parts, key=lambda part: (part.height > 0, part.transform is not None, _begins(part)))
    pieces = tuple(piece for part in parts for piece in part.pieces)
    return replace(best, pieces=pieces, error=next((part.error for part in parts if part.error), None))


def _begins(part: Scene) -> bool:
    return any(not (piece.window.row_off or piece.window.col_off) for piece in part.pieces)


_Cells = dict[tuple[int, int], list[Piece]]
_Shard = tuple[list[Scene], list[bytes | None]]  # what it holds of each scene, and the layer of each row
_shards: Kept[tuple[Masks, int, str], _Shard] = Kept(
    lambda key: _read_shard(*key),
    most=KEPT_BYTES,
    size=lambda shard: sum(PIECE_BYTES + len(png or b"") for png in shard[1]),
)
_lists: Kept[tuple[Masks, int], list[Scene]] = Kept(lambda key: pieces_of(*key), most=LISTS_KEPT)
_placed: Kept[tuple[Masks, str, range], tuple[Scene, _Cells]] = Kept(
    lambda key: _place(*key),
    most=PIECES_KEPT,
    size=lambda found: 1 + sum(map(len, found[1].values())),
)
