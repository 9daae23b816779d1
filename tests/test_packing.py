"""Rows carry any value; arrays travel beside the pickle, whatever they are views of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from segray.packing import batch_of, pack, unpack


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


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_arrive_and_no_pickle_holds_them(name: str) -> None:
    value = ([Record(name=name, array=ARRAYS[name])], {"seconds": 1.5})
    row = pack(7, value)
    assert len(row["head"]) < 1000
    assert row["body"].nbytes == ARRAYS[name].nbytes
    for carried in (row, batch_of(row)):
        (record,), costs = unpack(carried)
        assert costs == {"seconds": 1.5}
        assert record.array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(record.array, ARRAYS[name])


def test_a_value_without_arrays_arrives() -> None:
    row = pack(3, [None, "text"])
    assert row["shard"] == 3
    assert unpack(batch_of(row)) == [None, "text"]
