"""Open rasters: kept for their next window, used by one thread at a time, closed when others take their place.

GDAL asks for the blocks of a window in one call, which `ranges` answers with concurrent requests, for any fsspec store.
"""

from __future__ import annotations

import atexit
import io
import itertools
import os
import posixpath
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import cache
from typing import TypeVar

import rasterio
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.env import set_gdal_config
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
from rasterio.io import MemoryFile

from segray.archives.ranges import StoredFile
from segray.uris import filesystem, local_path

Result = TypeVar("Result")
Span = tuple[int, int] | None  # (first byte, bytes) of a member of a file
Key = tuple[str, Span, int | None]
MAX_IDLE = 8  # open rasters that wait for their next window; as many as there are reading threads
STRIPE_BYTES = 2**25
STORE_OPTIONS = {
    # GDAL would list the image's whole folder and ask for dozens of sidecar files, for every image.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # Blocks up to this sum are asked for in one call, others one by one; `rasters` reads half as much at a time.
    "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": str(2 * STRIPE_BYTES),
}
# The JPEG 2000 driver would take all cores and, of a file that is cut off, return other pixels: the errors of its own
# threads reach nobody.
set_gdal_config("GDAL_NUM_THREADS", "1")
if "GDAL_CACHEMAX" not in os.environ:
    # Blocks are decoded once, in file order: a cache of 16 MB is as fast as one of 1 GB. The default is 5% of the
    # machine's memory, in every process.
    set_gdal_config("GDAL_CACHEMAX", 2**26)


class OpenRaster:
    """A raster that GDAL holds open as `source`; only one thread at a time may use it.

    span: (first byte, bytes) of a raster that is a member of the file, None where it is the file. overview: the number
    of the overview to open in place of the raster.
    """

    def __init__(
        self,
        uri: str,
        *,
        driver: str,
        header_only: bool = False,
        span: Span = None,
        overview: int | None = None,
    ) -> None:
        """Open it; RasterioError or OSError when it cannot be opened, the store's own error when the store fails."""
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it is still an image
        warnings.simplefilter("ignore", NodataShadowWarning)
        self._local = local_path(uri) if span is None else None
        self._stamp = _stamp(self._local) if self._local else None
        self._file = None if self._local else StoredFile(uri, header_only=header_only, span=span)
        path = self._local or _files.add(self._file, posixpath.basename(filesystem(uri)[1]))
        # rasterio keeps its file systems in a context, which only one thread at a time can enter.
        self._context = Context() if self._local else _files.context.copy()
        self.source: rasterio.DatasetReader | None = None
        try:
            level = {} if overview is None else {"overview_level": overview}
            self.source = self.run(lambda: rasterio.open(path, driver=driver, **level))
        finally:
            if self.source is None:
                self.close()

    def run(self, call: Callable[[], Result]) -> Result:
        """The result of a call that uses `source`; the store's own error when it failed meanwhile."""
        try:
            with rasterio.Env(**({} if self._local else STORE_OPTIONS)):
                return self._context.run(call)
        finally:
            if self._file is not None and self._file.error is not None:
                raise self._file.error

    @property
    def is_small(self) -> bool:
        """Whether one request fetched all of it, so that opening it again costs no more than checking for changes."""
        return self._file is not None and self._file.is_whole

    def is_current(self) -> bool:
        """Whether the file is still the one that was opened; asks the store."""
        return _stamp(self._local) == self._stamp if self._local else not self._file.changed()

    def close(self) -> None:
        """Release the file and the blocks that GDAL holds of it."""
        if self.source is not None:
            self._context.run(self.source.close)
        if self._file is not None:
            _files.remove(self._file)
            self._file.close()


