"""Two real gloo processes, for tests of what workers do together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def run_two(function: Callable[[int, Path], None], folder: Path) -> None:
    """Call function(rank, folder) in each of two processes that are one gloo group."""
    torch.multiprocessing.spawn(_worker, (function, folder), nprocs=2)


def mean_gradient(network: torch.nn.Module) -> torch.Tensor:
    """The mean over the workers of all gradients of a network, as one vector.

    DistributedDataParallel computes the same mean, but takes 4 seconds to import.
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    summed = torch.cat([gradient.flatten() for gradient in gradients])
    if dist.is_initialized():
        dist.all_reduce(summed)
        summed /= dist.get_world_size()
    return summed


def _worker(rank: int, function: Callable[[int, Path], None], folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    function(rank, folder)
    dist.destroy_process_group()
    os._exit(0)  # an orderly end waits for no thread of torch's, and now and then aborts ("terminate called")
