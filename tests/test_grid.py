"""The lattice: windows and blocks partition, tiles cover and are found, reflection is numpy's, extents hold sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.grid import Window, blocks, check_lattice, read_extent, reflect, split, tile_count, touching, windows

sizes = st.integers(1, 300)
sides = st.integers(1, 60)


@st.composite
def lattices(draw: st.DrawFn) -> tuple[int, int]:
    """(tile, overlap) of a lattice that check_lattice accepts."""
    tile = draw(st.integers(1, 40))
    return tile, draw(st.integers(0, tile // 2))


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
@given(height=sides, width=sides, size=st.integers(1, 70), max_pixels=st.integers(1, 4000))
def test_blocks_partition_into_whole_windows(height: int, width: int, size: int, max_pixels: int) -> None:
    found = list(blocks(height, width, size, max_pixels))
    assert (coverage(found, height, width) == 1).all()
    assert all(block.pixels <= max(max_pixels, size**2) for block in found)
    assert sorted(w for block in found for w in split(block, size)) == windows(height, width, size)


def test_blocks_are_about_as_large_as_allowed() -> None:
    found = list(blocks(10000, 10000, 500, 4_000_000))
    assert {block.pixels for block in found} == {4_000_000}
    assert {(block.height, block.width) for block in found} == {(2000, 2000)}


@settings(deadline=None)
@given(size=sizes, lattice=lattices())
def test_tiles_cover_every_pixel_and_the_last_is_needed(size: int, lattice: tuple[int, int]) -> None:
    tile, overlap = lattice
    count, stride = tile_count(size, tile, overlap), tile - overlap
    covered = np.zeros((count - 1) * stride + tile, int)
    for i in range(count):
        covered[i * stride : i * stride + tile] += 1
    assert len(covered) >= size
    assert covered.min() >= 1
    assert covered.max() <= 2
    assert count == 1 or len(covered) - stride < size


@settings(deadline=None)
@given(data=st.data(), size=sizes, lattice=lattices())
def test_touching_is_brute_force(data: st.DataObject, size: int, lattice: tuple[int, int]) -> None:
    tile, overlap = lattice
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    spans = [(i * (tile - overlap), i * (tile - overlap) + tile) for i in range(tile_count(size, tile, overlap))]
    expected = [i for i, (first, end) in enumerate(spans) if first < stop and end > start]
    assert list(touching(start, stop, size=size, tile=tile, overlap=overlap)) == expected


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
    data: st.DataObject, height: int, width: int, lattice: tuple[int, int]
) -> None:
    tile, overlap = lattice
    block = data.draw(st.sampled_from(windows(height, width, data.draw(st.integers(1, 70)))))
    extent = read_extent(block, height=height, width=width, tile=tile, overlap=overlap)
    for axis, (start, length, size) in enumerate(
        [(block.row_off, block.height, height), (block.col_off, block.width, width)]
    ):
        tiles = touching(start, start + length, size=size, tile=tile, overlap=overlap)
        sources = np.concatenate([reflect(i * (tile - overlap), i * (tile - overlap) + tile, size) for i in tiles])
        part = (extent.rows, extent.cols)[axis]
        assert (part.start, part.stop) == (sources.min(), sources.max() + 1)
        assert 0 <= part.start <= start < start + length <= part.stop <= size


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 70))
def test_within_finds_a_window_in_its_block(height: int, width: int, size: int) -> None:
    image = np.arange(height * width).reshape(height, width)
    block = next(blocks(height, width, size, 4 * size**2))
    for window in split(block, size):
        expected = image[window.rows, window.cols]
        assert np.array_equal(image[block.rows, block.cols][window.within(block)], expected)
        assert expected.size == window.pixels


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (-4, 0), (8, -1), (8, 5), (9, 5), (1, 1)])
def test_impossible_lattices_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        check_lattice(tile, overlap)


@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (8, 4), (9, 4), (512, 64)])
def test_possible_lattices_are_accepted(tile: int, overlap: int) -> None:
    check_lattice(tile, overlap)
