"""Parquet tables with a column of image bytes, such as Hugging Face's: listed from the footer, read by row group."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

from segray.archives.entries import damaged
from segray.archives.ranges import unreadable_told
from segray.archives.seekable import Seekable
from segray.errors import ImageError, SegrayError
from segray.storage import File
from segray.store_errors import FINAL_ERRORS, reason_of

ENDINGS = (".parquet",)
USUAL = ("image", "img", "bytes", "data", "content", "jpg", "png")  # preferred among several columns, best first
MAX_FOOTER_BYTES = 2**27
MAX_COLUMN_BYTES = 2**30  # of one row group, unpacked: it is held in memory
KEPT = 2  # columns of row groups kept per process: a shard may begin in one and end in the next
DAMAGE = (pa.ArrowException, OSError, ValueError)  # Arrow's own error for a file that is not Parquet is an OSError


def members(file: File, column: str | None = None) -> Iterator[File | None]:
    """One image per row, named by its number; size: the bytes of its row group divided by the number of rows.

    A table without a column of bytes counts as one skipped member. SegrayError when it has several, none of a usual
    name, and none is chosen, or when it lacks the chosen one. A store's own error passes through.
    """
    try:
        with _opened(file.uri, limit=MAX_FOOTER_BYTES) as (table, size):
            metadata, columns = table.metadata, candidates(table.schema_arrow)
            # columns of equal numbers take no bytes a row
            rows = _rows(metadata, file.uri, file.size or size) if columns else []
    except (ImageError, *FINAL_ERRORS) as error:
        yield damaged(file, error)
        return
    if not columns:
        yield None
        return
    leaf = _chosen(columns, column, file.uri)
    place, version, number = _place(metadata, leaf), sha256(file.etag.encode()).hexdigest()[:12], 0
    if place is None:
        yield damaged(file, ImageError(f"{file.uri} is damaged: its two schemas differ in column {leaf}"))
        return
    for group, count in enumerate(rows):
        size, error = metadata.row_group(group).total_byte_size // max(1, count), _too_large(metadata, group, place)
        for row in range(count):
            uri = f"parquet://{number:08d}::{file.uri}"
            reason = f"{uri} cannot be read: {error}" if error else None
            yield File(uri, size, file.etag, part=f"{group} {row} {version} {leaf}", error=reason)
            number += 1


def span(part: str) -> tuple[int, int] | None:
    """None: the values of a column are packed together."""
    return None


def read(uri: str, part: str) -> bytes:
    """The bytes in a row; ImageError when it has none, or its row group is damaged or too large."""
    group, row, version, column = part.split(" ", 3)
    values = _columns.get(uri, version, int(group), column)
    if int(row) >= len(values):
        raise ImageError(f"{uri} has no row {row} in row group {group}; run again with --overwrite")
    try:
        data = values[int(row)].as_py()
    except pa.ArrowException as error:  # equal values are held once, and the number of the one meant may be damaged
        raise ImageError(f"{uri} is damaged in row {row} of row group {group}: {reason_of(error)}") from error
    if isinstance(data, dict):  # a struct, of which only the field of bytes was read
        data = next(iter(data.values()))
    if data is None:
        raise ImageError(f"{uri} has no bytes in row {row} of row group {group}, column {column}")
    return data


def candidates(schema: pa.Schema) -> dict[str, str]:
    """The columns that may hold images, each with the path of its bytes: in a struct, those of its field `bytes`.

    The geometries of GeoParquet (https://geoparquet.org/releases/v1.1.0) are bytes too, but not images.
    """
    found, geometries = {}, _geometries(schema)
    for field in (field for field in schema if field.name not in geometries):
        inner = list(field.type) if pa.types.is_struct(field.type) else []
        if _is_bytes(field.type):
            found[field.name] = field.name
        elif any(part.name == "bytes" and _is_bytes(part.type) for part in inner):
            found[field.name] = f"{field.name}.bytes"
    return found


class _Columns:
    """The last `KEPT` columns of row groups that were read; one is loaded at a time.

    So is the footer of the last table: read for each of its row groups, it would take time as their number squared.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[tuple[str, str, int, str], pa.ChunkedArray | ImageError] = OrderedDict()
        self._footer: tuple[tuple[str, str], pq.FileMetaData] | None = None

    def get(self, uri: str, version: str, group: int, column: str) -> pa.ChunkedArray:
        """The values of a column in a row group; a damaged one fails for each of its rows, but is read once."""
        key = (uri, version, group, column)
        with self._lock:
            if key not in self._values:
                while len(self._values) >= KEPT:
                    self._values.popitem(last=False)
                try:
                    self._values[key] = self._load(uri, version, group, column)
                except ImageError as error:
                    self._values[key] = error
            self._values.move_to_end(key)
            values = self._values[key]
        if isinstance(values, ImageError):
            raise ImageError(str(values))
        return values

    def _load(self, uri: str, version: str, group: int, column: str) -> pa.ChunkedArray:
        """The values of a column of bytes, equal ones held once, so that repeating one makes no decompression bomb."""
        known = self._footer[1] if self._footer and self._footer[0] == (uri, version) else None
        options = {"limit": MAX_FOOTER_BYTES + MAX_COLUMN_BYTES, "dictionary": [column], "footer": known}
        with unreadable_told(uri), _opened(uri, **options) as (table, _):
            self._footer = (uri, version), table.metadata
            place = _place(table.metadata, column)
            if place is None or group >= table.num_row_groups:
                raise ImageError(f"{uri} has no column {column} in row group {group}; run again with --overwrite")
            if error := _too_large(table.metadata, group, place):
                raise ImageError(f"{uri} cannot be read: {error}")
            return table.read_row_group(group, columns=[column]).column(0)


_columns = _Columns()


@contextmanager
def _opened(
    uri: str, *, limit: int, dictionary: list[str] | None = None, footer: pq.FileMetaData | None = None
) -> Iterator[tuple[pq.ParquetFile, int]]:
    """A table, open during the block, and its size in bytes, which web servers need not give when it is listed.

    footer: that of the table if it is known, to be read otherwise. ImageError when it is damaged; a store's own error
    passes through.
    """
    with Seekable(uri, limit=limit) as stream:
        try:
            yield pq.ParquetFile(stream, metadata=footer, read_dictionary=dictionary), stream.size
        except DAMAGE as error:
            if stream.error is not None:
                raise stream.error from None
            raise ImageError(f"{uri} is damaged or no Parquet file: {reason_of(error)}") from error


def _rows(metadata: pq.FileMetaData, uri: str, size: int) -> list[int]:
    """The number of rows of each row group; ImageError when impossible, since the listing might never end."""
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows or sum(rows) > size:
        raise ImageError(f"{uri} is damaged: {metadata.num_rows} rows in {size} bytes are impossible")
    return rows


def _chosen(columns: dict[str, str], column: str | None, uri: str) -> str:
    """The path of the bytes of the column that is asked for, else of the one with the best name, or the only one."""
    names = ", ".join(columns)
    if column is not None:
        alike = [name for name in columns if name == column] or [n for n in columns if n.lower() == column.lower()]
        if not alike:
            raise SegrayError(f"{uri} has no column {column!r} that holds bytes; --column may be one of {names}")
        return columns[alike[0]]
    usual = [name for wanted in USUAL for name in columns if name.lower() == wanted]
    if len(columns) > 1 and not usual:
        raise SegrayError(f"{uri} has several columns that may hold images: {names}; choose one with --column")
    return columns[usual[0] if usual else next(iter(columns))]


def _geometries(schema: pa.Schema) -> set[str]:
    try:
        return set(json.loads((schema.metadata or {})[b"geo"])["columns"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return set()


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _place(metadata: pq.FileMetaData, leaf: str) -> int | None:
    """The number of a leaf among the columns of a file, None when it has none of that name."""
    names = (metadata.schema.column(k).path for k in range(metadata.num_columns))
    return next((k for k, name in enumerate(names) if name == leaf), None)


def _too_large(metadata: pq.FileMetaData, group: int, place: int) -> str | None:
    """Why the column of a row group is too large to be read, None when it is not."""
    size = metadata.row_group(group).total_byte_size
    if size > MAX_COLUMN_BYTES:  # only then: PyArrow's column() crashes on a footer with damaged statistics
        column = metadata.row_group(group).column(place)
        size = max(column.total_uncompressed_size, column.total_compressed_size)
    if size <= MAX_COLUMN_BYTES:
        return None
    return f"row group {group} has {size} bytes of images, {MAX_COLUMN_BYTES} are allowed; write smaller row groups"
