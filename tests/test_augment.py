"""Joint augmentation: ids never invented, fill never class 0, image and mask aligned, every draw from the generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from segray.augment import Augment, _resize, crop_sample

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def blobs(height: int, width: int, dtype: str = "uint8", cell: int = 16) -> Sample:
    """A sample whose pixels are 20 + 10 * id, in blocks of `cell` pixels, all valid."""
    rows, cols = np.indices((height, width)) // cell
    mask = ((rows * 3 + cols) % 7).astype(np.uint8)
    pixels = np.stack([mask * 10 + 20] * 2).astype(dtype)
    return pixels, np.ones(mask.shape, bool), mask


def crop(sample: Sample, augment: Augment, seed: int = 0) -> Sample:
    return crop_sample(*sample, augment=augment, rng=np.random.default_rng(seed))


ZOOM = {"none": (1, 1), "auto": (0.5, 2)}


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    dtype = draw(st.sampled_from(["uint8", "uint16", ">u2", "int16", "float32", "float64", "uint32"]))
    return blobs(draw(st.integers(1, 70)), draw(st.integers(1, 70)), dtype)


@settings(deadline=None)
@given(sample=samples(), size=st.integers(1, 50), seed=st.integers(0, 999), name=st.sampled_from(["none", "auto"]))
def test_shapes_types_and_fill(sample: Sample, size: int, seed: int, name: str) -> None:
    pixels, valid, mask = crop(sample, Augment.named(name, crop=size, scale_range=ZOOM[name], nadir=True), seed)
    assert (pixels.shape, valid.shape, mask.shape) == ((2, size, size), (size, size), (size, size))
    assert (pixels.dtype, valid.dtype, mask.dtype) == (sample[0].dtype, bool, np.uint8)
    assert valid.all()  # beyond the image lies its reflection
    assert set(np.unique(mask)) <= {*np.unique(sample[2]), 255}
    assert (mask != 255).any() or name == "auto"  # a single pixel, reduced, may vanish
    assert (pixels >= 20 - 1e-3).all(), "something has leaked into the image"


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_image_is_its_reflection_without_a_label(seed: int) -> None:
    sample = blobs(20, 30, cell=1)
    pixels, valid, mask = crop(sample, Augment.named("none", crop=70, scale_range=(1, 1), nadir=True), seed)
    rows, cols = (np.flatnonzero((mask != 255).any(axis=axis)) for axis in (1, 0))
    assert (len(rows), len(cols)) == (20, 30)
    assert np.array_equal(mask[np.ix_(rows, cols)], sample[2])
    assert (mask != 255).sum() == 20 * 30
    width = ((rows[0], 69 - rows[-1]), (cols[0], 69 - cols[-1]))
    assert np.array_equal(pixels, np.pad(sample[0], ((0, 0), *width), mode="reflect"))
    assert valid.all()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_image_and_mask_stay_aligned(seed: int, dtype: str) -> None:
    pixels, valid, mask = crop(blobs(150, 170, dtype), Augment(crop=96), seed)
    expected = mask * 10.0 + 20
    inner = np.zeros(mask.shape, bool)  # pixels whose 7 x 7 neighbourhood is of one class: no edge is averaged there
    around = np.lib.stride_tricks.sliding_window_view(mask, (7, 7))
    inner[3:-3, 3:-3] = around.min(axis=(2, 3)) == around.max(axis=(2, 3))
    inner &= mask != 255
    assert inner.sum() > 200
    assert np.abs(pixels[:, inner] - expected[inner]).max() < 1e-3


@pytest.mark.parametrize("scale", [1 / 3, 3.0])
def test_scaling_is_centred(scale: float) -> None:
    ramp = np.broadcast_to(np.arange(200.0, dtype=np.float32), (1, 200, 200))
    sample = (ramp, np.ones((200, 200), bool), ramp[0].astype(np.uint8))
    pixels, _, mask = crop(sample, Augment(crop=60, scale_range=(scale, scale), mirror=False, turn=False))
    inside = np.s_[:, 4:-4]
    error = pixels[0][inside] - mask[inside]
    assert np.abs(np.diff(pixels[0][inside], axis=1) - 1 / scale).max() < 1e-3
    assert np.abs(error).max() < 0.34  # a mask shifted by half a pixel is 0.5 off or more


def test_the_zoom_follows_the_scale_range() -> None:
    sides = []
    for seed in range(40):
        *_, mask = crop(blobs(400, 400, cell=1000), Augment(crop=500), seed)
        sides.append(np.sqrt((mask != 255).sum()) / 400)
    assert 0.5 <= min(sides) < 0.65
    assert max(sides) == pytest.approx(500 / 400, abs=0.01)  # enlarged beyond the crop


def corner_image() -> Sample:
    pixels = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    return pixels, np.ones((3, 3), bool), pixels[0]


@pytest.mark.parametrize(
    ("name", "nadir", "orientations"),
    [("auto", True, 8), ("auto", False, 2), ("nadir", False, 8), ("street", True, 2), ("none", True, 1)],
)
def test_orientations(name: str, nadir: bool, orientations: int) -> None:
    still = Augment.named(name, crop=3, scale_range=(1, 1), nadir=nadir)
    seen = set()
    for seed in range(100):
        pixels, _, mask = crop(corner_image(), still, seed)
        assert np.array_equal(pixels[0], mask)
        seen.add(mask.tobytes())
        if orientations <= 2:
            assert list(mask[:, 1]) == [1, 4, 7], "a street scene keeps its sky up"
    assert len(seen) == orientations


@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), size=st.integers(1, 50), seed=st.integers(0, 999))
def test_a_crop_holds_the_pixel_that_it_must(shape: tuple[int, int], size: int, seed: int) -> None:
    mask = np.zeros(shape, np.uint8)
    around = tuple(int(seed * k % n) for k, n in zip((7, 11), shape))
    mask[around] = 1
    sample = (mask[None], np.ones(shape, bool), mask)
    augment, rng = Augment.named("none", crop=size, scale_range=(1, 1), nadir=True), np.random.default_rng(seed)
    cut = crop_sample(*sample, augment=augment, rng=rng, around=around)[2]
    assert (cut == 1).sum() == 1
    assert (cut != 255).sum() == np.prod([min(size, n) for n in shape])  # no more of it lies outside than must


@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 60), st.integers(1, 60)), zoom=st.floats(0.1, 4), seed=st.integers(0, 999))
def test_a_crop_holds_the_pixel_that_it_must_however_it_is_scaled(shape: tuple, zoom: float, seed: int) -> None:
    mask = np.zeros(shape, np.uint8)
    around = tuple(int(seed * k % n) for k, n in zip((7, 11), shape))
    mask[around] = 1
    sample = (mask[None], np.ones(shape, bool), mask)
    augment = Augment(crop=9, scale_range=(zoom, zoom))
    pixels, _, cut = crop_sample(*sample, augment=augment, rng=np.random.default_rng(seed), around=around)
    assert 1 <= (cut == 1).sum() <= math.ceil(zoom + 1) ** 2
    if zoom >= 1:
        assert pixels[0][cut == 1].max() >= pixels.max() / 2  # the pixels came along with the label


@pytest.mark.parametrize("side", [3, 5, 7])
def test_a_pixel_that_an_enlarged_crop_must_hold_changes_no_other(side: int) -> None:
    mask = np.arange(side * side, dtype=np.uint8).reshape(side, side)
    augment = Augment(crop=8, scale_range=(8 / side, 8 / side))
    cuts = [
        crop_sample(mask[None], mask < 255, mask, augment=augment, rng=np.random.default_rng(1), around=around)[2]
        for around in (None, *np.ndindex(side, side))
    ]
    assert all(np.array_equal(cut, cuts[0]) for cut in cuts)


def test_a_pixel_that_a_crop_must_hold_may_be_anywhere_in_it() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[4, 5] = 1
    augment = Augment.named("none", crop=3, scale_range=(1, 1), nadir=True)
    found = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        cut = crop_sample(mask[None], mask < 9, mask, augment=augment, rng=rng, around=(4, 5))[2]
        found.add(tuple(np.argwhere(cut == 1)[0].tolist()))
    assert len(found) == 9


def test_none_is_a_plain_crop_and_reaches_every_place() -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    sample = (pixels, np.ones((5, 6), bool), pixels[0])
    corners = set()
    for seed in range(300):
        found, valid, mask = crop(sample, Augment.named("none", crop=3, scale_range=(1, 1), nadir=True), seed)
        row, col = divmod(int(mask[0, 0]), 6)
        assert np.array_equal(mask, pixels[0, row : row + 3, col : col + 3])
        assert np.array_equal(found[0], mask)
        assert valid.all()
        corners.add((row, col))
    assert len(corners) == 3 * 4


@pytest.mark.parametrize("nodata", [np.nan, -9999.0, 1e30])
@pytest.mark.parametrize("scale", [0.5, 0.8, 1.9])
def test_no_data_never_leaks_into_valid_pixels(nodata: float, scale: float) -> None:
    rng = np.random.default_rng(3)
    valid = rng.random((120, 120)) < 0.6
    pixels = np.where(valid, rng.uniform(5, 6, (1, 120, 120)), nodata).astype(np.float32)
    mask = np.where(valid, 1, 255).astype(np.uint8)
    found, kept, labels = crop((pixels, valid, mask), Augment(crop=50, scale_range=(scale, scale)))
    assert 0.5 < kept.mean() < 0.7
    assert np.array_equal(labels != 255, kept)
    assert (found[0][kept] >= 5 - 1e-3).all()
    assert (found[0][kept] <= 6 + 1e-3).all()


@settings(deadline=None)
@given(
    side=st.integers(2, 40),
    size=st.integers(2, 40),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32", "float64"]),
    box=st.tuples(*[st.integers(0, 40)] * 4),
    holes=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_resizing_is_one_weighted_mean_of_the_square(
    side: int, size: int, dtype: str, box: tuple, holes: float
) -> None:
    """To the bit: leaving out rows and columns of weight zero changes nothing."""
    rng = np.random.default_rng(side * 41 + size)
    pixels = (rng.random((3, side, side)) * 200).astype(dtype)
    valid = rng.random((side, side)) >= holes
    valid[: box[0]] = valid[side - box[1] :] = False
    valid[:, : box[2]] = valid[:, side - box[3] :] = False
    working = np.float64 if dtype == "float64" else np.float32
    weight, total = (
        functional.interpolate(
            torch.from_numpy(array.astype(working))[None], (size, size), mode="bilinear", antialias=True
        )
        for array in (valid[None], np.where(valid, pixels, 0))
    )
    expected = np.where(weight[0] > 0, total[0] / weight[0], 0).astype(working)
    if np.dtype(dtype).kind in "iu":
        expected = np.rint(expected)
    if not (valid.all() and dtype == "uint8"):
        assert np.array_equal(_resize(pixels, valid, size), expected.astype(dtype))


def test_the_seed_decides_and_the_sample_is_left_alone() -> None:
    sample = blobs(90, 80)
    for array in sample:
        array.flags.writeable = False  # as arrays in Ray's object store are
    first, again, other = (crop(sample, Augment(crop=48), seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[2], other[2])
    assert all(array.flags.writeable and array.flags.c_contiguous for array in first)


def test_a_crop_may_be_one_pixel_of_one() -> None:
    pixels = np.full((3, 1, 1), 9, np.uint8)
    sample = pixels, np.ones((1, 1), bool), np.full((1, 1), 2, np.uint8)
    for seed in range(20):
        cut = crop(sample, Augment(crop=1, scale_range=(0.5, 2.0)), seed)
        assert [array.shape for array in cut] == [(3, 1, 1), (1, 1), (1, 1)]
        assert (cut[0] == 9).all()


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="nadir, street or none, not 'strong'"):
        Augment.named("strong", crop=8, scale_range=(1, 1), nadir=True)
