"""Arrays of several types travel as one, and arrive as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segray.transfer import joined, parted, to_device

KINDS = ["uint8", "bool", "int16", "uint16", "uint32", "float32", "float64"]


def some(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(kind)


def test_tensors_of_any_type_and_layout_are_joined_and_parted() -> None:
    arrays = [some(kind, (3, 5, 7)) for kind in KINDS] + [some("uint8", (9, 8))[::2, 1:], some("float64", (1,))]
    tensors = to_device(arrays, torch.device("cpu"))
    whole = joined(tensors)
    assert whole.dtype == torch.uint8
    for found, tensor in zip(parted(whole, tensors), tensors, strict=True):
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_takes_arrays_where_they_are(kind: str) -> None:
    array = some(kind, (2, 3))
    (tensor,) = to_device([array], torch.device("cpu"))
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("together", [100, 2**20])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_them_as_they_are(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [some(kind, (3, 5, 7)) for kind in KINDS] + [some("uint8", (9, 8))[::2, 1:]]
    monkeypatch.setattr("segray.transfer.TOGETHER", together)
    for copies in (None, torch.cuda.Stream()):
        for found, array in zip(to_device(arrays, torch.device("cuda"), copies), arrays, strict=True):
            assert found.cpu().numpy().tobytes() == array.tobytes()
