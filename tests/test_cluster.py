"""The three jobs by `ray job submit` on a cluster of their own, with everything on a real S3 server."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
import running
from ray.job_submission import JobStatus, JobSubmissionClient
from running import ROOT, wait_for

from segray.listing import list_files
from segray.masks import decode_png
from segray.storage import publish, read_bytes
from segray.synthetic import CLASSES
from segray.uris import filesystem, join

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(s3: str) -> Iterator[str]:
    """The dashboard address of a cluster of one node of two cores, whose environment has the S3 credentials."""
    folder, dashboard = tempfile.mkdtemp(prefix="sr", dir="/tmp"), free_port()
    flags = {
        "port": free_port(), "dashboard-port": dashboard, "dashboard-agent-listen-port": free_port(), "num-cpus": 2,
        "temp-dir": folder, "node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1",
    }  # fmt: skip
    starting = [RAY, "start", "--head", "--block", *(f"--{name}={value}" for name, value in flags.items())]
    with open(Path(folder, "start.log"), "wb") as log, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        process = subprocess.Popen(starting, stdout=log, stderr=log, start_new_session=True)
        address = f"http://127.0.0.1:{dashboard}"
        try:
            ready = wait_for(lambda: answers(f"{address}/api/version"), every_s=0.2)
            assert ready, Path(folder, "start.log").read_text()
            yield address
        finally:
            end(process)


def test_an_address_at_which_no_ray_answers_is_one_sentence() -> None:
    said = {
        "http://127.0.0.1:8265": ", but Ray does not answer there: ",
        "ray://127.0.0.1:10001": ", that of Ray Client, through which results do not stream; ",
        f"127.0.0.1:{free_port()}": ", but Ray does not answer there: ",  # half a minute, not a quarter of an hour
    }
    command = [sys.executable, "-c", "from segray import cluster; cluster.start()"]
    given = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    running = {a: subprocess.Popen(command, env={**environment, "RAY_ADDRESS": a}, **given) for a in said}
    for address, process in running.items():
        *_, last = process.communicate(timeout=120)[1].splitlines()
        assert f"SegrayError: RAY_ADDRESS is {address}{said[address]}" in last
        assert last.endswith("or unset it to start Ray here")


def test_a_job_of_symmetric_run_takes_the_cluster_that_it_was_started_with(tmp_path: Path) -> None:
    # the real one ends with `ray stop`, which would stop every Ray on this machine
    stand_in, address = tmp_path / "ray", f"127.0.0.1:{free_port()}"
    stand_in.write_text("import subprocess, sys; subprocess.run(sys.argv[sys.argv.index('--') + 1 :])")
    job = [sys.executable, "-c", "from segray import cluster; cluster.start()"]
    command = [sys.executable, stand_in, "symmetric-run", "--min-nodes", "2", f"--address={address}", "--", *job]
    environment = {**os.environ, "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    environment.pop("RAY_ADDRESS", None)
    given = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    *_, last = subprocess.run(command, check=False, timeout=120, **given).stderr.splitlines() or [""]
    assert f"SegrayError: RAY_ADDRESS is {address}, but Ray does not answer there: " in last


def test_a_temporary_folder_that_is_of_no_use_to_ray_is_one_sentence(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment["TMPDIR"] = str(tmp_path / ("long" * 25))
    command = [sys.executable, "-c", "from segray import cluster; cluster.start()"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    *_, last = done.stderr.splitlines()
    assert "SegrayError: Ray cannot start here: " in last and "AF_UNIX path" in last
    assert last.endswith("as in RAY_TMPDIR=/tmp")


def test_a_container_s_user_without_a_home_needs_none(tmp_path: Path) -> None:
    left_out = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    given = {name: value for name, value in running.environment().items() if name not in left_out}
    command = [sys.executable, "-c", "from segray import cluster; cluster.start()"]
    for changed in ({"HOME": "/dev/null"}, {"HOME": str(tmp_path)}):
        subprocess.run(command, env={**given, **changed}, cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())
    without = {**given, "PATH": ""}
    done = subprocess.run(command, env=without, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "SegrayError: Ray starts its workers by bash, which is not found in PATH" in done.stderr.splitlines()[-1]


def test_ray_gets_the_cores_and_the_memory_that_are_allotted() -> None:
    lines = (
        "from segray import allotment, cluster; allotment.memory = lambda: 2 * 10**9; cluster.start()",
        "(node,) = cluster.nodes(); print(node['CPU'], node['memory'], node['object_store_memory'])",
    )
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=running.environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1.0 1400000000.0 600000000.0\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_s_signal_ends_a_job_in_an_orderly_way_however_long_that_takes(number: int) -> None:
    lines = (
        "import time; from segray import cluster; cluster.start()",
        "try: print('started', flush=True); time.sleep(300)",
        "finally: time.sleep(4); print('ended')",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell or nohup above the tests may have it ignored
    process = subprocess.Popen(
        ["env", f"--default-signal={number}", *command], env=running.environment(), cwd=ROOT, **pipes
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + number, "ended\n") and "***" not in err


def answers(url: str) -> bool:
    """Whether a server answers with a page."""
    with suppress(OSError), urlopen(url, timeout=10):
        return True
    return False


def end(head: subprocess.Popen) -> None:
    """Kill a head and all that it started; an orderly end takes half a minute and nothing is needed any more."""
    import psutil  # comes with Ray, and can be imported once Ray is

    for process in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait(timeout=60)
    assert wait_for(lambda: not session_of(head.pid), timeout_s=60), session_of(head.pid)


def session_of(leader: int) -> list[str]:
    """The processes still running of the session that a process began."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it ended meanwhile
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def submit(head: str, job: str, **settings: object) -> tuple[JobStatus, str]:
    """Submit a job and wait for it; (status, output)."""
    client = JobSubmissionClient(head)
    number = client.submit_job(entrypoint=shlex.join(command(job, settings)), runtime_env={"working_dir": str(ROOT)})
    assert wait_for(lambda: client.get_job_status(number).is_terminal(), every_s=0.2)
    return client.get_job_status(number), client.get_job_logs(number)


