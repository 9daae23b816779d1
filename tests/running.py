"""Running the jobs as users do, in processes of their own, and looking at what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@contextmanager
def small_ray(**options: object) -> Iterator[str]:
    """A Ray of two cores in this process; its address."""
    import ray

    folder = tempfile.mkdtemp(prefix="sr", dir="/tmp")  # the paths of Ray's sockets must stay under 108 characters
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield ray.init(address="local", _temp_dir=folder, **options).address_info["address"]
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """An environment in which a job starts a small Ray of its own, in its own temporary folder."""
    short = tempfile.mkdtemp(prefix="sr", dir="/tmp")  # the paths of Ray's sockets must stay under 108 characters
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short, "OMP_NUM_THREADS": "1"}


def start(job: str, **settings: object) -> subprocess.Popen:
    """A job started in a process group of its own."""
    flags = [part for name, value in settings.items() for part in _flag(name, value)]
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)


def run(job: str, **settings: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a job."""
    process = start(job, **settings)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the driver alone: the processes that it started must notice by themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)


def kill_actor(process: subprocess.Popen) -> bool:
    """SIGKILL to one actor that is segmenting, if there is one; whether there was."""
    for entry in Path("/proc").iterdir():
        try:
            session = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3]) if entry.name.isdigit() else -1
            if session == process.pid and b"SegmentActor)).submit" in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 500, every_s: float = 0.02) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every_s)
    return False


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}", str(value)]
