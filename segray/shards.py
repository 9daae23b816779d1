"""Mask shards: one row per window, as Parquet (GeoParquet 1.1 if georeferenced) and as tars that WebDataset reads."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from segray.footprints import footprint, window_transform
from segray.grid import Affine6, Window
from segray.masks import IGNORE, Classes, decode_png, encode_grey, encode_png
from segray.regions import CONFIDENCE_UNIT, WindowMask
from segray.storage import publish, read_bytes, retry
from segray.uris import filesystem, is_chain, join

OK, NODATA, FAILED = "ok", "nodata", "failed"
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        *((name, pa.int32()) for name in ("row_off", "col_off", "height", "width", "image_height", "image_width")),
        ("mask", pa.binary()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("pixel_counts", pa.list_(pa.int64())),
        ("valid_pixels", pa.int64()),
        ("confidence", pa.float32()),
        ("seam_disagreement", pa.float32()),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("geometry", pa.binary()),
        ("etag", pa.string()),
    ]
)
STATISTICS = [name for name in SCHEMA.names if name not in ("mask", "geometry")]
MASK, CONFIDENCE = "mask", "confidence_map"  # layers: columns of pixels; the latter only where a job asks for it
ENDINGS = {MASK: ".png", CONFIDENCE: ".confidence.png"}  # of a layer's members in a tar
PERCENT = np.rint(np.arange(2**16) * 100 * CONFIDENCE_UNIT).astype(np.uint8)  # of each confidence
TAIL_BYTES = 2**16  # holds the footer and the columns after the masks for some 200 windows
EXTENSIONS = {"parquet": "parquet", "png": "tar"}


@dataclass(frozen=True, kw_only=True)
class MaskRow:
    """One row of a mask shard; the columns are those of `SCHEMA`.

    mask: 8-bit palette PNG, None unless status is ok. confidence_map: 8-bit grey PNG, the top-1 probability of each
    pixel in percent, 255 without data; a column only in the shards of jobs that ask for it. transform: the affine of
    the window itself. geometry: WKB outline of the window in longitude and latitude (OGC:CRS84), see
    `footprints.footprint`. A failed image that could not be measured has size 0.
    """

    image: str
    etag: str
    row_off: int = 0
    col_off: int = 0
    height: int = 0
    width: int = 0
    image_height: int = 0
    image_width: int = 0
    mask: bytes | None = None
    confidence_map: bytes | None = None
    status: str = FAILED
    error: str | None = None
    pixel_counts: list[int] | None = None
    valid_pixels: int = 0
    confidence: float | None = None
    seam_disagreement: float | None = None
    crs: str | None = None
    transform: list[float] | None = None
    geometry: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an image lies: its URI and tag, its size in pixels, and the georeference of the whole image."""

    image: str
    etag: str
    height: int = 0
    width: int = 0
    crs: str | None = None
    transform: Affine6 | None = None


def mask_row(place: Place, result: WindowMask, classes: Classes) -> MaskRow:
    """The row of a segmented window; a window without any valid pixel has status nodata and no mask."""
    has_data = result.valid_pixels > 0
    return MaskRow(
        **_where(place, result.window),
        mask=encode_png(result.mask, classes) if has_data else None,
        confidence_map=encode_grey(_percent(result)) if has_data and result.confidences is not None else None,
        status=OK if has_data else NODATA,
        pixel_counts=result.pixel_counts.tolist(),
        valid_pixels=result.valid_pixels,
        confidence=_float32(result.confidence),
        seam_disagreement=_float32(result.seam_disagreement),
    )


def failed_row(place: Place, window: Window, error: str) -> MaskRow:
    """The row of a window that could not be read."""
    return MaskRow(**_where(place, window), status=FAILED, error=error)


def shard_uri(output: str, shard: int, fmt: str) -> str:
    """Where a shard is published: the name follows from its id alone."""
    return join(output, "masks", f"shard-{shard:08d}.{EXTENSIONS[fmt]}")


