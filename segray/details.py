"""What is asked of pixels besides their class: the confidence of each, and by an evaluation the logits of some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from segray.calibration import chosen
from segray.grid import Window
from segray.regions import Sampled

if TYPE_CHECKING:
    from segray.rows import TileAxis


class Details:
    """The details of one block. steps: the confidences of its windows, on the host once the canvas has put them there.

    torch can do little with uint16, so the same bits travel as int16.
    """

    def __init__(self, block: Window, row_axis: TileAxis, col_axis: TileAxis) -> None:
        self.block, self.row_axis, self.col_axis = block, row_axis, col_axis
        self.steps: list[torch.Tensor] = []
        self._of_block: torch.Tensor | None = None  # on its device
        self.sampled: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = []

    def put(self, rows: slice, steps_HW: torch.Tensor) -> None:
        """Store the confidences of rows of the block, float32 whole numbers of their unit."""
        self._whole()[rows] = as_bits(steps_HW)

    def of_windows(self, windows: Sequence[Window]) -> torch.Tensor:
        """The confidences of windows, one after the other, on the device; those of the block are let go of."""
        whole, self._of_block = self._whole(), None
        return torch.cat([whole[window.within(self.block)].flatten() for window in windows])

    def sample(self, row: int, col: int, logits_KPP: torch.Tensor) -> None:
        """Store the logits of a tile at those of its own pixels that calibration uses."""
        block, stride = self.block, self.row_axis.lattice.stride
        rows = _common(self.row_axis.own(row), block.row_off, block.height)
        cols = _common(self.col_axis.own(col), block.col_off, block.width)
        down, across = np.nonzero(chosen(rows, cols))
        down, across = down + rows.start, across + cols.start
        place = (down - row * stride) * logits_KPP.shape[-1] + across - col * stride
        logits = logits_KPP.flatten(1)[:, torch.from_numpy(place).to(logits_KPP.device)]
        self.sampled.append((down, across, logits))

    def of(self, number: int, window: Window) -> dict[str, object]:
        """The fields `confidences` and `sampled` of a window's WindowMask. number: of the window in the block."""
        return {"confidences": self.steps[number].numpy().view(np.uint16), "sampled": self._sampled(window)}

    def _whole(self) -> torch.Tensor:
        if self._of_block is None:
            size = self.block.height, self.block.width
            self._of_block = torch.zeros(size, dtype=torch.int16, device=self.row_axis.device)
        return self._of_block

    def _sampled(self, window: Window) -> Sampled | None:
        """The sampled logits of a window in scan order, so that nothing depends on the order of the tiles."""
        if not self.sampled:
            return None
        down, across, logits = zip(*self.sampled)
        down, across, logits = np.concatenate(down), np.concatenate(across), torch.cat(logits, dim=1).cpu().numpy()
        order = np.lexsort((across, down))
        inside = (down >= window.row_off) & (down < window.row_off + window.height)
        inside &= (across >= window.col_off) & (across < window.col_off + window.width)
        order = order[inside[order]]
        return Sampled(rows=down[order], cols=across[order], logits=logits[:, order].T)


def as_bits(steps: torch.Tensor) -> torch.Tensor:
    """Confidences, float32 whole numbers of their unit, as int16 with the bits of uint16."""
    return steps.int().short()


def _common(own: range, start: int, length: int) -> range:
    first = max(own.start, start)
    return range(first, max(first, min(own.stop, start + length)))
