"""The records that labelled data consists of, and what every layout offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from segray.grid import Window
from segray.masks import Classes


@dataclass(frozen=True, kw_only=True, order=True)
class Sample:
    """A labelled image, or a window of it: its key, unique within a split, and the URIs of image and mask.

    part: where the image lies in the file that holds it (see `storage.File`). tag: changes with the content of image or
    mask, for layouts that cache what they read of them. size: (height, width) of the whole image, if known. window:
    the pixels that are meant, None for all of them; with a window the size is always known.
    """

    key: str
    image: str
    mask: str
    part: str = ""
    tag: str = ""
    size: tuple[int, int] | None = None
    window: Window | None = None


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What training reads: pixels (C, H, W) of the source's type, valid (H, W) bool, mask (H, W) uint8.

    The mask holds class ids, and 255 where there is no label or the image has no data.
    """

    pixels: np.ndarray
    valid: np.ndarray
    mask: np.ndarray


class Dataset(Protocol):
    """Labelled data in one layout. nadir: True when seen from above, so that any rotation of an image is as likely."""

    uri: str
    classes: Classes
    nadir: bool

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, sorted by key; SegrayError when there are none or a file lacks its partner."""

    def read_mask(self, sample: Sample) -> np.ndarray:
        """The (H, W) uint8 mask of the sample's window with 255 = ignore; LabelError on an unknown id or colour."""
