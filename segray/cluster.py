"""The Ray cluster that a job runs on: attach to it or start it, and what resources it has."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray import allotment
from segray.errors import SegrayError, one_line
from segray.uris import join, local_path

log = logging.getLogger("segray")
Result = TypeVar("Result")
NO_ROOM_S = 120.0  # without any worker, or any result, after which the driver says so
NO_ROOM = "no %s is at work yet: waiting for nodes, or for resources that other jobs hold"
NO_RESULT = "nothing was finished for %.0f s: work takes long, or waits for nodes or for resources that other jobs hold"
FOR_WORKERS = 0.7  # of the memory; the rest is for Ray's object store


def start() -> None:
    """Attach to the cluster of RAY_ADDRESS (as `ray job submit` sets it), or start Ray on this machine.

    `ray symmetric-run` does not set it: that of the cluster which it started for this job is set here.
    """
    if ray.is_initialized():
        return
    if not os.environ.get("RAY_ADDRESS") and (given := _symmetric_run()):
        os.environ["RAY_ADDRESS"] = given
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; avoids its warning
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # messages of its C++ part go to Ray's log files only
    os.environ.setdefault("RAY_task_oom_retries", "2")  # of tasks that the memory monitor kills; endless by default
    address = os.environ.get("RAY_ADDRESS")
    advice = "give HOST:PORT of its head node, as `ray start --head` prints it, or unset it to start Ray here"
    if address and address.startswith("ray://"):
        raise SegrayError(
            f"RAY_ADDRESS is {address}, that of Ray Client, through which results do not stream; {advice}"
        )
    if address:
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # attempts of 40 s each; else 20 of them
        options = {"address": address, "runtime_env": _own_code()}
    else:
        if not shutil.which("bash"):  # Ray would wait for ever for workers
            raise SegrayError("Ray starts its workers by bash, which is not found in PATH; install it")
        # nobody looks at metrics and events here; they take some 2% of two cores
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        # where Ray would write a token; a container's user may have no home, or none that may be written to
        if not os.path.exists(os.path.expanduser("~/.ray/auth_token")) and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {"address": "local", "include_dashboard": False, "num_cpus": allotment.cores()}
        if limit := allotment.memory():
            options["_memory"] = int(limit * FOR_WORKERS)
            options["object_store_memory"] = int(limit * (1 - FOR_WORKERS))
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise
        said = f"but Ray does not answer there: {one_line(error)}"
        raise SegrayError(f"RAY_ADDRESS is {address}, {said}; {advice}") from error
    except OSError as error:
        # of the folder for its sockets, in TMPDIR, which schedulers of clusters often make long; Ray gives no number
        if address or error.errno not in (None, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        advice = "set RAY_TMPDIR to the short path of a folder that may be written to, as in RAY_TMPDIR=/tmp"
        raise SegrayError(f"Ray cannot start here: {one_line(error)}; {advice}") from error
    _end_when_told()


def _end_when_told() -> None:
    """Let SIGTERM and SIGHUP, of schedulers, containers and terminals, end the job in an orderly way, as Ctrl-C does.

    Ray's own handler prints a stack trace, and 3 s later aborts the process, whatever it is doing; it has none for
    SIGHUP. Python lets only the main thread handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _symmetric_run() -> str | None:
    """The --address of the `ray symmetric-run` that runs this job, if one does."""
    import psutil  # comes with Ray, and can be imported once Ray is

    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--address")
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            command = process.cmdline()
            if "symmetric-run" in command[:3]:  # python, ray, symmetric-run
                return flags.parse_known_args(command[3:])[0].address
    return None


def _own_code() -> dict:
    """A runtime environment with this segray: nodes would use the one installed on them, of whatever version."""
    package = Path(__file__).parent
    # Ray has brought it, as `ray job submit --working-dir` tells it to, and brings it to every node
    brought = "runtime_resources" in package.parts
    return {} if brought else {"py_modules": [str(package)]}


def noting_waits(results: Iterable[Result]) -> Iterator[Result]:
    """The same results; on a cluster, a line in the log says so when one is long in coming.

    Ray waits for ever, and in silence, for resources that no node has.
    """
    if not os.environ.get("RAY_ADDRESS"):  # a single machine: neither nodes nor other jobs
        yield from results
        return
    results, end = iter(results), object()
    while True:
        late = threading.Timer(NO_ROOM_S, log.info, [NO_RESULT, NO_ROOM_S])
        late.daemon = True
        late.start()
        try:
            result = next(results, end)
        finally:
            late.cancel()
        if result is end:
            return
        yield result


def check_shared(output: str, record: str) -> None:
    """SegrayError when OUTPUT is a local folder that a node does not see: results would be scattered over all nodes.

    record: a file that the driver has written there. Nodes that come later are not asked.
    """
    if local_path(output) is None:
        return
    here, asked = ray.get_runtime_context().get_node_id(), {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "scheduling_strategy": there}
            asked[node["NodeManagerAddress"]] = _sees.options(**options).remote(local_path(join(output, record)))
    for address, answer in asked.items():
        try:
            seen = ray.get(answer)
        except RayError:  # the node has died
            continue
        if not seen:
            raise SegrayError(
                f"--output {output} is a folder of the driver's machine that the node {address} does not see; give "
                "storage that all nodes see, such as s3://"
            )


@ray.remote
def _sees(path: str) -> bool:
    return os.path.exists(path)


def use_gpu(device: str | None) -> bool:
    """Whether the network runs on GPUs: as --device says, else if the cluster has GPUs now.

    On a cluster whose GPU nodes start on demand, --device gpu requests them; SegrayError on a single machine without
    one.
    """
    if device == "gpu" and not gpus() and not os.environ.get("RAY_ADDRESS"):
        raise SegrayError("--device gpu was given, but Ray finds no GPU on this machine; leave it out")
    return device == "gpu" or (device is None and gpus() > 0)


def check_there(flag: str, *, gpu: bool) -> None:
    """SegrayError when no node is there yet to derive a flag's default from: nodes may start on demand only."""
    if not ray.cluster_resources().get("GPU" if gpu else "CPU"):
        what, devices = ("GPU", "") if gpu else ("worker node", " (and --device gpu, if they are to have GPUs)")
        raise SegrayError(f"the cluster has no {what} yet; say how many the job may use: {flag} MIN:MAX{devices}")


def gpus() -> int:
    """GPUs of the whole cluster, now."""
    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPU cores of the whole cluster, now; at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def slots(*, on_gpu: bool, bytes_each: int) -> int:
    """How many actors the cluster has room for now: one per GPU, or per CPU core as memory allows; at least 1."""
    if on_gpu:
        return max(1, gpus())
    return max(1, sum(min(int(node.get("CPU", 0)), int(node.get("memory", 0)) // bytes_each) for node in nodes()))


def nodes() -> list[dict[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_of_node() -> int:
    """CPU cores per GPU of this worker's node, at least 1; the node may have started after the job."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(node.get("CPU", 1)) // max(1, int(node.get("GPU", 1))))


def cores_each(nodes: list[dict[str, float]], count: int) -> int:
    """The most CPU cores that each of `count` workers can have, given the resources of each node; at least 1."""

    def fit(cores: int) -> int:
        return sum(int(node.get("CPU", 0)) // cores for node in nodes)

    most = int(max((node.get("CPU", 0) for node in nodes), default=1))
    return next((cores for cores in range(most, 1, -1) if fit(cores) >= count), 1)
