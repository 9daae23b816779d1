"""Ranges of a stored file: fetched concurrently, coalesced and, on S3, all of one version of the file."""

from __future__ import annotations

import errno
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem

from segray.errors import ImageError
from segray.storage import retry
from segray.store_errors import BEYOND_THE_END, FINAL_ERRORS, code_of, reason_of, store_errors, with_reason
from segray.uris import filesystem, local_path, protocol_of

if TYPE_CHECKING:
    from aiohttp import ClientResponse

WHOLE_BYTES = 2**22  # a smaller file is fetched with the first request; a larger one wastes that many bytes once
HEADER_BYTES = 2**15  # the directory of a COG of 10,000 x 10,000 pixels takes 3 kB
PAGE_BYTES = 2**16  # of small reads; doubled as long as they follow each other
MAX_PAGE_BYTES = 2**22
PIECE_BYTES = 2**21  # of large reads: a store gives some 90 MB/s per connection, so several are used
MOST_BYTES = 2**30  # of a file that a web server sends whole though a part was asked for: it is held in memory
GAP_BYTES = 2**15  # a gap between two ranges that is fetched with them, rather than sending two requests
FETCHERS = 16  # concurrent requests of a process; s3fs holds 10 connections
_pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="ranges")
_one_reader = threading.Lock()  # members of one archive share its file's position


@contextmanager
def unreadable_told(uri: str) -> Iterator[None]:
    """In the block, that a file is missing or refused becomes an ImageError; a store's other errors pass through."""
    try:
        yield
    except FINAL_ERRORS as error:
        raise ImageError(f"{uri} cannot be read: {reason_of(error)}") from error


def read_range(uri: str, start: int, size: int) -> bytes:
    """Up to `size` bytes from `start`, fewer where the file ends, in one request; a store's own error passes through.

    ImageError when the file is missing or refused, or a web server sends no parts of files (see `_check_part`).
    """
    with unreadable_told(uri):
        if path := local_path(uri):
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(size)
        fs, path = filesystem(uri)
        return retry(partial(_range_once, fs, path, start, start + size))[:size] if size else b""