def shard_of(uri: str, fmt: str) -> int:
    """The id of the shard that a file below an output is, -1 of any other file: of a copy in a folder below, too."""
    match = re.search(rf"/masks/shard-(\d{{8,}})\.{EXTENSIONS[fmt]}$", uri)
    return int(match.group(1)) if match else -1


def write_shard(output: str, shard: int, *, rows: Sequence[MaskRow], formats: Sequence[str], metadata: dict) -> None:
    """Publish a shard in each format, by one atomic put per format; the last is the commit."""
    encoders = {"parquet": encode_parquet, "png": encode_tar}
    for fmt in formats:
        publish(shard_uri(output, shard, fmt), encoders[fmt](rows, metadata))


def encode_parquet(rows: Sequence[MaskRow], metadata: dict) -> bytes:
    """The bytes of a Parquet shard; the same rows give the same bytes."""
    schema, layers = SCHEMA, layers_of(metadata)
    for layer in layers[1:]:
        schema = schema.insert(schema.get_field_index(MASK) + 1, pa.field(layer, pa.binary()))
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    keys = {"segray": json.dumps(metadata, sort_keys=True)}
    outlines = shapely.from_wkb([row.geometry for row in rows if row.geometry])
    if types := sorted({outline.geom_type for outline in outlines}):
        geometry = {"encoding": "WKB", "geometry_types": types}  # no crs: OGC:CRS84, the default of GeoParquet
        keys["geo"] = json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}})
    buffer = io.BytesIO()
    compression = {name: "none" if name in layers else "zstd" for name in schema.names}
    pq.write_table(
        table.replace_schema_metadata(keys), buffer, compression=compression, use_dictionary=["image", "crs"]
    )
    return buffer.getvalue()


def encode_tar(rows: Sequence[MaskRow], metadata: dict) -> bytes:
    """The bytes of a WebDataset shard: of every row KEY.json and, where there is a mask, KEY.png and other layers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row in enumerate(rows):
            values = asdict(row)
            layers, geometry = {ENDINGS[layer]: values.pop(layer) for layer in ENDINGS}, values.pop("geometry")
            values["geometry"] = geometry.hex() if geometry else None
            for ending, data in layers.items():
                if data:
                    _add(tar, f"{_key(number, row)}{ending}", data)
            _add(tar, f"{_key(number, row)}.json", json.dumps({**values, "segray": metadata}, sort_keys=True).encode())
    return buffer.getvalue()


def read_statistics(output: str, shard: int, fmt: str) -> list[dict]:
    """The rows of a published shard without masks and geometries, as dicts of the schema's columns."""
    uri = shard_uri(output, shard, fmt)
    if fmt == "parquet":
        return pq.read_table(io.BytesIO(_partial(uri, STATISTICS)), columns=STATISTICS).to_pylist()
    with tarfile.open(fileobj=io.BytesIO(read_bytes(uri))) as tar:
        texts = [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]
    return [{name: value for name, value in json.loads(text).items() if name in STATISTICS} for text in texts]


def read_metadata(output: str, shard: int, fmt: str) -> dict:
    """What a published shard says about its job: classes, ignore index, model digest, settings."""
    uri = shard_uri(output, shard, fmt)
    if fmt == "parquet":
        return json.loads(pq.read_schema(io.BytesIO(_partial(uri, STATISTICS))).metadata[b"segray"])
    with tarfile.open(fileobj=io.BytesIO(read_bytes(uri))) as tar:
        first = next(member for member in tar if member.name.endswith(".json"))
        return json.loads(tar.extractfile(first).read())["segray"]


def read_masks(
    output: str, shard: int, fmt: str, layer: str = MASK, *, alone: bool = False
) -> list[tuple[dict, bytes | None]]:
    """(row, PNG bytes or None) of every row of a published shard. layer: MASK, or another of `layers_of`.

    alone: other layers of a Parquet shard are not fetched, which takes more requests.
    """
    uri, names = shard_uri(output, shard, fmt), [*STATISTICS, "geometry", layer]
    data = _partial(uri, names) if alone and fmt == "parquet" else read_bytes(uri)
    if fmt == "parquet":
        rows = pq.read_table(io.BytesIO(data), columns=names).to_pylist()
        return [(row, row[layer]) for row in rows]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    names = [name[: -len(".json")] for name in members if name.endswith(".json")]
    return [(json.loads(members[f"{name}.json"]), members.get(f"{name}{ENDINGS[layer]}")) for name in names]


