"""Any value as a one-row batch of a Ray data set, its arrays as one block of bytes that Ray moves without pickling."""

from __future__ import annotations

import io
import pickle

import numpy as np

Batch = dict[str, np.ndarray]


def batch_of(row: dict[str, object]) -> Batch:
    """A batch of one row; arrays, of any length, are not copied."""
    return {
        name: value[None] if isinstance(value, np.ndarray) else np.array([value], object) for name, value in row.items()
    }


def pack(shard: int, value: object) -> Batch:
    """A batch of {"shard", "head", "body"} that carries any value.

    Copies are costly where a shard is hundreds of megabytes: a single array is not copied, several are copied once.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers] or [np.zeros(0, np.uint8)]
    body = np.concatenate(parts) if len(parts) > 1 else parts[0]
    sizes = [buffer.raw().nbytes for buffer in buffers]
    return batch_of({"shard": shard, "head": pickle.dumps((head.getvalue(), sizes)), "body": body})


class _Pickler(pickle.Pickler):
    """One that keeps views of larger arrays, such as the masks of windows, out of the pickle too, as buffers."""

    def reducer_override(self, value: object) -> object:
        if isinstance(value, np.ndarray) and not value.flags.forc:
            return np.ascontiguousarray(value).__reduce_ex__(5)
        return NotImplemented


def unpack(batch: Batch) -> object:
    """The value in a batch that `pack` made."""
    head, sizes = pickle.loads(batch["head"][0])
    body = np.ascontiguousarray(batch["body"]).reshape(-1)
    ends = np.cumsum([0, *sizes])
    return pickle.loads(head, buffers=[body[start:stop] for start, stop in zip(ends, ends[1:])])