def _range_once(fs: AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
    web = {"raise_for_status": partial(_check_part, start)} if protocol_of(fs) in ("http", "https") else {}
    try:
        with store_errors(), _one_reader if not fs.async_impl else nullcontext():
            return fs.cat_file(path, start=start, end=stop, **web)
    except OSError as error:
        if code_of(error) in BEYOND_THE_END:  # most stores refuse a range beyond the end
            fs.invalidate_cache()  # adlfs would answer with the size that the file had before
            if (fs.size(path) or 0) <= start:
                return b""
        raise


async def _check_part(start: int, response: ClientResponse) -> None:
    """ImageError when a web server sends a whole file in place of the part from `start`, as simple ones do.

    fsspec would take its first bytes for those of the part. A file that is asked for from its beginning may come whole.
    """
    whole = response.status == 200 and "Content-Range" not in response.headers
    if whole and (start > 0 or (response.content_length or 0) > MOST_BYTES):
        advice = "copy it to a disk, or to a store or a server that sends parts"
        raise ImageError(f"{response.url} cannot be read: its web server sends no parts of files; {advice}")


class StoredFile:
    """A file of a store while a dataset of it is open; read by that one dataset, from any of its threads.

    span: (first byte, bytes) of a member that is read in place; None for all of the file. error: what the store last
    failed with, after all retries, or how the file is cut off; errors cannot pass through GDAL.
    """

    def __init__(self, uri: str, *, header_only: bool, span: tuple[int, int] | None = None) -> None:
        """Fetch the beginning; FileNotFoundError or whatever error the store gives."""
        self.uri = uri
        self._first, self._bytes = span or (0, None)
        self.error: BaseException | None = None
        self.place = ""  # where GDAL finds it
        self._fs, self._path = filesystem(uri)
        self._reading, self._opening = threading.Lock(), threading.Lock()
        self._file, self._step = None, PAGE_BYTES
        ahead = HEADER_BYTES if header_only else WHOLE_BYTES
        head = retry(partial(_range_once, self._fs, self._path, self._first, min(self._first + ahead, self._end)))
        self._whole = head if len(head) != ahead or len(head) == self._bytes else None
        # Of a large file, bytes fetched before its tag is known may be of another version: only header reads keep them.
        self._pages = deque([(0, head)] if header_only else [], maxlen=4)
        if self._whole is None and not header_only:
            retry(self._opened)

    @property
    def is_whole(self) -> bool:
        """Whether all of it came with the first request."""
        return self._whole is not None

    def size(self) -> int:
        """Bytes of the file; 0 when the store fails (see `error`)."""
        if self._whole is not None:
            return len(self._whole)
        opening = _pool.submit(retry, self._opened)
        self.error = opening.exception() or self.error
        if opening.exception():
            return 0
        return opening.result().size if self._bytes is None else self._bytes

    def changed(self) -> bool:
        """Whether the store now holds another version than the one being read; one request."""
        return retry(self._fresh_tag) != self._opened().tag

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start`, fewer at the end of the file or when the store fails (see `error`)."""
        if self._whole is not None:
            return self._whole[start : start + size]
        with self._reading:
            for page_start, page in self._pages:
                if page_start <= start and start + size <= page_start + len(page):
                    return page[start - page_start : start - page_start + size]
            follows = any(page_start < start <= page_start + len(page) for page_start, page in self._pages)
            self._step = min(2 * self._step, MAX_PAGE_BYTES) if follows else PAGE_BYTES
            page = self._settle([_pool.submit(self._fetch, start, start + max(size, self._step))])
            self._pages.append((start, page))
            return page[:size]

    def read_ranges(self, starts: list[int], sizes: list[int]) -> list[bytes]:
        """The bytes of several ranges, fetched concurrently; zeros beyond the file's end and when the store fails.

        Both cases are recorded in `error`, since GDAL carries on.
        """
        if self._whole is not None:
            found = [self._whole[start : start + size] for start, size in zip(starts, sizes)]
        else:
            found = self._fetch_ranges(starts, sizes)
        if self.error is None and any(len(data) < size for data, size in zip(found, sizes)):
            end = max(start + size for start, size in zip(starts, sizes))
            self.error = ValueError(f"the TIFF has {self.size()} bytes, but blocks of pixels up to byte {end}")
        return [data.ljust(size, b"\0") for data, size in zip(found, sizes)]

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of one range, fewer at the end of the file, for any thread; whatever error the store gives."""
        return self._fetch(start, stop) if self._whole is None else self._whole[start:stop]

    def close(self) -> None:
        """Close the file and drop its cached pages."""
        self._pages.clear()
        if self._file is not None:
            self._file.close()

    def _fetch_ranges(self, starts: list[int], sizes: list[int]) -> list[bytes]:
        runs: list[list[int]] = []  # [start, stop) of ranges that lie close together
        run_of = {}
        for start, size in sorted(zip(starts, sizes)):
            if runs and start - runs[-1][1] <= GAP_BYTES:
                runs[-1][1] = max(runs[-1][1], start + size)
            else:
                runs.append([start, start + size])
            run_of[start] = len(runs) - 1
        pieces = [
            [_pool.submit(self._fetch, at, min(at + PIECE_BYTES, stop)) for at in range(start, stop, PIECE_BYTES)]
            for start, stop in runs
        ]
        data = [memoryview(self._settle(futures)) for futures in pieces]
        offsets = [start - runs[run_of[start]][0] for start in starts]
        return [bytes(data[run_of[s]][at : at + size]) for s, at, size in zip(starts, offsets, sizes)]

    def _settle(self, futures: list[Future]) -> bytes:
        """The bytes fetched, none on an error, which is kept for afterwards as it cannot pass through GDAL."""
        errors = [error for future in futures if (error := future.exception()) is not None]
        self.error = errors[0] if errors else self.error
        return b"" if errors else b"".join(future.result() for future in futures)

    def _fetch(self, start: int, stop: int) -> bytes:
        return retry(partial(self._fetch_once, start, stop))

    def _fetch_once(self, start: int, stop: int) -> bytes:
        file = self._opened()
        start, stop = self._first + start, min(self._first + stop, file.size, self._end)
        try:
            return file.fetch(start, stop) if start < stop else b""
        except OSError as error:
            if error.errno == errno.EBUSY:  # of s3fs: the object no longer has the tag that it was opened with
                raise ImageError(f"{self.uri} changed while it was read; run again with --overwrite") from error
            raise

    @property
    def _end(self) -> int:
        """The offset in the file just after the last byte that is read here."""
        return sys.maxsize if self._bytes is None else self._first + self._bytes

    def _opened(self) -> _Opened:
        with self._opening:
            if self._file is None:
                self._fs.invalidate_cache()
                self._file = _Opened(self._fs, self._path)
            return self._file

    def _fresh_tag(self) -> str:
        self._fs.invalidate_cache()
        return str(with_reason(self._fs, self._path, self._fs.info))


class _Opened:
    """An fsspec file whose ranges several threads may fetch, with its size and a tag of its version.

    Opening takes one request; on S3 every range is then requested on the condition that the version is still the same.
    """

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self._fs, self._path = fs, path
        opened = partial(fs.open, mode="rb", cache_type="none")
        self._file = with_reason(fs, path, opened) if fs.async_impl else None
        info = getattr(self._file, "details", None) or fs.info(path)
        self.size, self.tag = int(info["size"]), str(info)
        self._fetcher = getattr(getattr(self._file, "cache", None), "fetcher", None)

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of one range, in one request."""
        if self._fetcher is not None:
            return self._fetcher(start, stop)
        with _one_reader:
            return self._fs.cat_file(self._path, start=start, end=stop)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
