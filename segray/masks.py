"""Classes and their legend, class ids <-> colours, and masks as 8-bit palette PNG bytes."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from segray.errors import LabelError, SegrayError

IGNORE = 255  # the id of "ignore / no data" in every mask that segray writes
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE = 2**15 - 1  # pixels: a mask of no longer side has less than MAX_BYTES
GREY, PALETTE = 0, 3  # colour types of PNG
NONE, UP = 0, 2  # filter types of its rows: the values, or what they differ by from those above
FILTERS = {PALETTE: NONE, GREY: UP}
MAX_BYTES = 1 << 30  # a mask is never inflated beyond this, nor beyond what its own header announces


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Ordered class names and colours; a class's id is its position.

    names: one per class, unique. colors: (r, g, b) of 0..255, one per class. ignore_index: the id that means "no label"
    in label files. ignore_colors: the colours that mean it there (a legend gives them as entries whose id is the ignore
    index). In decoded masks both are always 255.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int = IGNORE
    ignore_colors: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE:
            raise ValueError(f"a legend has 1 to {IGNORE} classes, not {len(self.names)}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"class names must be unique, but are {list(self.names)}")
        if len(self.colors) != len(self.names):
            raise ValueError(f"{len(self.names)} class names but {len(self.colors)} colours")
        if 0 <= self.ignore_index < len(self.names):
            raise ValueError(f"the ignore index {self.ignore_index} is also the id of a class")
        ignored = (("ignore", color) for color in self.ignore_colors)
        for name, color in (*zip(self.names, self.colors), *ignored):
            if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
                raise ValueError(f"the colour of class '{name}' is {color}; it needs three integers of 0..255")

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> list[dict]:
        """The `classes` list of `classes.json` and `model.json`."""
        return [{"id": i, "name": n, "color": list(c)} for i, (n, c) in enumerate(zip(self.names, self.colors))]

    @classmethod
    def from_json(cls, entries: list[dict], ignore_index: int = IGNORE, *, source: str = "classes.json") -> Classes:
        """Classes from a parsed `classes` list; SegrayError, naming the file `source`, when it is not one."""
        try:
            ordered = sorted((e for e in entries if e["id"] != ignore_index), key=lambda entry: entry["id"])
            ignored = tuple(tuple(e["color"]) for e in entries if e["id"] == ignore_index)
            ids = [entry["id"] for entry in ordered]
            if ids != list(range(len(ids))):
                raise ValueError(f"class ids must be 0, 1, 2, ... without gaps, but are {ids}")
            colors = tuple(tuple(entry["color"]) for entry in ordered)
            names = tuple(str(entry["name"]) for entry in ordered)
            "".join(names).encode()  # half of a surrogate pair, which JSON allows, fits into no file
            return cls(names=names, colors=colors, ignore_index=int(ignore_index), ignore_colors=ignored)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"lacks the key {error}" if isinstance(error, KeyError) else str(error)
            raise SegrayError(
                f'{source} is no legend: {reason}; it should read {{"classes": [{{"id": 0, "name": "water", '
                f'"color": [0, 0, 255]}}, ...], "ignore_index": 255}}'
            ) from error

    @classmethod
    def parse(cls, text: bytes | str, *, source: str) -> Classes:
        """Classes from the text of a `classes.json`; SegrayError when it is not one."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SegrayError(f"{source} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise SegrayError(f"{source} is no legend: it should be an object with the key 'classes'")
        return cls.from_json(document.get("classes"), document.get("ignore_index", IGNORE), source=source)


def ids_to_mask(ids: np.ndarray, classes: Classes, *, source: str) -> np.ndarray:
    """(H, W) integer ids of a label file -> (H, W) uint8 mask with 255 for the ignore index.

    LabelError on an id that is neither a class nor the ignore index, naming `source` and the id.
    """
    ignored = ids == classes.ignore_index
    mask = ids.astype(np.uint8)
    known = ((ids >= 0) & (ids < len(classes)) & (ids == mask)) | ignored
    if not known.all():
        value = ids[~known].flat[0]
        raise LabelError(
            f"{source} holds the id {value}, which is neither a class (0 to {len(classes) - 1}) nor the ignore "
            f"index {classes.ignore_index}; add it to classes.json or correct the mask"
        )
    mask[ignored] = IGNORE
    return mask


