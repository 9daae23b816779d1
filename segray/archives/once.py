"""What documents name, each file once: of lists with millions of lines, some name a file again."""

from __future__ import annotations

import hashlib
import posixpath
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice

from segray.storage import File

AT_ONCE = 500  # files looked up together


def once(files: Iterable[File]) -> Iterator[File]:
    """The files in their order, less those that one before them names.

    Digests of the names lie in a temporary file, of which SQLite holds some MB: memory does not grow with their number.
    """
    numbered = enumerate(files)
    with closing(sqlite3.connect("", check_same_thread=False)) as seen:  # no name: a file that goes with the connection
        seen.execute("PRAGMA journal_mode = OFF")
        seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        while batch := list(islice(numbered, AT_ONCE)):
            rows = sorted((_digest(file.uri), number) for number, file in batch)  # the first of a name comes first
            added = seen.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", rows).rowcount
            known = _again(seen, rows) if added < len(rows) else ()
            yield from (file for number, file in batch if number not in known)


def _again(seen: sqlite3.Connection, rows: Iterable[tuple[bytes, int]]) -> set[int]:
    """The numbers of those rows whose digest stands under another number."""
    query = "SELECT number FROM seen WHERE digest = ?"
    return {number for digest, number in rows if seen.execute(query, (digest,)).fetchone() != (number,)}


def _digest(uri: str) -> bytes:
    """16 bytes that stand for a file, under whichever of its names: the dots in a local path say nothing."""
    path = uri.removeprefix("file://")
    name = posixpath.normpath(path) if path.startswith("/") else uri
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
