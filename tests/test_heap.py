from __future__ import annotations

import subprocess
import sys

import pytest

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
