"""The heap of a process that computes on CPUs: it keeps what tensors free, since paging memory in again is costly.

glibc returns large blocks at once. That costs a U-Net 13% of its time in segmentation, and `nano` 19% in training.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT, KEPT_BY_OLD = 2**30, 2**25  # bytes: glibc before 2.35 refuses a larger threshold for blocks of their own

# Ray runs its workers in threads, to which malloc gives heaps in pieces of 64 MB, returning each empty one: half of the
# processes spent 15% of their time on paging, until threads shared the heap of `keep_memory`.
ONE_ARENA = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}  # a runtime environment


def keep_memory() -> None:
    """Let this process keep the memory that it frees."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(M_TRIM_THRESHOLD, KEPT)
            # refused, it would stay at 128 KB, since the line above has ended its growth by use
            if not mallopt(M_MMAP_THRESHOLD, KEPT):
                mallopt(M_MMAP_THRESHOLD, KEPT_BY_OLD)
