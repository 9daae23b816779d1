"""What control groups and affinity leave to a process, as systemd, Docker and Slurm write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segray import allotment

MIB = 2**20
SLURM = "system.slice/slurmstepd.scope/job_7"
VERSION_1 = "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab"


def of_version_1(memory: int, quota: int) -> dict[str, str]:
    """The files of a group of version 1, with a period of 0.1 s."""
    cpu = {"cpu/cpu.cfs_quota_us": str(quota), "cpu/cpu.cfs_period_us": "100000"}
    return {"memory/memory.limit_in_bytes": str(memory), **cpu}


@pytest.mark.parametrize(
    ("groups", "files", "allotted"),
    [
        ("0::/", {}, (8, None)),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, (8, None)),
        ("0::/", {"cpu.max": "250000 100000", "memory.max": f"{700 * MIB}"}, (2, 700 * MIB)),
        ("0::/", {"cpu.max": "50000 100000"}, (1, None)),
        (f"0::/{SLURM}/step_0", {f"{SLURM}/memory.max": str(MIB), f"{SLURM}/step_0/memory.max": "max"}, (8, MIB)),
        (VERSION_1, of_version_1(600 * MIB, 300000), (3, 600 * MIB)),
        (VERSION_1, of_version_1(9223372036854771712, -1), (8, None)),
    ],
)
def test_limits_of_all_groups_of_a_process_hold(
    groups: str,
    files: dict[str, str],
    allotted: tuple[int, int | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own").write_text(groups + "\n")
    for name, text in files.items():
        (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / name).write_text(text + "\n")
    monkeypatch.setattr(allotment, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(allotment, "GROUPS", tmp_path / "mounted")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert (allotment.cores(), allotment.memory()) == allotted


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert allotment.cores() == 1
