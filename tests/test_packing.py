"""Rows carry any value; arrays travel outside the pickle, even views of larger ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from segray.packing import pack, unpack


@dataclass(frozen=True)
class Record:
    name: str
    array: np.ndarray


LARGE = np.random.default_rng(0).integers(0, 99, (3, 400, 500), np.uint8)
ARRAYS = {
    "whole": LARGE,
    "window": LARGE[:, 100:200, 50:300],
    "plane of a window": LARGE[1, 100:200, 50:300],
    "bands last": LARGE.transpose(1, 2, 0),
    "turned": LARGE[0].T,
    "mirrored": LARGE[..., ::-1],
    "one value everywhere": np.broadcast_to(np.float32(3), (70, 80)),
    "booleans": LARGE[0, ::2] > 50,
    "read-only": np.frombuffer(b"some bytes" * 100, np.uint8),
    "empty": np.zeros((0, 5)),
}


def carried(array: np.ndarray) -> tuple[np.ndarray, dict]:
    """The array as it arrives in a value, and the batch that carried it."""
    batch = pack(7, ([Record(name="a name", array=array)], {"seconds": 1.5}))
    assert batch["shard"].tolist() == [7]
    assert len(batch["head"][0]) < 1000
    (record,), costs = unpack(batch)
    assert costs == {"seconds": 1.5}
    assert record.array.dtype == array.dtype
    np.testing.assert_array_equal(record.array, array)
    return record.array, batch


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_arrive_and_no_pickle_holds_them(name: str) -> None:
    _, batch = carried(ARRAYS[name])
    assert batch["body"].nbytes == ARRAYS[name].nbytes


def test_an_only_array_is_not_copied() -> None:
    array, batch = carried(LARGE)
    assert np.shares_memory(batch["body"], LARGE)
    assert np.shares_memory(array, LARGE)


def test_several_arrays_arrive_in_one_body() -> None:
    arrays = [LARGE[0], np.ones((4, 4), bool), np.arange(5.0), LARGE[:, ::7]]
    for array, arrived in zip(arrays, unpack(pack(1, arrays)), strict=True):
        np.testing.assert_array_equal(arrived, array)


def test_a_value_without_arrays_arrives() -> None:
    batch = pack(3, [None, "text"])
    assert batch["shard"].tolist() == [3]
    assert unpack(batch) == [None, "text"]
