"""A text, CSV or Parquet file that lists the URIs of images, one per line or row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, dropwhile
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segray.archives import tables
from segray.archives.images import is_image
from segray.archives.members import kind_of
from segray.archives.once import once
from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.storage import File, is_file, opened
from segray.store_errors import at_fault, describe
from segray.uris import beside, ending, is_absolute

ENDINGS = (".txt", ".csv", ".parquet")
COLUMNS = ("uri", "url", "path", "href", "image", "file", "filename", "location")  # the first one found is used
MAX_CELL = 2**24  # characters of a CSV file's cell, which may be a footprint as WKT; Python's own limit is 2**17
SEPARATORS = (",", ";", "\t")  # of a CSV file
UNKNOWN = -1  # the size of a file before its store was asked


class ListArchive:
    """The images that a file lists; relative names start from the list's folder."""

    def __init__(self, uri: str, options: ArchiveOptions) -> None:
        self.uri, self.column = uri, options.column
        self.skipped = 0

    @classmethod
    def accepts(cls, uri: str, options: ArchiveOptions) -> bool:
        """Whether the URI has a list's ending; a Parquet file must have a column of texts and none of image bytes.

        Or --column names one of texts: the bytes beside it may be footprints that are not marked as such. A folder is
        no list: Spark and Ray Data give one the name of the table whose parts lie in it.
        """
        kind = ending(uri)
        return kind in ENDINGS and (kind != ".parquet" or is_file(uri) and _lists(uri, options.column))

    def images(self) -> Iterator[File]:
        """The images in the order of the list, each once; SegrayError when it cannot be read or lists none."""
        found = False
        for file in once(listed(self.uri, name) for name in self._names()):
            found = True
            yield file
        if not found:
            raise SegrayError(f"{self.uri} lists no image; it should hold one URI per line")

    def _names(self) -> Iterator[str]:
        if ending(self.uri) == ".parquet":
            yield from _rows(self.uri, self.column)
            return
        if ending(self.uri) == ".csv":
            try:
                yield from _cells(self.uri, _lines(self.uri), self.column)
            except csv.Error as error:
                raise SegrayError(f"{self.uri} cannot be read as CSV: {describe(error)}; correct the file") from error
            return
        lines = (line.strip() for line in _lines(self.uri))
        yield from (line for line in lines if line and not line.startswith("#"))


def listed(document: str, name: str) -> File:
    """The file that a document names: by URI or absolute path, or relative to the document's folder."""
    return File(name if is_absolute(name) else beside(document, name), UNKNOWN, "")


def _lines(uri: str) -> Iterator[str]:
    """The lines of a UTF-8 text file, streamed, with their line ends; SegrayError when it cannot be read."""
    try:
        with opened(uri) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except FileNotFoundError as error:
        raise SegrayError(f"{uri} does not exist") from error
    except (OSError, ValueError) as error:  # fsspec's ValueError: of a web server that sends no parts of files
        raise at_fault(error)(f"{uri} cannot be read: {describe(error)}") from error


def _cells(uri: str, lines: Iterable[str], column: str | None) -> Iterator[str]:
    """The values of a CSV file's named column, else of the first known one or the only one (header optional)."""
    csv.field_size_limit(MAX_CELL)
    lines = dropwhile(str.isspace, lines)
    start = next(lines, "")
    rows = (row for row in csv.reader(chain([start], lines), delimiter=_separator(start, column)) if row)
    first = next(rows, None)
    if first is None:
        return
    if column is None and len(first) == 1:
        place, rows = 0, rows if _is_header(first[0]) else chain([first], rows)
    else:
        names = _names(first)
        chosen = next((name for name in _wanted(column) if name in names), None)
        if not all(map(_is_header, first)) and not (chosen and _is_header(chosen)):
            raise SegrayError(f"{uri} has several columns, but no header; name them in its first line, as in id,uri")
        place = names.index(_chosen(uri, names, column))
    for number, row in enumerate(rows, 1):
        if len(row) <= place:
            raise SegrayError(f"{uri} has no column {place + 1} in row {number}; correct the file")
        if row[place].strip():
            yield row[place].strip()


def _separator(start: str, column: str | None) -> str:
    """The separator, by a CSV file's first line: one with which the column of URIs is found, else one that splits."""
    if not _is_header(start):  # an image's name may contain any of them
        return SEPARATORS[0]
    cells = {mark: _names(next(csv.reader([start], delimiter=mark), [])) for mark in SEPARATORS}
    finding = (mark for mark, names in cells.items() if not set(_wanted(column)).isdisjoint(names))
    parting = (mark for mark, names in cells.items() if len(names) > 1)
    return next(chain(finding, parting), SEPARATORS[0])


def _is_header(text: str) -> bool:
    """Whether the first line of a CSV file is a header: no path, and no name of an image or of a container."""
    name = text.strip()
    return "/" not in name and not is_image(name) and kind_of(name) is None


def _names(header: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _wanted(column: str | None) -> Sequence[str]:
    return (column.lower(),) if column else COLUMNS


def _chosen(uri: str, names: Iterable[str], column: str | None) -> str:
    names = list(names)
    chosen = next((name for name in _wanted(column) if name in names), None)
    if chosen is None:
        raise SegrayError(f"{uri} has the columns {', '.join(names)}; give the one that holds the URIs with --column")
    return chosen


def _rows(uri: str, column: str | None) -> Iterator[str]:
    with _parquet(uri) as file:
        table = pq.ParquetFile(file)
        texts = {name.lower(): name for name in _texts(table.schema_arrow)}
        only = column is None and len(table.schema_arrow) == 1
        chosen = next(iter(texts.values())) if only else texts[_chosen(uri, texts, column)]
        for batch in table.iter_batches(columns=[chosen]):
            yield from (name for name in batch.column(0).to_pylist() if name)


@contextmanager
def _parquet(uri: str) -> Iterator[BinaryIO]:
    """A Parquet file, open during the block; SegrayError when it cannot be read."""
    try:
        with opened(uri) as file:
            yield file
    except (OSError, pa.ArrowException, ValueError) as error:
        raise at_fault(error)(f"{uri} cannot be read as Parquet: {describe(error)}") from error


def _lists(uri: str, column: str | None) -> bool:
    """Whether a Parquet file has that column of texts, or any, and none of bytes other than geometries."""
    with _parquet(uri) as file:
        schema = pq.read_schema(file)
    texts = _names(_texts(schema))
    return (column or "").lower() in texts or bool(texts) and not tables.candidates(schema)


def _texts(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
