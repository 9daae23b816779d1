"""Random crops of labelled images for training: pixels, validity and mask are cut, scaled and turned as one.

All arrays are numpy on the host and stay in the source type, so that little is copied to the device. Beyond the
image's edge a crop holds the reflected image, as in segmentation, with mask 255: seen, but not learnt from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from segray.grid import reflect
from segray.masks import IGNORE


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may happen to a sample. crop: side in pixels. scale_range: least and greatest zoom; above 1 enlarges.

    mirror: half of the samples are mirrored left to right. turn: random quarter turns (with mirror: all eight
    symmetries of the square), only for images taken straight down: in a street scene the sky is up.
    """

    crop: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    turn: bool = True

    @classmethod
    def named(cls, name: str, *, crop: int, scale_range: tuple[float, float], nadir: bool) -> Augment:
        """Random crops and scales only ("none"), mirrored too ("street"), turned too ("nadir"), or "auto".

        "auto" is "nadir" for data whose images are taken straight down, `nadir`, and "street" for others.
        """
        if name not in ("auto", "nadir", "street", "none"):
            raise ValueError(f"augment must be auto, nadir, street or none, not '{name}'")
        turn = nadir if name == "auto" else name == "nadir"
        return cls(crop=crop, scale_range=scale_range, mirror=name != "none", turn=turn)


def crop_sample(
    pixels_CHW: np.ndarray,
    valid_HW: np.ndarray,
    mask_HW: np.ndarray,
    *,
    augment: Augment,
    rng: np.random.Generator,
    around: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random (crop, crop) piece of a sample: pixels of the source type, valid bool, mask uint8.

    Every random number comes from `rng`. The piece is cut first and then scaled, so the rest is never touched. Mask
    and valid take the nearest source pixel; pixels are interpolated over valid source pixels only. around: (row,
    column) of a pixel that the piece must hold; its class wins where several pixels become one.
    """
    scale = math.exp(rng.uniform(*map(math.log, augment.scale_range)))  # halving is as likely as doubling
    side = max(1, round(augment.crop / scale))
    ranges = [(min(0, n - side), max(0, n - side)) for n in mask_HW.shape]
    if around is not None:
        ranges = [(max(low, at - side + 1), min(high, at)) for (low, high), at in zip(ranges, around)]
    offsets = [int(rng.integers(low, high, endpoint=True)) for low, high in ranges]
    pixels, valid, seen = (_cut(array, offsets, side=side) for array in (pixels_CHW, valid_HW, mask_HW))
    inside = tuple(slice(max(0, -off), n - off) for off, n in zip(offsets, mask_HW.shape))
    mask = np.full_like(seen, IGNORE)
    mask[inside] = seen[inside]
    if side != augment.crop:
        pixels = _resize(pixels, valid, augment.crop)
        valid, mask = _nearest(valid, augment.crop), _nearest(mask, augment.crop)
        if around is not None and side > augment.crop:  # enlarged, every source pixel is there
            mask[tuple((at - off) * augment.crop // side for at, off in zip(around, offsets))] = mask_HW[around]
    mirrored = augment.mirror and rng.random() < 0.5
    turns = int(rng.integers(4)) if augment.turn else 0
    return tuple(_orient(array, mirrored=mirrored, turns=turns) for array in (pixels, valid, mask))


def _cut(array: np.ndarray, offsets: list[int], *, side: int) -> np.ndarray:
    """The (..., side, side) square at (row, column) offsets of an (..., H, W) array, reflected beyond its edges."""
    for axis, off in zip((-2, -1), offsets):
        size = array.shape[axis]
        if off < 0 or off + side > size:
            array = array.take(reflect(off, off + side, size), axis)
        else:
            array = array[..., off : off + side, :] if axis == -2 else array[..., off : off + side]
    return array if array.flags.writeable else array.copy()  # torch warns about read-only arrays


def _nearest(array_HW: np.ndarray, size: int) -> np.ndarray:
    index = (2 * np.arange(size) + 1) * len(array_HW) // (2 * size)  # centres on centres, as _bilinear has them
    return array_HW.take(index, 0).take(index, 1)  # several times as fast as indexing both axes at once


def _resize(pixels_CHW: np.ndarray, valid_HW: np.ndarray, size: int) -> np.ndarray:
    """Pixels interpolated as sum(weight * pixel) / sum(weight) over valid pixels: no-data values and NaN never leak."""
    dtype = pixels_CHW.dtype
    if valid_HW.all() and dtype == np.uint8 and size > 1:  # torch fails on a size of 1
        return _bilinear(pixels_CHW, (size, size))  # torch has a several times faster kernel for bytes
    resized = np.zeros((len(pixels_CHW), size, size), np.result_type(dtype, np.float32))
    rows = np.flatnonzero(valid_HW.any(axis=1))
    if not len(rows):
        return resized.astype(dtype)
    # Across, then down, as torch itself does; but only the rows, and then the columns, that hold data: at the edge of a
    # scene's data they are few. float64 if float32 cannot hold every value.
    rows = slice(rows[0], rows[-1] + 1)
    values = np.zeros((len(pixels_CHW) + 1, rows.stop - rows.start, valid_HW.shape[1]), resized.dtype)
    np.copyto(values[:-1], pixels_CHW[:, rows], where=valid_HW[rows])
    values[-1] = valid_HW[rows]
    values = _bilinear(values, (values.shape[1], size))
    cols = np.flatnonzero(values[-1].any(axis=0))
    cols = slice(cols[0], cols[-1] + 1)
    # One column more: torch 2.15 mistakes the bands for columns in arrays one column wide.
    high = np.zeros((len(values), len(valid_HW), cols.stop - cols.start + 1), resized.dtype)
    high[:, rows, :-1] = values[..., cols]
    high = _bilinear(high, (size, high.shape[2]))[..., :-1]
    np.divide(high[:-1], high[-1], out=resized[..., cols], where=high[-1] > 0)
    return (np.rint(resized) if dtype.kind in "iu" else resized).astype(dtype)


def _bilinear(array_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    batch = torch.from_numpy(array_CHW)[None]
    return functional.interpolate(batch, size, mode="bilinear", antialias=True)[0].numpy()


def _orient(array: np.ndarray, *, mirrored: bool, turns: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(array[..., ::-1] if mirrored else array, turns, axes=(-2, -1)))
