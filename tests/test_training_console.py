"""What users see of a training: a line per epoch, or a bar."""

from __future__ import annotations

import logging

import pytest

from segray.training_console import Console, epoch_line

ROW = {
    "epoch": 2, "step": 8, "loss": 0.51234, "val_miou": 0.625, "classes_in_mean": 3, "seconds": 4.0,
    "samples_per_s": 12.0, "data_wait_share": 0.03,
}  # fmt: skip


def show(console: Console) -> None:
    console.show({"epoch": 1, "step": 6, "resumed": True})
    console.show({"epoch": 3, "step": 10, "loss": 0.6})
    console.show(ROW)
    console.show(ROW)  # sent again after a restart
    console.close()


def test_a_line_tells_the_epoch() -> None:
    line = epoch_line(ROW, 5)
    assert line.startswith("epoch 2/5: loss 0.5123, validation mIoU 62.5% over 3 classes, 4.0 s, 12.0 crops/s")
    assert "validation mIoU none" in epoch_line({**ROW, "val_miou": None}, 5)


def test_lines_without_a_terminal(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="segray"):
        show(Console(epochs=5, steps_per_epoch=4))
    assert caplog.messages == ["continuing after epoch 1/5 and 2 steps of the next", epoch_line(ROW, 5)]
    assert "step" not in capsys.readouterr().out


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture) -> None:
    show(Console(epochs=5, steps_per_epoch=4, bar=True))
    out = capsys.readouterr().out
    last = out.strip().split("\r")[-1]
    assert "10/20" in last and "mIoU=62.5%" in last  # the row, of step 8, does not move the bar back