class _Idle:
    """The open rasters that nobody uses now, the most recently used at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rasters: list[tuple[Key, OpenRaster]] = []

    def take(self, key: Key) -> OpenRaster | None:
        """An open raster of the URI, span and overview, for the caller alone; None when there is none."""
        with self._lock:
            place = next((k for k, (name, _) in enumerate(self._rasters) if name == key), None)
            return None if place is None else self._rasters.pop(place)[1]

    def give(self, key: Key, raster: OpenRaster) -> None:
        """Give a raster back; beyond MAX_IDLE, the ones that have waited longest are closed."""
        with self._lock:
            self._rasters.append((key, raster))
            surplus, self._rasters = self._rasters[:-MAX_IDLE], self._rasters[-MAX_IDLE:]
        for _, old in surplus:
            old.close()

    def close(self) -> None:
        """Close all."""
        while self._rasters:
            self._rasters.pop()[1].close()


@contextmanager
def borrow(uri: str, *, driver: str, span: Span = None, overview: int | None = None) -> Iterator[OpenRaster]:
    """An open raster for use in the block; it is kept for later unless it is small or the block fails."""
    key = (uri, span, overview)
    raster = _idle.take(key)
    try:
        if raster is None or not raster.is_current():
            if raster is not None:
                raster.close()
            raster = OpenRaster(uri, driver=driver, span=span, overview=overview)
        else:
            _forget_errors()
        yield raster
    except BaseException:
        if raster is not None:
            raster.close()
        raise
    if raster.is_small:
        raster.close()
    else:
        _idle.give(key, raster)


class _Reader:
    """What GDAL takes for an open file: a position in a StoredFile."""

    def __init__(self, file: StoredFile) -> None:
        self._file, self._at = file, 0

    def get_byte_ranges(self, offsets: list[int], sizes: list[int]) -> list[bytes]:
        return self._file.read_ranges(offsets, sizes)

    def read(self, size: int) -> bytes:
        data = self._file.read(self._at, size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (self._file.size() if base is None else base)
        return self._at

    def tell(self) -> int:
        return self._at

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        """The StoredFile stays: GDAL may open a file several times."""


class _Files(MultiByteRangeResourceContainer):
    """What GDAL takes for a file system: the stored files that are open now, each in a numbered folder of its own.

    rasterio would install and remove one such file system with every raster, while GDAL looks for file systems in other
    threads without a lock: 8 threads crash within a minute. So this one is installed once, by a raster that stays open.
    """

    def __init__(self) -> None:
        self._open: dict[str, StoredFile] = {}
        self._numbers = itertools.count()
        self._installing = threading.Lock()
        self._anchor: rasterio.DatasetReader | None = None
        self.context = Context()

    def add(self, file: StoredFile, name: str) -> str:
        """The path under which GDAL finds a file until it is removed."""
        with self._installing:
            if self._anchor is None:
                self._anchor = self.context.run(rasterio.open, "anchor", driver="GTiff", opener=self)
            file.place = f"{next(self._numbers)}/{name}"
        self._open[file.place] = file
        return self._anchor.name.removesuffix("anchor") + file.place

    def remove(self, file: StoredFile) -> None:
        """Forget a file."""
        self._open.pop(file.place, None)

    def uninstall(self) -> None:
        """To be called before Python ends: GDAL must not use this file system afterwards."""
        if self._anchor is not None:
            self.context.run(self._anchor.close)

    def open(self, path: str, mode: str = "r", **options: object) -> _Reader | io.BytesIO:
        return io.BytesIO(_smallest_raster()) if path == "anchor" else _Reader(self._find(path))

    def size(self, path: str) -> int:
        return self._find(path).size()

    def isfile(self, path: str) -> bool:
        return path in self._open

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def _find(self, path: str) -> StoredFile:
        if path not in self._open:
            raise FileNotFoundError(path)
        return self._open[path]


def _forget_errors() -> None:
    """Make GDAL forget its last error in this thread, as it does when a raster is opened.

    rasterio would take it for an error of the next read, of whichever raster.
    """
    with MemoryFile(_smallest_raster()) as memory, memory.open(driver="GTiff"):
        pass


@cache
def _smallest_raster() -> bytes:
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8"):
            pass
        return memory.read()


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


_files, _idle = _Files(), _Idle()
atexit.register(_files.uninstall)
atexit.register(_idle.close)  # runs first
