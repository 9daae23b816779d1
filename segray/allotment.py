"""The CPU cores and the memory that a container or a batch system allots to this process.

Ray rounds half a core down to none, and sees neither affinity nor the limits of a control group below the one that is
mounted at /sys/fs/cgroup: it takes all of a machine of which Slurm gives a job a part, with Apptainer too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Whole CPU cores that this process may use, by affinity and quota; at least 1."""
    quotas = [line.split() for line in _limits("cpu", "cpu.max")]
    quotas += zip(_limits("cpu", "cpu.cfs_quota_us"), _limits("cpu", "cpu.cfs_period_us"), strict=False)
    shares = [int(quota) / int(period) for quota, period in quotas if quota not in ("max", "-1")]
    return max(1, int(min([len(os.sched_getaffinity(0)), *shares])))


def memory() -> int | None:
    """Bytes that this process and its children may use; None if that is all that the machine has."""
    limits = [*_limits("memory", "memory.max"), *_limits("memory", "memory.limit_in_bytes")]
    least = min((int(limit) for limit in limits if limit != "max"), default=0)
    return least if 0 < least < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") else None


def _limits(controller: str, name: str) -> Iterator[str]:
    """The contents of the files of that name of this process's control groups, versions 1 and 2."""
    groups = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for _, controllers, path in (group.split(":", 2) for group in groups):
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        group = root / path.strip("/")  # in a container that sees only its own group, perhaps under another path
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (folder / name).is_file():
                yield (folder / name).read_text().strip()
