"""Test-time augmentation: the ways in which a tile is shown to the network, whose probabilities are averaged."""

from __future__ import annotations

from itertools import product

# (quarter turns, whether mirrored left to right then) of each view. Seen from above a tile has eight: the group D4.
VIEWS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flip": ((0, False), (0, True)),
    "d4": tuple(product(range(4), (False, True))),
}
