"""A stored file as a Python file: fetched in small pages where a reader jumps, in growing ones where it reads on."""

from __future__ import annotations

import errno
import io
import os

from segray.archives.ranges import GAP_BYTES, StoredFile
from segray.errors import ImageError
from segray.uris import local_path

STEP_BYTES = 2**12  # of a read after a jump; holds a header with its extensions
MAX_STEP_BYTES = 2**20
TAIL_BYTES = 2**16  # the end of a file is fetched in one go: ZIP and Parquet have their directories there


class Seekable(io.RawIOBase):
    """A file of any store for readers that seek, used by one thread; a read of more than `limit` bytes is refused.

    A jump of up to `GAP_BYTES` forwards counts as reading on, so that pages grow to span such gaps: a request takes
    longer than those bytes. error: what the store failed with, after all retries, for callers whose library replaces it
    by an error of its own.
    """

    def __init__(self, uri: str, *, limit: int) -> None:
        """Open it; FileNotFoundError or whatever error the store gives, as any read does.

        ImageError, from a read, if the file has become shorter.
        """
        super().__init__()
        self.error: BaseException | None = None
        self._local, self._stored = None, None  # `close` is called for a file that could not be opened, too
        path = local_path(uri)
        if path:
            self._local = os.open(path, os.O_RDONLY)
        else:
            self._stored = StoredFile(uri, header_only=True)
        self._limit, self._at, self._step, self._page = limit, 0, STEP_BYTES, (0, b"")
        self.size = os.fstat(self._local).st_size if path else self._stored.size()
        self._raise_error()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, f"byte {at} lies before the beginning")  # as files do; zipfile relies on it
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, -1 for the rest; ValueError when that is more than the limit."""
        size = max(0, self.size - self._at) if size in (None, -1) else size
        if not 0 <= size <= self._limit:
            raise ValueError(f"{size} bytes at byte {self._at} exceed the {self._limit} allowed in one read")
        data = self._bytes(self._at, min(self._at + size, self.size))
        self._at += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            if self._local is not None:
                os.close(self._local)
            if self._stored is not None:
                self._stored.close()
        super().close()

    def _bytes(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        first, page = self._page
        if not (first <= start and stop <= first + len(page)):
            follows = 0 <= start - (first + len(page)) <= GAP_BYTES
            self._step = min(2 * self._step, MAX_STEP_BYTES) if follows else STEP_BYTES
            tail = max(0, self.size - TAIL_BYTES)
            first, last = (tail, self.size) if start >= tail else (start, max(stop, start + self._step))
            page = self._fetch(first, min(last, self.size))
            if len(page) <= MAX_STEP_BYTES:
                self._page = (first, page)
        return page[start - first : stop - first]

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            if self._local is not None:
                return os.pread(self._local, stop - start, start)
            data = self._stored.read_ranges([start], [stop - start])[0]
            self._raise_error()
            return data
        except OSError as error:
            self.error = error
            raise

    def _raise_error(self) -> None:
        if self._stored is not None and self._stored.error is not None:
            self.error = self._stored.error
            if isinstance(self.error, ValueError):  # it ends before the size that it had when it was opened
                self.error = ImageError(f"{self._stored.uri} changed while it was read; run again with --overwrite")
            raise self.error
