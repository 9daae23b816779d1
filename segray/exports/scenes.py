"""What the mask shards of a segmentation hold of each scene: which windows, where, and their pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from segray.archives.raster import Affine6
from segray.errors import SegrayError
from segray.grid import Window
from segray.masks import IGNORE, Classes, decode_png
from segray.shards import EXTENSIONS, OK, read_masks, read_metadata, read_statistics, window_transform
from segray.storage import exists, join, list_files, read_text

SHARDS_KEPT = 2  # of a scene's last reads; its neighbours in a row mostly lie in the same
WINDOWS_KEPT = 32  # decoded, 4 MB each


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A window of a scene and where its mask is. number: of its row in the shard. status: see `shards`."""

    shard: int
    number: int
    window: Window
    status: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image that was segmented. transform: the affine of the whole image, None without georeference.

    pieces: in the order of the plan; together they cover the image once, except where it failed.
    """

    image: str
    height: int
    width: int
    etag: str
    crs: str | None
    transform: Affine6 | None
    pieces: tuple[Piece, ...]

    @property
    def is_usable(self) -> bool:
        """Whether any of it was read."""
        return any(piece.status != "failed" for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The output of a finished segmentation. fmt: of the shards that are read. archive: what was segmented."""

    output: str
    fmt: str
    shards: int
    archive: str
    classes: Classes
    metadata: dict


def open_masks(uri: str) -> Masks:
    """The masks of a segmentation at its OUTPUT; SegrayError when it is none, or is not finished."""
    summary_uri = join(uri, "summary.json")
    if not exists(summary_uri):
        raise SegrayError(f"{uri} is no finished segmentation: it holds no summary.json; give the OUTPUT of segment.py")
    try:
        summary = json.loads(read_text(summary_uri))
        shards, archive, settings = summary["shards"]["total"], summary["archive"], summary["settings"]
        fmt = settings["format"].split(",")[-1]
    except (ValueError, KeyError, TypeError) as error:
        raise SegrayError(f"{summary_uri} is damaged; run segment.py again") from error
    found = sum(file.uri.endswith(f".{EXTENSIONS[fmt]}") for file in list_files(join(uri, "masks")))
    if found != shards:
        raise SegrayError(f"{uri} holds {found} of {shards} shards; run segment.py again, it goes on where it stopped")
    metadata = read_metadata(uri, 0, fmt)
    classes = Classes.from_json(metadata["classes"], source=uri)
    return Masks(output=uri, fmt=fmt, shards=shards, archive=archive, classes=classes, metadata=metadata)


def pieces_of(masks: Masks, shard: int) -> list[Scene]:
    """What a shard holds of each scene, in its order: scenes of one shard's pieces, to be put together by `whole`."""
    found: list[Scene] = []
    for number, row in enumerate(read_statistics(masks.output, shard, masks.fmt)):
        found.append(_scene_of(row, shard, number))
    return list(whole(found))


def whole(parts: Iterable[Scene]) -> Iterator[Scene]:
    """Scenes put together from their consecutive parts, in a stream."""
    group: list[Scene] = []
    for part in parts:
        if group and group[-1].image != part.image:
            yield _joined(group)
            group = []
        group.append(part)
    if group:
        yield _joined(group)


class SceneReader:
    """Reads the class ids of a scene; holds a few shards and windows, whatever the size of the scene."""

    def __init__(self, masks: Masks, scene: Scene) -> None:
        self.masks, self.scene = masks, scene
        self._shard = lru_cache(SHARDS_KEPT)(self._read_shard)
        self._mask = lru_cache(WINDOWS_KEPT)(self._decode)

    def piece(self, piece: Piece) -> np.ndarray:
        """(h, w) uint8 class ids of a piece, 255 where it has none."""
        if piece.status != OK:
            return np.full((piece.window.height, piece.window.width), IGNORE, np.uint8)
        return self._mask(piece)

    def read(self, window: Window) -> np.ndarray:
        """(h, w) uint8 class ids of any window of the scene, 255 where no mask says anything."""
        result = np.full((window.height, window.width), IGNORE, np.uint8)
        for piece in self.scene.pieces:
            part = _meet(piece.window, window)
            if part is not None and piece.status == OK:
                result[part.within(window)] = self._mask(piece)[part.within(piece.window)]
        return result

    def _read_shard(self, shard: int) -> list[tuple[dict, bytes | None]]:
        return read_masks(self.masks.output, shard, self.masks.fmt)

    def _decode(self, piece: Piece) -> np.ndarray:
        return decode_png(self._shard(piece.shard)[piece.number][1])


def _meet(a: Window, b: Window) -> Window | None:
    row, col = max(a.row_off, b.row_off), max(a.col_off, b.col_off)
    bottom = min(a.row_off + a.height, b.row_off + b.height)
    right = min(a.col_off + a.width, b.col_off + b.width)
    return Window(row, col, bottom - row, right - col) if bottom > row and right > col else None


def _scene_of(row: dict, shard: int, number: int) -> Scene:
    window = Window(*(row[name] for name in ("row_off", "col_off", "height", "width")))
    piece = Piece(shard=shard, number=number, window=window, status=row["status"])
    transform = tuple(row["transform"]) if row["transform"] else None
    if transform is not None:
        # back to the image's first pixel; exact for the window that lies there, which `_joined` prefers
        transform = window_transform(transform, Window(-window.row_off, -window.col_off, 0, 0))
    return Scene(
        image=row["image"],
        height=row["image_height"],
        width=row["image_width"],
        etag=row["etag"],
        crs=row["crs"],
        transform=transform,
        pieces=(piece,),
    )


def _joined(parts: list[Scene]) -> Scene:
    first = next((part for part in parts if _begins(part)), None)
    best = first or next((part for part in parts if part.transform is not None), parts[0])
    return Scene(
        image=best.image,
        height=best.height,
        width=best.width,
        etag=best.etag,
        crs=best.crs,
        transform=best.transform,
        pieces=tuple(piece for part in parts for piece in part.pieces),
    )


def _begins(part: Scene) -> bool:
    corner = any(not (piece.window.row_off or piece.window.col_off) for piece in part.pieces)
    return corner and part.transform is not None
