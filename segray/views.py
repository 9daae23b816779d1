"""Test-time augmentation: the views of a tile that the network is shown, whose probabilities are averaged."""

from __future__ import annotations

from itertools import product

# (quarter turns, whether then mirrored left to right) of each view. A tile seen from above has eight: the group D4.
VIEWS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flip": ((0, False), (0, True)),
    "d4": tuple(product(range(4), (False, True))),
}
