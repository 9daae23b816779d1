"""Large scenes in pieces, as training reads them and validation segments them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from segray.archives.images import is_picture, read_header
from segray.datasets.sample import Sample
from segray.grid import Window, between

LARGE_PIXELS = 2**23  # a larger image is read in pieces, if it can be read by window
PIECE_SIDE = 2048  # pixels, of a piece to train on
CROPS_A_SIDE = 2  # the limit on a piece's side is at least this many of the largest crops: they need room to move
ALIGNED = 256  # pixels: pieces mostly end where the blocks end in which rasters are stored
Size = tuple[int, int]


def is_measured(sample: Sample) -> bool:
    """Whether the size need not be read from the image's header: it is known, or the image is a picture, read whole."""
    return sample.size is not None or is_picture(sample.image)


def size_of(sample: Sample) -> Size:
    """(height, width) from the header of an image; ImageError when it cannot be read."""
    header = read_header(sample.image, part=sample.part)
    return header.height, header.width


def large_ones(samples: Sequence[Sample], sizes: Mapping[int, Size]) -> dict[int, Size]:
    """Position in `samples` -> size, of those to be cut. sizes: the measured ones, by position."""
    windowed = ((number, sample) for number, sample in enumerate(samples) if not is_picture(sample.image))
    known = {number: sample.size for number, sample in windowed if sample.size}
    return {number: size for number, size in {**known, **sizes}.items() if size[0] * size[1] > LARGE_PIXELS}


def cut(
    samples: Sequence[Sample], large: Mapping[int, Size], windows: Callable[[int, int], Sequence[Window]]
) -> Iterator[Sample]:
    """The samples in their order, each large one as its windows. windows: gives those of a height and a width."""
    for number, sample in enumerate(samples):
        if number in large:
            yield from (replace(sample, size=large[number], window=window) for window in windows(*large[number]))
        else:
            yield sample


def pieces(height: int, width: int, reach: int) -> list[Window]:
    """The windows of an image from which crops are cut: of about equal size, in scan order.

    reach: side of the area that the largest crop shows, in pixels of the image.
    """
    side = max(PIECE_SIDE, CROPS_A_SIDE * reach)
    return between(_cuts(height, side), _cuts(width, side))


def _cuts(size: int, side: int) -> list[int]:
    """Where an axis is cut into the fewest parts of at most about `side` pixels."""
    parts = -(-size // side)
    return [0, *(round(part * size / parts / ALIGNED) * ALIGNED for part in range(1, parts)), size]
