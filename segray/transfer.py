"""Arrays on their way to a device and back; on a GPU, while it computes something else."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

# Types that torch can move but not index, and the types of the same size that it can index.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
ALIGNED = 16  # bytes: arrays that are joined begin at multiples of this
TOGETHER = 2**25  # bytes, at most, sent as one: torch keeps page-locked memory in powers of two

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to pixels


def to_device(
    arrays: Sequence[np.ndarray], device: torch.device, copies: torch.cuda.Stream | None = None
) -> list[torch.Tensor]:
    """The arrays as tensors on a device, unsigned integers wider than a byte as signed ones of the same bits.

    Small ones are sent to a GPU as one, since each call takes its time, and on the stream `copies` (None: the one that
    computes), while the device computes something else. On a CPU, tensors share their memory with the arrays.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    tensors = [tensor.view(SIGNED.get(tensor.dtype, tensor.dtype)) for tensor in tensors]
    if device.type != "cuda":
        return tensors
    if len(arrays) > 1 and sum(array.nbytes for array in arrays) > TOGETHER:
        return [moved for array in arrays for moved in to_device([array], device, copies)]
    pinned, current = joined(tensors, pin_memory=True), torch.cuda.current_stream(device)
    copies = copies or current
    with torch.cuda.stream(copies):
        moved = pinned.to(device, non_blocking=True)
    current.wait_stream(copies)
    moved.record_stream(current)
    return parted(moved, tensors)


def to_host(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
    """The tensors on the host, and the event after which they are there (None: they already are)."""
    if tensors[0].device.type != "cuda":
        return list(tensors), None
    hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for host, tensor in zip(hosts, tensors):
        host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event(blocking=True)  # waiting for it leaves the core to threads that read and write
    event.record(torch.cuda.current_stream(tensors[0].device))
    return hosts, event


def joined(tensors: Sequence[torch.Tensor], *, pin_memory: bool = False) -> torch.Tensor:
    """(bytes,) uint8 that holds the tensors one after the other, each begun at a multiple of `ALIGNED`."""
    starts = _starts(tensors)
    whole = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin_memory)
    for tensor, part in zip(tensors, parted(whole, tensors)):
        part.copy_(tensor)
    return whole


def parted(whole: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The reverse of `joined`: views of its parts, with the types and shapes of the tensors `like`."""
    return [
        whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(_starts(like), like)
    ]


def _starts(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Where each of them begins, and where the next one would."""
    return np.cumsum([0, *(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors)]).tolist()
