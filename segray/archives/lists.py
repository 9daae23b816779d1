"""A text, CSV or Parquet file that lists the URIs of images, one a line or row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from segray.archives import tables
from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.storage import File, beside, describe, ending, filesystem, is_absolute

ENDINGS = (".txt", ".csv", ".parquet")
COLUMNS = ("uri", "url", "path", "href", "image", "file", "filename", "location")  # the first that is there
UNKNOWN = -1  # the size of a file that nobody has asked its store about


class ListArchive:
    """The images that a file lists; a relative one is sought beside the list."""

    def __init__(self, uri: str, options: ArchiveOptions) -> None:
        self.uri, self.column = uri, options.column
        self.skipped = 0

    @classmethod
    def accepts(cls, uri: str, options: ArchiveOptions) -> bool:
        """Whether the URI ends as a list does; a Parquet file is one if it has no column of image bytes."""
        kind = ending(uri)
        return kind in ENDINGS and (kind != ".parquet" or _lists(uri))

    def images(self) -> Iterator[File]:
        """The images in the order of the list; SegrayError when it cannot be read or lists none."""
        found = False
        for name in self._names():
            found = True
            yield listed(self.uri, name)
        if not found:
            raise SegrayError(f"{self.uri} lists no image; it should hold a URI a line")

    def _names(self) -> Iterator[str]:
        if ending(self.uri) == ".parquet":
            yield from _rows(self.uri, self.column)
            return
        if ending(self.uri) == ".csv":
            yield from _cells(self.uri, _lines(self.uri), self.column)
            return
        lines = (line.strip() for line in _lines(self.uri))
        yield from (line for line in lines if line and not line.startswith("#"))


def listed(document: str, name: str) -> File:
    """The file that a document names: by URI or absolute path, or relative to where the document lies."""
    return File(name if is_absolute(name) else beside(document, name), UNKNOWN, "")


def _lines(uri: str) -> Iterator[str]:
    """The lines of a UTF-8 text file as they are read, with their ends; SegrayError when it cannot be read."""
    fs, path = filesystem(uri)
    try:
        with fs.open(path, "r", encoding="utf-8-sig", newline="") as file:
            yield from file
    except FileNotFoundError as error:
        raise SegrayError(f"{uri} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SegrayError(f"{uri} cannot be read: {describe(error)}") from error


def _cells(uri: str, lines: Iterable[str], column: str | None) -> Iterator[str]:
    """The named column of a CSV file, the first known one, or the only one, with or without a header."""
    rows = (row for row in csv.reader(lines) if row)
    first = next(rows, None)
    if first is None:
        return
    header = [name.strip().lower() for name in first]
    if column is None and len(header) == 1 and header[0] not in COLUMNS:
        place, rows = 0, chain([first], rows)
    else:
        place = header.index(_chosen(uri, header, column))
    for number, row in enumerate(rows, 1):
        if len(row) <= place:
            raise SegrayError(f"{uri} has no column {place + 1} in row {number}; correct the file")
        if row[place].strip():
            yield row[place].strip()


def _chosen(uri: str, names: Iterable[str], column: str | None) -> str:
    names = list(names)
    wanted = [column.lower()] if column else COLUMNS
    chosen = next((name for name in wanted if name in names), None)
    if chosen is None:
        raise SegrayError(f"{uri} has the columns {', '.join(names)}; name the one of the URIs with --column")
    return chosen


def _rows(uri: str, column: str | None) -> Iterator[str]:
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as file:
        table = pq.ParquetFile(file)
        texts = {name.lower(): name for name in _texts(table.schema_arrow)}
        chosen = texts[_chosen(uri, texts, column)]
        for batch in table.iter_batches(columns=[chosen]):
            yield from (name for name in batch.column(0).to_pylist() if name)


def _lists(uri: str) -> bool:
    """Whether a Parquet file has texts, and no bytes but those of geometries."""
    fs, path = filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise SegrayError(f"{uri} cannot be read as Parquet: {describe(error)}") from error
    return bool(_texts(schema)) and not tables.candidates(schema)


def _texts(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
