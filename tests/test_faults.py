"""The errors of torch, cuDNN, cuBLAS and Triton when a device fails, and what a process makes of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segray.errors import OutOfMemoryError
from segray.faults import ENDED, guarded, is_fault, is_no_gpu, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "out_of_memory", "fault"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), True, False),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you"),
            True,
            False,
        ),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True, False),
        (MemoryError("Unable to allocate 3.00 GiB for an array"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"), False, True),
        (RuntimeError("CUDA error: unspecified launch failure"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(`"), False, True),
        (RuntimeError("CUDA driver error: invalid argument"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), False, True),
        (RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"), False, False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False, False),
    ],
)
def test_errors_are_told_apart(error: Exception, out_of_memory: bool, fault: bool) -> None:
    def failing():
        yield 1
        raise error

    assert (is_out_of_memory(error), is_fault(error)) == (out_of_memory, fault)
    if not fault:
        results = guarded(failing())
        assert next(results) == 1
        with pytest.raises(
            OutOfMemoryError if out_of_memory else RuntimeError,
            match="lower --batch_size" if out_of_memory else "size of|same dev",
        ):
            next(results)


def test_a_fault_ends_the_process_with_its_reason() -> None:
    code = "from segray.faults import guarded\ndef f():\n    yield 1\n    raise RuntimeError('CUDA error: x')\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}list(guarded(f()))"], capture_output=True, text=True, check=False
    )
    assert done.returncode == ENDED
    assert done.stderr == "the GPU failed, so this process ends: CUDA error: x\n"


def test_gpus_that_ray_counts_and_torch_cannot_use_are_told_from_faults() -> None:
    found = "Training failed due to controller error:\nRuntimeError: nccl2 requires at least one CUDA device"
    assert is_no_gpu(RuntimeError(found))
    assert not is_no_gpu(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_no_gpu(None)
