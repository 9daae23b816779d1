"""Temporary folders of this machine: removed by the process that made them or, if it was killed, by a later one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

PREFIX = "segray-scratch-"
LOCK, FILES = "lock", "files"
FULL_BYTES = 2**20  # a disk with less left is full
GRACE_S = 60.0  # after a folder was made: by then its process holds the lock


@contextmanager
def scratch() -> Iterator[str]:
    """An empty folder for use in the block; if the process is killed there, `remove_abandoned` removes it.

    OSError ENOSPC when GDAL fails in the block because the disk is full, which it does not say itself.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, open(os.path.join(folder, LOCK), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends, even by a kill
        files = os.path.join(folder, FILES)
        os.mkdir(files)
        try:
            yield files
        except (RasterioError, CPLE_BaseError) as error:
            if shutil.disk_usage(files).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), files) from error
            raise


def remove_abandoned() -> None:
    """Remove the folders that this user's ended processes left; what cannot be removed stays."""
    with os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            with suppress(OSError):  # others remove it at the same time
                if entry.name.startswith(PREFIX) and _is_abandoned(entry):
                    shutil.rmtree(entry.path)


def _is_abandoned(entry: os.DirEntry) -> bool:
    status = entry.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or time.time() - status.st_mtime < GRACE_S:
        return False
    try:
        with open(os.path.join(entry.path, LOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # its process ended before it made one, or removes the folder now
        pass
    return True
