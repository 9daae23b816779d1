from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from segray import heap

FAULTS = """
import resource
import torch
from segray.heap import keep_memory
if {kept}:
    keep_memory()
for _ in range(16):
    torch.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, kept: bool) -> int:
    code = FAULTS.format(kept=kept)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_paged_in_anew():
    assert faults(kept=False) > 4 * faults(kept=True)


def test_an_old_glibc_gets_the_largest_threshold_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {}

    def mallopt(parameter: int, value: int) -> int:
        refused = parameter == heap.M_MMAP_THRESHOLD and value > 2**25  # HEAP_MAX_SIZE / 2
        taken.update({} if refused else {parameter: value})
        return int(not refused)

    monkeypatch.setattr(heap.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    heap.keep_memory()
    assert taken == {heap.M_TRIM_THRESHOLD: 2**30, heap.M_MMAP_THRESHOLD: 2**25}
