"""Failures of a device, and what they mean for the process that uses it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from segray.errors import OutOfMemoryError, one_line

log = logging.getLogger("segray")
Result = TypeVar("Result")
ADVICE = "give the workers more memory, or lower --batch_size, --tile or --shard_mpx"
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED")  # CUDA, torch on CPUs, cuBLAS
FAULT = re.compile(r"\b(CUDA|CUDA driver|cuDNN|cuFFT) error: |Triton Error \[CUDA\]")  # so torch and Triton begin them
NO_GPU = re.compile(r"at least one CUDA device|Found no NVIDIA driver|No CUDA GPUs|not compiled with CUDA")
UNUSABLE = (
    "Ray counts GPUs that torch cannot use: install NVIDIA's driver and a torch with CUDA on their nodes, or give "
    "--device cpu"
)
UNCOMPILED = "on CPUs this needs g++ on every node: install it, or leave out --compile"
COMPILER = "torch._dynamo", "torch._inductor"  # modules of the errors of torch.compile; importing them takes seconds
ENDED = 70  # exit status of a process whose device failed: EX_SOFTWARE


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, of a device or of the process, was too small; the process can go on."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


def is_fault(error: Exception) -> bool:
    """Whether a GPU failed: everything that this process asks of it from now on fails too."""
    return not is_out_of_memory(error) and FAULT.search(str(error)) is not None


def is_no_gpu(error: Exception | None) -> bool:
    """Whether an error of training workers, which NCCL meets first, says that their node has no usable GPU."""
    return NO_GPU.search(str(error)) is not None


def is_uncompiled(error: Exception) -> bool:
    """Whether torch.compile failed, as it would again."""
    return type(error).__module__.startswith(COMPILER)


def uncompiled(error: Exception) -> str:
    """The sentence for such an error."""
    return f"the network cannot be compiled: {one_line(error)}; {UNCOMPILED}"


@contextmanager
def ending_at_faults() -> Iterator[None]:
    """A block in which a fault of the device ends the process.

    Ray starts another process in its place, for which the device works again.
    """
    try:
        yield
    except RuntimeError as error:
        if is_fault(error):
            log.error("the GPU failed, so this process ends: %s", one_line(error))
            os._exit(ENDED)
        raise


def guarded(results: Iterable[Result]) -> Iterator[Result]:
    """The same results; too little memory becomes an OutOfMemoryError, and a fault of the device ends the process."""
    try:
        with ending_at_faults():
            yield from results
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"a shard does not fit into memory: {one_line(error)}; {ADVICE}") from error
        raise
