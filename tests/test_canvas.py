"""The canvas: the top class as argmax has it, tiles of a row in any grouping, and every type of pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from segray.canvas import Canvas, canvases, decide_singles
from segray.counts import compared_counts
from segray.grid import BLENDS, Lattice, Window, blocks, read_extent
from segray.masks import IGNORE
from segray.regions import Region, unless_all, whole_image
from segray.rows import top_class

CPU = torch.device("cpu")
K = 3
LATTICE = Lattice(16, 6)


@pytest.mark.parametrize("classes", [1, 2, 5, 255])
def test_the_top_class_is_the_first_of_the_largest(classes):
    values = torch.randint(0, 4, (classes, 30, 40), generator=torch.Generator().manual_seed(0)).float()
    value, label = top_class(values, dim=0)
    assert torch.equal(value, values.amax(0))
    assert torch.equal(label.long(), torch.from_numpy(values.numpy().argmax(0)))  # numpy takes the first of equals
    assert torch.equal(top_class(values[None], dim=1)[1][0], label)


def canvas_of(blend: str, overlap: int = 6) -> Canvas:
    pixels, valid = np.zeros((3, 60, 90), np.uint8), np.ones((60, 90), bool)
    return canvas_on(whole_image(pixels, valid), Lattice(16, overlap, blend))


def canvas_on(region: Region, lattice: Lattice = LATTICE, num_classes: int = K) -> Canvas:
    (canvas,) = canvases([region], lattice, num_classes=num_classes, device=CPU)
    return canvas


def probability(row: int, col: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * row + col)
    return torch.randn(K, 16, 16, generator=generator).mul(3).softmax(0)


def filled(group: int, blend: str = "taper") -> tuple[np.ndarray, object]:
    """The mask of a canvas whose rows are filled by so many tiles at a time."""
    canvas = canvas_of(blend)
    for row in canvas.row_axis.tiles:
        cols = list(canvas.col_axis.tiles)
        for start in range(0, len(cols), group):
            tiles = [probability(row, col) for col in cols[start : start + group]]
            canvas.add(row, cols[start], torch.stack(tiles))
    assert canvas.missing == 0
    canvas.finish()
    (result,) = canvas.results()
    return result.mask, result


@pytest.mark.parametrize("blend", BLENDS)
def test_tiles_may_come_in_any_groups(blend):
    mask, result = filled(1, blend)
    assert set(np.unique(mask)) == set(range(K))
    for group in (2, 3, 5, 99):
        other, found = filled(group, blend)
        assert (mask == other).all()
        assert (found.confidence, found.seam_disagreement) == (result.confidence, result.seam_disagreement)
        assert (found.pixel_counts == result.pixel_counts).all()


def test_seams_are_counted_as_their_definition_has_them():
    """A pixel is disputed when the tiles that see it do not all have the same top class."""
    canvas = canvas_of("taper")
    labels = np.full((4, 200, 200), IGNORE, np.uint8)  # a plane each for tiles of even and odd rows and columns
    for row in canvas.row_axis.tiles:
        for col in canvas.col_axis.tiles:
            part = np.s_[2 * (row % 2) + col % 2, row * 10 : row * 10 + 16, col * 10 : col * 10 + 16]
            labels[part] = probability(row, col).argmax(0).numpy()
    labels = labels[:, :60, :90]
    seen = (labels != IGNORE).sum(0)
    least = labels.min(0)
    most = np.where(labels == IGNORE, 0, labels).max(0)
    for blend in BLENDS:
        _, result = filled(4, blend)
        share = ((seen > 1) & (least != most)).sum() / (seen > 1).sum()
        assert result.seam_disagreement == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("classes", "share"), [(1, 0.0), (2, 1.0)])
def test_seams_of_few_classes_are_counted(classes, share):
    region = whole_image(np.zeros((3, 26, 26), np.uint8), np.ones((26, 26), bool))  # four tiles
    canvas = canvas_on(region, num_classes=classes)
    for row, col in canvas.tiles:
        tile = torch.zeros(1, classes, 16, 16)
        tile[:, (row + col) % classes] = 1
        canvas.add(row, col, tile)
    canvas.finish()
    (result,) = canvas.results()
    assert result.seam_disagreement == share


def test_a_seam_without_data_counts_nowhere():
    valid = np.ones((16, 26), bool)
    valid[:8] = False
    canvas = canvas_on(whole_image(np.zeros((3, 16, 26), np.uint8), valid))
    for col in (0, 1):
        tile = torch.zeros(1, K, 16, 16)
        tile[:, 0] = 1
        tile[:, 1, :8] = 2 * col  # they disagree where there is no data
        canvas.add(0, col, tile)
    canvas.finish()
    (result,) = canvas.results()
    assert result.seam_disagreement == 0.0


@pytest.mark.parametrize("overlap", [0, 5, 6])  # 5 has unequal halves
def test_a_cropped_pixel_is_that_of_the_tile_whose_middle_is_nearest(overlap):
    canvas, stride, half = canvas_of("crop", overlap), 16 - overlap, overlap // 2
    expected = np.full((200, 200), IGNORE, np.uint8)
    for row, col in canvas.tiles:
        tile, top, left = probability(row, col), half if row else 0, half if col else 0
        place = np.s_[row * stride + top : row * stride + 16, col * stride + left : col * stride + 16]
        expected[place] = tile.numpy().argmax(0)[top:, left:]
        canvas.add(row, col, tile[None])
    canvas.finish()
    (result,) = canvas.results()
    assert (result.mask == expected[:60, :90]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_tiles_hold_the_pixels_of_their_place_reflected_beyond_the_edge(dtype):
    pixels = np.arange(3 * 40 * 50).reshape(3, 40, 50).astype(dtype)
    valid = np.ones((40, 50), bool)
    valid[3:9, 7:30] = False
    padded = np.pad(pixels, ((0, 0), (0, 30), (0, 30)), mode="reflect")
    padded_valid = np.pad(valid, ((0, 30), (0, 30)), mode="reflect")
    for block in blocks(40, 50, LATTICE, 700):
        extent = read_extent(block, height=40, width=50, lattice=LATTICE)
        region = Region(
            height=40, width=50, block=block, windows=(block,), extent=extent,
            pixels=pixels[:, extent.rows, extent.cols], valid=unless_all(valid[extent.rows, extent.cols]),
        )  # fmt: skip
        canvas = canvas_on(region)
        assert canvas.tiles
        for row, col in canvas.tiles:
            tile, is_valid = canvas.tile(row, col)
            place = np.s_[row * 10 : row * 10 + 16, col * 10 : col * 10 + 16]
            assert (tile.double().numpy() == padded[(slice(None), *place)].astype(np.float64)).all()
            expected = padded_valid[place]
            assert expected.all() if is_valid is None else (is_valid.numpy() == expected).all()


@pytest.mark.parametrize("size", [(40, 50), (16, 16)])
def test_a_region_without_data_needs_no_tile(size):
    region = whole_image(np.zeros((3, *size), np.uint8), np.zeros(size, bool))
    canvas = canvas_on(region)
    assert canvas.tiles == []
    canvas.finish()
    (result,) = canvas.results()
    assert (result.mask == IGNORE).all()
    assert (result.valid_pixels, result.confidence, result.seam_disagreement) == (0, None, None)
    assert result.window == Window(0, 0, *size)


@pytest.mark.parametrize("size", [(16, 16), (9, 16), (1, 2), (5, 13)])
def test_images_of_one_tile_are_decided_as_on_a_canvas(size):
    """With two windows a canvas is needed; the results must not show it."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    valid = rng.random(size) > 0.2
    valid[0, 0] = True
    single = canvas_on(whole_image(pixels, valid))
    assert single.single
    tile = probability(0, 0)[None]
    decide_singles([single], tile.clone())
    single.finish()
    (found,) = single.results()
    halves = (Window(0, 0, size[0], (size[1] + 1) // 2), Window(0, (size[1] + 1) // 2, size[0], size[1] // 2))
    canvas = canvas_on(dataclasses.replace(whole_image(pixels, valid), windows=halves))
    assert not canvas.single
    canvas.add(0, 0, tile)
    canvas.finish()
    parts = canvas.results()
    assert (np.concatenate([part.mask for part in parts], axis=1) == found.mask).all()
    assert ((found.mask == IGNORE) == ~valid).all()
    assert (sum(part.pixel_counts for part in parts) == found.pixel_counts).all()
    total = sum(part.confidence * part.valid_pixels for part in parts if part.valid_pixels)
    assert total == pytest.approx(found.confidence * found.valid_pixels, rel=1e-12)
    assert found.seam_disagreement is None


@pytest.mark.parametrize("classes", [2, 32, 33, 254])
def test_a_gpu_counts_classes_as_bincount_does(classes):
    label = torch.from_numpy(np.random.default_rng(classes).integers(0, 256, (3, 300, 50), dtype=np.uint8))
    label[0] = 1  # more tiles in a column than a byte can count
    expected = [np.bincount(one.numpy().ravel(), minlength=256)[:classes] for one in label]
    assert (compared_counts(label, classes).numpy() == np.array(expected)).all()
