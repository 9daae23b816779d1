"""Large scenes in pieces: every pixel in one piece, pieces neither small nor large, small images untouched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import png
from hypothesis import given
from hypothesis import strategies as st
from scene_sets import raster, write_scenes

from segray.archives import rasters
from segray.datasets import Sample, large, open_dataset, read
from segray.datasets.large import cut, is_measured, large_ones, pieces
from segray.grid import Window, windows

SMALL = Sample(key="a", image="a.tif", mask="a.png")


def spied(read: Callable, asked: list[Window | None]) -> Callable:
    """A reader of rasters that notes the windows that it is asked for."""

    def noted(source: object, window: Window | None, bands: tuple[int, ...]) -> object:
        asked.append(window)
        return read(source, window, bands)

    return noted


@given(height=st.integers(1, 40_000), width=st.integers(1, 40_000), reach=st.sampled_from([64, 512, 1024, 5000]))
def test_pieces_partition_an_image_and_hold_crops(height, width, reach):
    found = pieces(height, width, reach)
    side = max(2048, 2 * reach)
    assert sum(piece.pixels for piece in found) == height * width
    rows, cols = ({(p.row_off, p.row_off + p.height) for p in found}, {(p.col_off, p.col_off + p.width) for p in found})
    assert len(found) == len(rows) * len(cols)  # a grid, whose rows and columns are contiguous
    for cuts, size in ((sorted(rows), height), (sorted(cols), width)):
        assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
        assert cuts[-1][1] == size
        for start, end in cuts:
            assert end - start <= side + 256
            assert end - start >= min(size, side // 2 - 256)  # room for the largest crop


def test_only_what_is_large_and_read_by_window_is_cut(monkeypatch):
    monkeypatch.setattr(large, "LARGE_PIXELS", 100)
    sizes = {0: (10, 10), 1: (10, 11)}
    samples = [
        SMALL,
        Sample(key="b", image="b.tif", mask="b.png"),
        Sample(key="c", image="c.jpg", mask="c.png", size=(50, 50)),
        Sample(key="d", image="xyz://17::/tiles", mask="d.parquet", size=(50, 50)),
    ]
    assert [is_measured(sample) for sample in samples] == [False, False, True, True]
    found = large_ones(samples, sizes)
    assert found == {1: (10, 11), 3: (50, 50)}
    units = list(cut(samples, found, lambda height, width: windows(height, width, 40)))
    assert [unit.key for unit in units] == ["a", "b", "c", "d", "d", "d", "d"]
    assert units[0] is samples[0] and units[2] is samples[2]
    assert units[1].window == Window(0, 0, 10, 11)
    assert units[6] == Sample(**{**vars(samples[3]), "window": Window(40, 40, 10, 10)})


@pytest.mark.parametrize("labels", ["masks/a.png", "masks/a.tif", "labels/a.tif"])
def test_pieces_are_read_by_window_and_are_the_image_again(tmp_path, monkeypatch, labels):
    rng = np.random.default_rng(0)
    pixels, mask = rng.integers(0, 255, (3, 300, 410), np.uint8), rng.integers(0, 3, (300, 410), np.uint8)
    pixels[:, 50:60] = 0  # no data
    content = png(mask) if labels.endswith("png") else raster(mask)
    image = raster(pixels, nodata=0, tiled=True, blockxsize=16, blockysize=16)
    dataset = open_dataset(write_scenes(str(tmp_path), {"train/images/a.tif": image, f"train/{labels}": content}))
    (sample,) = dataset.samples("train")
    whole, asked = read(dataset, sample), []
    monkeypatch.setattr(rasters, "_read", spied(rasters._read, asked))
    for unit in cut([sample], {0: (300, 410)}, lambda height, width: windows(height, width, 128)):
        part = read(dataset, unit)
        rows, cols = unit.window.rows, unit.window.cols
        assert np.array_equal(part.pixels, whole.pixels[:, rows, cols])
        assert np.array_equal(part.valid, whole.valid[rows, cols])
        assert np.array_equal(part.mask, whole.mask[rows, cols])
        assert asked.pop() == unit.window
    assert not whole.valid[50:60].any() and (whole.mask[50:60] == 255).all()
