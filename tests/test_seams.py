"""Where tiles meet and whether they agree, against a count of tiles pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segray.grid import Lattice
from segray.masks import IGNORE
from segray.rows import spread
from segray.seams import AGREE, ALONE, DISAGREE, meet, place


@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 2), (8, 4), (6, 3)])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_row_notes_where_its_tiles_meet_however_they_come(tile: int, overlap: int, batch: int) -> None:
    lattice, count = Lattice(tile, overlap, "crop"), 5
    tiles = np.random.default_rng(tile + overlap).integers(0, 3, (count, tile, tile)).astype(np.uint8)
    width = (count - 1) * lattice.stride + tile
    label, seam = (
        torch.full((tile, width), IGNORE, dtype=torch.uint8),
        torch.full((tile, width), ALONE, dtype=torch.uint8),
    )
    for first in range(0, count, batch):
        part = torch.from_numpy(tiles[first : first + batch])
        for odd in range(min(2, len(part))):
            some = part[odd::2].transpose(0, 1)
            place(*(spread(row, first + odd, some.shape[1], lattice) for row in (label, seam)), some, overlap)
    for row in range(tile):
        for col in range(width):
            seen = [
                tiles[number, row, col - number * lattice.stride]
                for number in range(count)
                if 0 <= col - number * lattice.stride < tile
            ]
            kind = ALONE if len(seen) == 1 else AGREE if len(set(seen)) == 1 else DISAGREE
            assert (int(label[row, col]), int(seam[row, col])) == (min(seen), kind)


def test_what_was_noted_of_further_tiles_goes_on() -> None:
    label, seam = torch.tensor([1, 1, 1, IGNORE], dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    other, noted = (
        torch.tensor([1, 2, 1, 2], dtype=torch.uint8),
        torch.tensor([0, 0, DISAGREE, AGREE], dtype=torch.uint8),
    )
    meet(label, seam, other, noted)
    assert seam.tolist() == [AGREE, DISAGREE, DISAGREE, AGREE]
    assert label.tolist() == [1, 1, 1, 2]