def colors_to_mask(rgb: np.ndarray, classes: Classes, *, source: str) -> np.ndarray:
    """(H, W, 3) uint8 colours of the legend -> (H, W) uint8 mask.

    LabelError on a colour that is not in the legend, as colours are never matched to the nearest one, and on a legend
    in which two entries share a colour.
    """
    codes = (rgb.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=-1)
    mask = np.full(codes.shape, IGNORE, np.uint8)
    known = np.zeros(codes.shape, bool)
    legend = [*enumerate(classes.colors), *((IGNORE, color) for color in set(classes.ignore_colors))]
    colors = [color for _, color in legend]
    shared = next((color for color in colors if colors.count(color) > 1), None)
    if shared is not None:
        raise LabelError(f"{source} holds colours, but two entries of classes.json share {shared}; give each its own")
    for index, (r, g, b) in legend:
        hit = codes == (r << 16 | g << 8 | b)
        mask[hit], known = index, known | hit
    if not known.all():
        code = int(codes[~known].flat[0])
        color = (code >> 16, code >> 8 & 255, code & 255)
        raise LabelError(
            f"{source} holds the colour {color}, which is in no entry of classes.json; add it there, with the id "
            f"{classes.ignore_index} if it means no label"
        )
    return mask


def palette(classes: Classes) -> np.ndarray:
    """(256, 3) uint8 colour table: the classes' colours, black everywhere else."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.colors
    return table


def encode_png(mask: np.ndarray, classes: Classes) -> bytes:
    """(H, W) uint8 mask -> the bytes of an 8-bit palette PNG whose entry 255 is transparent.

    Written here, not by an imaging library, so that the bytes do not depend on its version
    (PNG specification, third edition, section 11). Same mask and zlib, same bytes.
    """
    alpha = bytes([255] * 255 + [0])
    return _png(mask, PALETTE, (b"PLTE", palette(classes).tobytes()), (b"tRNS", alpha))


def encode_grey(values: np.ndarray) -> bytes:
    """(H, W) uint8 values -> the bytes of an 8-bit grey PNG in which 255 is transparent; see `encode_png`."""
    return _png(values, GREY, (b"tRNS", struct.pack(">H", IGNORE)))


def _png(values: np.ndarray, kind: int, *ancillary: tuple[bytes, bytes]) -> bytes:
    height, width = values.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0], rows[:, 1:] = FILTERS[kind], values
    if FILTERS[kind] == UP:
        rows[1:, 1:] -= values[:-1]
    # Masks are runs of one class: Z_RLE compresses them as well as the default strategy at level 6, 3 times as fast.
    compressor = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        *ancillary,
        (b"IDAT", compressor.compress(rows.tobytes()) + compressor.flush()),
        (b"IEND", b""),
    )
    return PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def decode_png(data: bytes, kind: int = PALETTE) -> np.ndarray:
    """The (H, W) uint8 of PNG bytes that `encode_png` wrote, or with GREY `encode_grey` (SegrayError on any other)."""
    try:
        header, compressed = _read_chunks(data)
        if header[2:] != (8, kind, 0, 0, 0):
            name = "palette" if kind == PALETTE else "grey"
            raise SegrayError(f"a mask is not an 8-bit {name} PNG; it was not written by segray")
        width, height = header[:2]
        length = height * (width + 1)
        if not 0 < length <= MAX_BYTES:
            raise ValueError(f"it claims to have {height} x {width} pixels")
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(compressed, length + 1)
        if len(inflated) != length or not inflater.eof:
            raise ValueError("its data ends too early or too late")
        rows = np.frombuffer(inflated, np.uint8).reshape(height, width + 1)
    except (struct.error, zlib.error, ValueError) as error:
        raise SegrayError(f"a mask is not a complete PNG: {error}") from error
    if (rows[:, 0] != FILTERS[kind]).any():
        raise SegrayError("a mask has other PNG row filters; it was not written by segray")
    return rows[:, 1:].copy() if FILTERS[kind] == NONE else rows[:, 1:].cumsum(axis=0, dtype=np.uint8)


def _read_chunks(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """(fields of IHDR, all of IDAT) of PNG bytes; struct.error or ValueError on anything else."""
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError("the signature is missing")
    position, header, parts = len(PNG_SIGNATURE), b"", []
    while position < len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        if name == b"IHDR":
            header = body
        if name == b"IDAT":
            parts.append(body)
        position += length + 12
    return struct.unpack(">IIBBBBB", header), b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
