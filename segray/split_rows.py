"""A split of labelled data as rows, which an evaluation's actors take one at a time, and the memory they need."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from segray.datasets import Dataset, Sample
from segray.datasets.large import large_ones, size_of
from segray.inspection import BLOCK_PIXELS, Run, measured, spread

# A row, which is a block of Ray's, has at least IMAGES_A_ROW images. On a large split it has more, so that rows are few
# and fill the batches of a GPU, as long as each actor gets several.
IMAGES_A_ROW, MOST_IMAGES_A_ROW, ROW_PIXELS = 4, 256, 2**26
ROWS, ROWS_AN_ACTOR, BATCHES_A_ROW = 512, 4, 4
# Approximate memory of an actor beside its network: per pixel of an image held whole, with those read ahead; per pixel
# of a large scene (its mask, its truth, and strips of them in which contours are looked for); and for its blocks.
WHOLE_BYTES, SCENE_BYTES, BLOCK_BYTES = 90, 3, 90 * BLOCK_PIXELS
PICTURES = 64  # evenly spread, measured by their headers, to tell how large pictures are


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of labelled data. large: the numbers of the samples that are segmented block by block.

    pixels: mean area of the others. actor_bytes: `more_bytes` of `segmentation.actor_range`.
    """

    dataset: Dataset
    samples: Sequence[Sample]
    large: frozenset[int]
    pixels: int
    actor_bytes: int

    @classmethod
    def of(cls, dataset: Dataset, samples: Sequence[Sample], run: Run) -> Split:
        """`run` measures samples of unknown size, of pictures only some; ImageError when one cannot be read."""
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
        """(start, stop) of the samples of each row. actors: how many there are. batch: tiles in a batch of theirs."""
        images = images_a_row(len(self.samples), pixels=self.pixels, batch=batch, actors=actors)
        return list(ranges_of(len(self.samples), self.large, images))

    def row(self, start: int, stop: int) -> dict[str, object]:
        """What an actor takes at a time: pickled samples, the number of the first, and whether they are large."""
        return {"start": start, "samples": pickle.dumps(self.samples[start:stop]), "large": start in self.large}


def images_a_row(samples: int, *, pixels: int, batch: int, actors: int) -> int:
    """How many samples a row has. samples: of the split. pixels: mean area of one. Others: see `Split.ranges`."""
    wanted = max(samples // ROWS, BATCHES_A_ROW * batch)
    most = min(MOST_IMAGES_A_ROW, ROW_PIXELS // max(1, pixels), samples // (ROWS_AN_ACTOR * actors))
    return max(IMAGES_A_ROW, min(wanted, most))


def ranges_of(samples: int, large: Collection[int], images: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of ranges of up to `images` samples, which together are all; a large sample is alone in one."""
    start = 0
    for number in range(samples):
        ends = number + 1 - start == images or number in large or number + 1 in large or number + 1 == samples
        if ends:
            yield start, number + 1
            start = number + 1
