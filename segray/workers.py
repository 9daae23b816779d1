"""What training workers share: who they are, sums over all of them, and errors that end them all at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segray.errors import SegrayError

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker's rank among world_size, its device, and how many CPU cores it may use."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    cores: int = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all workers, on each of them; every worker must call this."""
        total = tensor.clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def all_agree(self, true_here: bool) -> bool:
        """Whether it is true on every worker; every worker must call this."""
        return int(self.sum(torch.tensor(int(not true_here), device=self.device))) == 0

    def gather(self, value: Value) -> list[Value]:
        """The values of all workers in the order of their ranks, on each of them; every worker must call this."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def raise_everywhere(self, error: SegrayError | None) -> None:
        """SegrayError on every worker if any of them has an error: one that stopped alone would block the rest."""
        sentences = self.gather(str(error) if error else None)
        if error:
            raise error
        if first := next((sentence for sentence in sentences if sentence), None):
            raise SegrayError(first)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block without collective calls; after it, a SegrayError that any worker met is raised on all of them."""
        met = None
        try:
            yield
        except SegrayError as error:
            met = error
        self.raise_everywhere(met)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, with gradients averaged over the workers; buffers are not exchanged."""
        if self.world_size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        options = {"device_ids": devices, "gradient_as_bucket_view": True}
        # batch norms see all workers' data, so their statistics are equal without being sent at each step
        return DistributedDataParallel(network, broadcast_buffers=False, **options)
