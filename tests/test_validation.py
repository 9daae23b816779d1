"""Validation counts every pixel once, and a large scene read in blocks like one read whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scene_sets import raster, write_scenes
from torch import nn

from segray.datasets import Sample, open_dataset, read
from segray.datasets.large import cut
from segray.grid import blocks, windows
from segray.inputs import InputSpec
from segray.metrics import confusion_matrix
from segray.segmenter import Segmenter
from segray.validation import validate

SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=32, overlap=8)


@pytest.fixture
def scene(tmp_path):
    """(the data set, its sample) of one scene with some pixels without data, labelled on a coarser grid."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (3, 150, 190), np.uint8)
    pixels[:, 30:90, :70] = 0
    image = raster(pixels, nodata=0)
    files = {"val/images/a.tif": image, "val/labels/a.tif": raster(rng.integers(0, 3, (150, 190), np.uint8))}
    dataset = open_dataset(write_scenes(str(tmp_path), files))
    return dataset, dataset.samples("val")[0]


def segmenter(blend: str = "crop") -> Segmenter:
    """A segmenter whose classes depend on pixels far away."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 7, padding=3), nn.ReLU(), nn.Conv2d(8, 3, 7, padding=3))
    return Segmenter(network, SPEC, num_classes=3, blend=blend)


def validated(dataset, units: list[Sample], blend: str = "crop"):
    with ThreadPoolExecutor(2) as pool:
        return validate(segmenter(blend), units, shown=units, read=lambda sample: read(dataset, sample), pool=pool)


@pytest.mark.parametrize("blend", ["crop", "taper"])
@pytest.mark.parametrize("how", ["blocks", "squares"])
def test_blocks_of_a_scene_count_as_the_whole_scene(scene, blend, how):
    dataset, sample = scene
    ways = {
        "blocks": lambda h, w: blocks(h, w, SPEC.lattice(blend), 3000),
        "squares": lambda h, w: windows(h, w, 47),
    }
    units = list(cut([sample], {0: (150, 190)}, ways[how]))
    assert len(units) > 8
    matrix, pictures = validated(dataset, units, blend)
    whole, (picture,) = validated(dataset, [sample], blend)
    labelled = read(dataset, sample)
    assert np.array_equal(matrix, whole)
    assert matrix.sum() == (labelled.mask < 255).sum()  # every labelled pixel once
    assert np.array_equal(
        whole, confusion_matrix(labelled.mask, segmenter(blend).mask_image(labelled.pixels, labelled.valid), 3)
    )
    for shown in pictures:
        row, col = (int(text.split()[-1]) for text in shown.title.split(", ")[1:])
        height, width = shown.mask.shape
        for part, all_of_it in ((shown.mask, picture.mask), (shown.truth, picture.truth), (shown.image, picture.image)):
            assert np.array_equal(part, all_of_it[row : row + height, col : col + width])


def test_nothing_to_validate_is_no_count(scene):
    matrix, pictures = validated(scene[0], [])
    assert (matrix.shape, matrix.sum(), pictures) == ((3, 4), 0, [])
