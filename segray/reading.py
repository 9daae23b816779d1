"""Reading labelled images as a network's input spec requires.

No torch here, so that inspecting data starts in a second, not in ten.
"""

from __future__ import annotations

import numpy as np

from segray.archives.images import bands_for
from segray.archives.raster import Header
from segray.datasets import Dataset, Labelled, Sample, read
from segray.errors import MismatchError
from segray.inputs import InputSpec


def read_labelled(dataset: Dataset, sample: Sample, spec: InputSpec, *, explicit_bands: bool) -> Labelled:
    """A labelled image with the bands of the input spec, in its order; grey becomes three bands as viewers show it.

    ImageError, LabelError or MismatchError when the image, its mask or their types are not as they should be.
    """

    def choose(header: Header) -> tuple[int, ...]:
        if not spec.takes(np.dtype(header.dtype)):
            raise MismatchError(
                f"{sample.image} holds {header.dtype} values, but others of the labelled images {spec.expected}; "
                "convert one or the other, since a network knows one unit"
            )
        return bands_for(spec, header, explicit_bands=explicit_bands, source=sample.image)

    return read(dataset, sample, choose=choose)


def memory_of(labelled: Labelled) -> int:
    """Bytes that a labelled image takes."""
    return labelled.pixels.nbytes + labelled.valid.nbytes + labelled.mask.nbytes
