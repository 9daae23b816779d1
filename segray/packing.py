"""Any value as a row of a Ray data set, its arrays as one block of bytes that Ray moves without pickling."""

from __future__ import annotations

import io
import pickle

import numpy as np


def pack(shard: int, value: object) -> dict:
    """A row that carries any value, its arrays as one block of bytes that Ray moves without pickling."""
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    body = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return {"shard": shard, "head": pickle.dumps((head.getvalue(), [len(part) for part in parts])), "body": body}


class _Pickler(pickle.Pickler):
    """One that leaves out views of larger arrays, too, as the masks of windows are: their pickles would hold them."""

    def reducer_override(self, value: object) -> object:
        if isinstance(value, np.ndarray) and not value.flags.forc:
            return np.ascontiguousarray(value).__reduce_ex__(5)
        return NotImplemented


def unpack(row: dict) -> object:
    """The value in a row of `pack`, or in a batch of one such row."""
    head, sizes = pickle.loads(_scalar(row["head"]))
    body = np.ascontiguousarray(row["body"]).reshape(-1)
    ends = np.cumsum([0, *sizes])
    return pickle.loads(head, buffers=[body[start:stop] for start, stop in zip(ends, ends[1:])])


def _scalar(value: object) -> bytes:
    return value[0] if isinstance(value, np.ndarray) else value


def batch_of(row: dict) -> dict[str, np.ndarray]:
    """A batch of one row."""
    return {
        name: value[None] if isinstance(value, np.ndarray) else np.array([value], object) for name, value in row.items()
    }
