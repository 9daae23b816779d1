"""Where tiles overlap, and whether they agree there; kept beside the labels, for one row of tiles at a time."""

from __future__ import annotations

import torch

from segray.masks import IGNORE

ALONE, AGREE, DISAGREE = 0, 1, 2  # of a pixel: seen by one tile; by several that agree; by several that do not


def place(label: torch.Tensor, seam: torch.Tensor, tiles: torch.Tensor, overlap: int) -> None:
    """Write the labels of tiles, (P, n, P), to their places in a row; only their edges can meet other tiles of it."""
    width = tiles.shape[-1]
    label[..., overlap : width - overlap] = tiles[..., overlap : width - overlap]
    if overlap:  # both edges at once, to launch fewer steps on a GPU
        meet(*(array.unfold(-1, overlap, width - overlap) for array in (label, seam, tiles)))


def meet(label: torch.Tensor, seam: torch.Tensor, other: torch.Tensor, other_seam: torch.Tensor | None = None) -> None:
    """Add the labels of further tiles and note, in place, where they overlap others and whether they agree.

    All are uint8 and of one shape; labels are class ids, 255 where there is no tile yet. other_seam: the seam of the
    further tiles among themselves. Where labels differ, the lower one is kept: it is compared with later ones, but the
    pixel already counts as disputed.
    """
    both = torch.maximum(label, other) != IGNORE  # IGNORE is the largest uint8
    found = both.view(torch.uint8) + (both & (label != other)).view(torch.uint8)
    for noted in (found,) if other_seam is None else (found, other_seam):
        torch.maximum(seam, noted, out=seam)
    torch.minimum(label, other, out=label)