def layers_of(metadata: dict) -> tuple[str, ...]:
    """The layers that the shards of a job have, by what they say of themselves."""
    return (MASK, CONFIDENCE) if metadata.get("settings", {}).get("confidence") else (MASK,)


def window_of(row: dict) -> Window:
    """The window of a row."""
    return Window(*(row[name] for name in ("row_off", "col_off", "height", "width")))


def mask_of(row: dict, png: bytes | None) -> np.ndarray:
    """(h, w) uint8 class ids of a row's window, 255 where it has no mask."""
    return decode_png(png) if png else np.full((row["height"], row["width"]), IGNORE, np.uint8)


def _percent(result: WindowMask) -> np.ndarray:
    """(H, W) uint8 whole percent of the confidences, 255 where there is no data."""
    percent = PERCENT[result.confidences]
    percent[result.mask == IGNORE] = IGNORE
    return percent


def _float32(value: float | None) -> float | None:
    """The value rounded as in the file, so that a row in memory equals the row read back."""
    return None if value is None else float(np.float32(value))


def _where(place: Place, window: Window) -> dict:
    located = place.transform is not None
    return {
        "image": place.image,
        "etag": place.etag,
        **asdict(window),
        "image_height": place.height,
        "image_width": place.width,
        "crs": place.crs,
        "transform": list(window_transform(place.transform, window)) if located else None,
        "geometry": footprint(place.crs, place.transform, window) if located and place.crs else None,
    }


def _key(number: int, row: MaskRow) -> str:
    """A key unique in its shard, with the image's name; without dots and slashes, at which WebDataset splits names."""
    name = row.image.split("::", maxsplit=1)[0] if is_chain(row.image) else row.image  # a member has a name of its own
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rsplit("/", 1)[-1].rsplit(".", 1)[0])[-60:]
    return f"{number:05d}-{stem}-{row.row_off}-{row.col_off}"


def _partial(uri: str, names: Sequence[str]) -> bytes:
    """A Parquet shard with zeros in place of other columns, from few requests: its size, its end, and what is missing.

    Columns lie in the schema's order, so those of `STATISTICS`, with the masks in between, are one request and the end.
    Measured: 70 of the 8,900 kB of a shard of 32 masks are read.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # else the size may be from a listing made before the shard was rewritten
    stored = int(retry(lambda: fs.info(path))["size"])
    tail_start = max(0, stored - TAIL_BYTES)
    # Azure takes no ranges counted from the end.
    tail = retry(lambda: fs.cat_file(path, start=tail_start, end=stored))
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if tail_start == 0 or footer > TAIL_BYTES:  # a small shard, read whole, or a footer of thousands of classes
        return tail if tail_start == 0 else read_bytes(uri)
    metadata = pq.read_metadata(io.BytesIO(tail))
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    spans = sorted(_span(column) for column in columns if column.path_in_schema.split(".")[0] in names)
    content = bytearray(stored)
    content[tail_start:] = tail
    for first, last in _joined(span for span in spans if span[0] < tail_start):
        content[first:last] = retry(lambda first=first, last=last: fs.cat_file(path, start=first, end=last))
    return bytes(content)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those near the one before as one with it: a request costs more than a few bytes."""
    found: list[tuple[int, int]] = []
    for start, stop in spans:
        near = found and start - found[-1][1] < TAIL_BYTES
        found.append((found.pop()[0] if near else start, stop))
    return found


def _span(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    pages = (column.dictionary_page_offset, column.data_page_offset)
    start = min(page for page in pages if page is not None)
    return start, start + column.total_compressed_size


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults carry no time and no owner
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