def submit_by_hand(head: str, job: str, **settings: object) -> tuple[int, str]:
    """Run `ray job submit` as users do; (exit status, output)."""
    prefix = [RAY, "job", "submit", "--address", head, "--working-dir", str(ROOT), "--"]
    done = subprocess.run([*prefix, *command(job, settings)], capture_output=True, text=True, timeout=500, check=False)
    return done.returncode, done.stdout + done.stderr


def command(job: str, settings: dict[str, object]) -> list[str]:
    """The command of a job on the cluster."""
    return ["python", f"jobs/{job}.py", *(f"--{name}={value}" for name, value in settings.items())]


def test_train_evaluate_and_segment_with_everything_on_s3(head, s3, write_folder):
    data = write_folder(join(s3, "labelled"))
    logs = []
    trained, options = join(s3, "trained"), {"network": "unet?width=4", "crop": 32, "batch_size": 4}
    status, log = submit_by_hand(head, "train", data=data, output=trained, epochs=1, **options)
    assert status == 0, log[-4000:]
    logs.append(log)
    lines = read_bytes(join(trained, "metrics.jsonl")).splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]

    model, scores = join(trained, "model"), join(s3, "scores")
    status, log = submit(head, "evaluate", model=model, data=data, split="test", output=scores)
    assert status == JobStatus.SUCCEEDED, log[-4000:]
    logs.append(log)
    metrics = json.loads(read_bytes(join(scores, "metrics.json")))
    assert metrics["images"] == 2
    assert sum(map(sum, metrics["confusion_matrix"])) == 2 * 96 * 96

    images, masks = join(data, "test", "images"), join(s3, "masks")
    publish(join(images, "broken.png"), b"not a picture")
    settings = {"model": model, "archive": images, "output": masks, "format": "parquet,png", "max_failed": 0.5}
    status, log = submit(head, "segment", **settings)
    assert status == JobStatus.SUCCEEDED, log[-4000:]
    logs.append(log)
    fs, path = filesystem(join(masks, "masks", "shard-00000000.parquet"))
    with fs.open(path) as file:
        rows = pq.read_table(file).to_pylist()
    assert [row["status"] for row in rows] == ["failed", "ok", "ok"]
    assert all(row["image"].startswith("s3://") for row in rows)
    assert decode_png(rows[1]["mask"]).shape == (96, 96)
    assert len(rows[1]["pixel_counts"]) == len(CLASSES)
    again, log = submit(head, "segment", **settings)
    assert again == JobStatus.SUCCEEDED
    assert "nothing to do" in log

    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"].encode(), os.environ["AWS_ACCESS_KEY_ID"].encode()]
    written = [read_bytes(file.uri) for folder in (trained, scores, masks) for file in list_files(folder)]
    assert len(written) > 10
    for text in [*written, *(log.encode() for log in logs)]:
        assert not any(secret in text for secret in secrets)


def test_a_refused_job_fails_and_says_why_in_one_sentence(head, s3):
    status, log = submit_by_hand(head, "segment", model=join(s3, "nowhere"), archive=s3, output=join(s3, "none"))
    assert status != 0
    assert re.search(r"is no model directory: .*model\.json does not exist", log)
    assert "Traceback" not in log
