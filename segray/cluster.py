"""The Ray cluster that a job runs on: attach or start, and what it has."""

from __future__ import annotations

import logging
import os

import ray

from segray.settings import PathSettings


def start() -> None:
    """Attach to the cluster of RAY_ADDRESS (as `ray job submit` sets it), or start Ray on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default, and no warning about it
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what its C++ part has to say is in Ray's log files
    address = os.environ.get("RAY_ADDRESS")
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    ray.init(logging_level=logging.WARNING, log_to_driver=False, **options)


def gpus() -> int:
    """GPUs of the whole cluster, now."""
    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPU cores of the whole cluster, now."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def precision(settings: PathSettings) -> str:
    """--precision, or bf16 where the cluster's devices compute it fast, else fp32; a worker is asked."""
    return settings.precision or ray.get(_precision.remote(on_gpu=gpus() > 0))


@ray.remote(num_cpus=0)
def _precision(*, on_gpu: bool) -> str:
    from segray.segmenter import default_precision

    return default_precision("cuda" if on_gpu else "cpu")
