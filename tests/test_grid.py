"""The lattice: windows and blocks partition, tiles cover and are found, reflection is numpy's, extents hold sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.grid import BLENDS, Lattice, Window, blocks, read_extent, reflect, split, windows

sizes = st.integers(1, 300)
sides = st.integers(1, 60)


@st.composite
def lattices(draw: st.DrawFn) -> Lattice:
    """Any lattice of small tiles."""
    tile = draw(st.integers(1, 40))
    return Lattice(tile, draw(st.integers(0, tile // 2)), draw(st.sampled_from(BLENDS)))


def says(lattice: Lattice, tile: int, size: int) -> range:
    """The pixels of an axis that a tile contributes to, by definition."""
    near, far = lattice.margins
    start = tile * lattice.stride + (near if tile > 0 else 0)
    stop = tile * lattice.stride + lattice.tile - (far if tile < lattice.count(size) - 1 else 0)
    return range(start, min(stop, size))


def coverage(parts: list[Window], height: int, width: int) -> np.ndarray:
    """How many of the windows hold each pixel; a window that sticks out or is empty fails."""
    count = np.zeros((height, width), int)
    for part in parts:
        assert 0 <= part.row_off < part.row_off + part.height <= height
        assert 0 <= part.col_off < part.col_off + part.width <= width
        count[part.rows, part.cols] += 1
    return count


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 70))
def test_windows_partition_in_scan_order(height: int, width: int, size: int) -> None:
    found = windows(height, width, size)
    assert (coverage(found, height, width) == 1).all()
    assert found == sorted(found)
    assert all(max(w.height, w.width) <= size for w in found)
    assert all(w.row_off % size == 0 and w.col_off % size == 0 for w in found)


@settings(deadline=None)
@given(height=sides, width=sides, lattice=lattices(), max_pixels=st.integers(1, 4000), size=st.integers(1, 70))
def test_blocks_partition_and_so_do_their_windows(
    height: int, width: int, lattice: Lattice, max_pixels: int, size: int
) -> None:
    found = blocks(height, width, lattice, max_pixels)
    assert (coverage(found, height, width) == 1).all()
    assert (coverage([w for block in found for w in split(block, size)], height, width) == 1).all()
    assert found == sorted(found)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2), st.tuples(*[st.integers(0, 9)] * 2))
def test_an_intersection_has_the_pixels_of_both(first: tuple[int, ...], corner: tuple[int, int]) -> None:
    a, b = Window(*first), Window(*corner, 5, 7)
    marked = np.zeros((20, 20), int)
    marked[a.rows, a.cols] += 1
    marked[b.rows, b.cols] += 1
    if (marked == 2).any():
        both = a.intersection(b)
        assert both.pixels == (marked == 2).sum()
        assert (marked[both.rows, both.cols] == 2).all()


def tiles_of(parts: list[Window], height: int, width: int, lattice: Lattice) -> list[int]:
    """How many tiles each part computes."""
    return [
        len(lattice.touching(p.row_off, p.row_off + p.height, height))
        * len(lattice.touching(p.col_off, p.col_off + p.width, width))
        for p in parts
    ]


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("height", "width", "most"), [(10000, 10000, 32e6), (3000, 50000, 20e6), (60000, 60000, 64e6)])
def test_blocks_are_equal_and_few_tiles_lie_in_two(height: int, width: int, most: float, blend: str) -> None:
    lattice = Lattice(512, 64, blend)
    found = blocks(height, width, lattice, int(most))
    assert max(block.pixels for block in found) < 1.2 * most
    tiles = tiles_of(found, height, width, lattice)
    assert min(tiles) > 0.75 * max(tiles)
    once = lattice.count(height) * lattice.count(width)
    assert sum(tiles) == once if blend == "crop" else sum(tiles) < 1.13 * once


@pytest.mark.parametrize(("height", "width"), [(4, 200_000), (200_000, 1), (511, 30_000)])
def test_blocks_of_thin_images_have_no_more_tiles_than_those_of_others(height: int, width: int) -> None:
    lattice, most = Lattice(512, 64), 4_000_000
    parts = blocks(height, width, lattice, most)
    assert max(tiles_of(parts, height, width, lattice)) * 512**2 < 1.5 * most


def test_a_cropped_lattice_computes_each_tile_once_whatever_the_blocks() -> None:
    for overlap in (0, 1, 8, 15):
        lattice = Lattice(32, overlap, "crop")
        for most in (1, 900, 5000, 10**9):
            found = blocks(203, 157, lattice, most)
            assert sum(tiles_of(found, 203, 157, lattice)) == lattice.count(203) * lattice.count(157)


@settings(deadline=None)
@given(size=sizes, lattice=lattices())
def test_tiles_cover_every_pixel_and_the_last_is_needed(size: int, lattice: Lattice) -> None:
    count = lattice.count(size)
    covered = np.zeros((count - 1) * lattice.stride + lattice.tile, int)
    for i in range(count):
        covered[i * lattice.stride : i * lattice.stride + lattice.tile] += 1
    assert len(covered) >= size
    assert covered.min() >= 1
    assert covered.max() <= 2
    assert count == 1 or len(covered) - lattice.stride < size


@settings(deadline=None)
@given(data=st.data(), size=sizes, lattice=lattices())
def test_touching_is_brute_force(data: st.DataObject, size: int, lattice: Lattice) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    spans = [says(lattice, i, size) for i in range(lattice.count(size))]
    expected = [i for i, span in enumerate(spans) if span.start < stop and span.stop > start]
    assert list(lattice.touching(start, stop, size)) == expected


@settings(deadline=None)
@given(size=st.integers(2, 50), before=st.integers(0, 200), after=st.integers(0, 200))
def test_reflect_is_numpys(size: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(size), (before, after), mode="reflect")
    found = reflect(-before, size + after, size)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)


def test_reflect_repeats_a_single_pixel() -> None:
    assert reflect(-3, 5, 1).tolist() == [0] * 8


@settings(deadline=None)
@given(data=st.data(), height=sides, width=sides, lattice=lattices())
def test_read_extent_is_the_least_that_holds_all_sources(
    data: st.DataObject, height: int, width: int, lattice: Lattice
) -> None:
    block = data.draw(st.sampled_from(windows(height, width, data.draw(st.integers(1, 70)))))
    extent = read_extent(block, height=height, width=width, lattice=lattice)
    for axis, (start, length, size) in enumerate(
        [(block.row_off, block.height, height), (block.col_off, block.width, width)]
    ):
        offsets = [i * lattice.stride for i in lattice.touching(start, start + length, size)]
        sources = np.concatenate([reflect(offset, offset + lattice.tile, size) for offset in offsets])
        part = (extent.rows, extent.cols)[axis]
        assert (part.start, part.stop) == (sources.min(), sources.max() + 1)
        assert 0 <= part.start <= start < start + length <= part.stop <= size


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 70), lattice=lattices())
def test_within_finds_a_window_in_its_block(height: int, width: int, size: int, lattice: Lattice) -> None:
    image = np.arange(height * width).reshape(height, width)
    block = blocks(height, width, lattice, 4 * size**2)[-1]
    for window in split(block, size):
        expected = image[window.rows, window.cols]
        assert np.array_equal(image[block.rows, block.cols][window.within(block)], expected)
        assert expected.size == window.pixels


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (-4, 0), (8, -1), (8, 5), (9, 5), (1, 1)])
def test_impossible_lattices_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Lattice(tile, overlap)


def test_unknown_blends_are_refused() -> None:
    with pytest.raises(ValueError, match="taper or crop, not 'max'"):
        Lattice(8, 2, "max")
