"""Numbers of a training by name, and the event files in which TensorBoard finds them."""

from __future__ import annotations

import math
import struct

from tensorboardX.proto.event_pb2 import Event

from segray.scalars import event_file, scalars

ROW = {
    "epoch": 3, "step": 96, "loss": 0.5, "lr": math.inf, "val_miou": None, "val_iou": {"road": 0.25, "sea": None},
    "stage_seconds": {"steps": 2.0}, "seconds": 2.5,
}  # fmt: skip


def events(data: bytes) -> list[Event]:
    """The records of an event file: each a length, its checksum, the event, and the event's checksum."""
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    return found


def test_what_is_missing_or_no_number_is_left_out() -> None:
    assert scalars(ROW) == {"epoch": 3, "loss": 0.5, "val_iou/road": 0.25, "time/steps": 2.0, "seconds": 2.5}
    assert scalars({"epoch": 3, "step": 80, "loss": 0.75}) == {"step": 80, "step_loss": 0.75}


def test_an_event_file_holds_an_epoch_by_step() -> None:
    version, *found = events(event_file(ROW, [(80, 0.75, 1000.0), (96, 0.25, 1001.5)]))
    assert version.file_version == "brain.Event:2"
    values = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert values[:2] == [(80, "step_loss", 0.75), (96, "step_loss", 0.25)]
    assert {tag: value for step, tag, value in values[2:] if step == 96} == scalars(ROW)
    assert [event.wall_time for event in found][:3] == [1000.0, 1001.5, 1001.5]
