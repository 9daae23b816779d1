"""What an evaluation needs of pixels besides their class: the confidence of each, and the logits of some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from segray.calibration import chosen
from segray.grid import Window
from segray.regions import Sampled

if TYPE_CHECKING:
    from segray.rows import TileAxis


class Details:
    """The details of one block, kept on its device until they are asked for."""

    def __init__(self, block: Window, row_axis: TileAxis, col_axis: TileAxis) -> None:
        self.block, self.row_axis, self.col_axis = block, row_axis, col_axis
        # torch can do little with uint16, so the same bits are kept as int16
        self.steps = torch.zeros((block.height, block.width), dtype=torch.int16, device=row_axis.device)
        self.sampled: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = []

    def put(self, rows: slice, steps_HW: torch.Tensor) -> None:
        """Store the confidences of rows of the block, float32 whole numbers of their unit."""
        self.steps[rows] = steps_HW.int().short()

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

    def of(self, window: Window) -> dict[str, object]:
        """The fields `confidences` and `sampled` of a window's WindowMask."""
        rows, cols = window.within(self.block)
        confidences = self.steps[rows, cols].cpu().numpy().view(np.uint16)
        return {"confidences": confidences, "sampled": self._sampled(window)}

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


def _common(own: range, start: int, length: int) -> range:
    first = max(own.start, start)
    return range(first, max(first, min(own.stop, start + length)))
