"""A split of labelled data in the rows that actors of an evaluation take, and the memory that they need for it."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from segray.datasets import Dataset, Sample
from segray.datasets.large import large_ones, size_of
from segray.inspection import BLOCK_PIXELS, Run, measured, spread

# A row, which is a block of Ray's, has at least so many images. On a large split it has more, so that rows are few and
# fill the batches of a GPU, as long as each actor gets several.
IMAGES_A_ROW, MOST_IMAGES_A_ROW, ROW_PIXELS = 4, 256, 2**26
ROWS, ROWS_AN_ACTOR, BATCHES_A_ROW = 512, 4, 4
# Memory of an actor beside its network, about: for a pixel of an image that is held whole with those ahead of it, for a
# pixel of a large scene (its mask, its truth, and strips of them in which contours are looked for), and for its blocks.
WHOLE_BYTES, SCENE_BYTES, BLOCK_BYTES = 90, 3, 90 * BLOCK_PIXELS
PICTURES = 64  # evenly spread, whose headers say how large pictures are


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of labelled data. large: the numbers of the samples that are segmented block by block.

    pixels: of a mean one of the others. actor_bytes: see `segmentation.actor_range`.
    """

    dataset: Dataset
    samples: Sequence[Sample]
    large: frozenset[int]
    pixels: int
    actor_bytes: int

    @classmethod
    def of(cls, dataset: Dataset, samples: Sequence[Sample], run: Run) -> Split:
        """`run` measures the samples of unknown size, and of pictures some; ImageError when one cannot be read."""
        sizes = measured(samples, run)
        large = large_ones(samples, sizes)
        known = {**{number: sample.size for number, sample in enumerate(samples) if sample.size}, **sizes}
        pictures = spread([number for number in range(len(samples)) if number not in known], PICTURES)
        known |= zip(pictures, run(size_of, [samples[number] for number in pictures]))
        areas = {number: height * width for number, (height, width) in known.items()}
        whole = [area for number, area in areas.items() if number not in large]
        costs = [area * WHOLE_BYTES for area in whole]
        costs += [areas[number] * SCENE_BYTES + BLOCK_BYTES for number in large]
        return cls(
            dataset=dataset,
            samples=samples,
            large=frozenset(large),
            pixels=sum(whole) // max(1, len(whole)),
            actor_bytes=max(costs, default=0),
        )

    def ranges(self, *, batch: int, actors: int) -> list[tuple[int, int]]:
        """(start, stop) of the samples of each row, for so many actors of batches of so many tiles."""
        images = images_a_row(len(self.samples), pixels=self.pixels, batch=batch, actors=actors)
        return list(ranges_of(len(self.samples), self.large, images))

    def row(self, start: int, stop: int) -> dict[str, object]:
        """What an actor takes at a time: samples, pickled, the number of the first, and whether they are large."""
        return {"start": start, "samples": pickle.dumps(self.samples[start:stop]), "large": start in self.large}


def images_a_row(samples: int, *, pixels: int, batch: int, actors: int) -> int:
    """How many samples, of so many pixels, a row has; see `Split.ranges`."""
    wanted = max(samples // ROWS, BATCHES_A_ROW * batch)
    most = min(MOST_IMAGES_A_ROW, ROW_PIXELS // max(1, pixels), samples // (ROWS_AN_ACTOR * actors))
    return max(IMAGES_A_ROW, min(wanted, most))


def ranges_of(samples: int, large: Collection[int], images: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of so many consecutive samples each, or fewer, which together are all; a large one is alone."""
    start = 0
    for number in range(samples):
        ends = number + 1 - start == images or number in large or number + 1 in large or number + 1 == samples
        if ends:
            yield start, number + 1
            start = number + 1
