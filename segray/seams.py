"""Where tiles meet, and whether they agree there: kept a row of tiles at a time, beside the labels."""

from __future__ import annotations

import torch

from segray.masks import IGNORE

ALONE, AGREE, DISAGREE = 0, 1, 2  # the tiles that see a pixel: one; several, of one mind; several, of more than one


def place(label: torch.Tensor, seam: torch.Tensor, tiles: torch.Tensor, overlap: int) -> None:
    """Write the labels of tiles, (P, n, P), to their places in a row; only their edges can meet other tiles of it."""
    width = tiles.shape[-1]
    label[..., overlap : width - overlap] = tiles[..., overlap : width - overlap]
    if overlap:  # both edges at once: each step is one that a GPU must be told
        meet(*(array.unfold(-1, overlap, width - overlap) for array in (label, seam, tiles)))


def meet(label: torch.Tensor, seam: torch.Tensor, other: torch.Tensor, other_seam: torch.Tensor | None = None) -> None:
    """Take in the labels of further tiles and note, in place, where they meet others and whether they agree.

    All are uint8 and of one shape; labels are class ids, 255 where there is no tile yet. other_seam: what was noted of
    the further tiles among themselves. Where labels differ the lower one goes on: it is compared with others, but the
    pixel counts as disputed already.
    """
    both = torch.maximum(label, other) != IGNORE  # which is the largest of all
    found = both.view(torch.uint8) + (both & (label != other)).view(torch.uint8)
    for noted in (found,) if other_seam is None else (found, other_seam):
        torch.maximum(seam, noted, out=seam)
    torch.minimum(label, other, out=label)
