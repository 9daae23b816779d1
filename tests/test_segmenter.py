"""The mask of a pixel depends on the image and the model, and on nothing else (R1); 255 where there is no data."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from models import Positional
from torch import nn

from segray.calibration import chosen
from segray.errors import ModelError
from segray.grid import Lattice, Window, blocks, read_extent, split
from segray.inputs import InputSpec
from segray.masks import IGNORE
from segray.networks import build_network
from segray.regions import CONFIDENCE_UNIT, Region, unless_all, whole_image
from segray.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 203, 157
K = 4
LATTICE = Lattice(32, 8)


def spec(tile: int = 32, overlap: int = 8) -> InputSpec:
    return InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=tile, overlap=overlap)


def scene(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    valid = np.ones((height, width), bool)
    valid[height // 3 : height // 2, : width // 2] = False
    return pixels, valid


def adversary(tile: int = 32, overlap: int = 8, **options: object) -> Segmenter:
    return Segmenter(Positional(tile, classes=K), spec(tile, overlap), num_classes=K, **{"blend": "taper", **options})


def region_of(pixels: np.ndarray, valid: np.ndarray, block: Window, *, window: int, lattice: Lattice) -> Region:
    height, width = valid.shape
    extent = read_extent(block, height=height, width=width, lattice=lattice)
    rows, cols = extent.rows, extent.cols
    return Region(
        height=height, width=width, block=block, windows=tuple(split(block, window)), extent=extent,
        pixels=pixels[:, rows, cols], valid=unless_all(valid[rows, cols]),
    )  # fmt: skip


def mosaic(segmenter: Segmenter, pixels: np.ndarray, valid: np.ndarray, *, window: int, shard_pixels: int):
    """The masks of all windows joined, and the sums of their statistics."""
    height, width = valid.shape
    parts = blocks(height, width, segmenter.lattice, shard_pixels)
    regions = [region_of(pixels, valid, block, window=window, lattice=segmenter.lattice) for block in parts]
    joined = np.full(valid.shape, 77, np.uint8)
    confidence = 0
    for masks in segmenter.segment(regions):
        for mask in masks:
            joined[mask.window.rows, mask.window.cols] = mask.mask
            confidence += round((mask.confidence or 0) * mask.valid_pixels / CONFIDENCE_UNIT)
    return joined, confidence


@pytest.mark.parametrize("blend", ["taper", "crop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mask_and_confidence_do_not_depend_on_windows_shards_or_batches(blend, precision):
    pixels, valid = scene()
    whole, total = mosaic(adversary(blend=blend, precision=precision), pixels, valid, window=1000, shard_pixels=10**9)
    assert len(np.unique(whole)) == K + 1
    for window in (1, 13, 32, 50, 100):
        if window == 1:
            part = (pixels[:, :9, :11], valid[:9, :11])
            small, _ = mosaic(adversary(blend=blend, precision=precision), *part, window=1, shard_pixels=1)
            alone, _ = mosaic(adversary(blend=blend, precision=precision), *part, window=99, shard_pixels=10**9)
            assert (small == alone).all()
            continue
        for shard_pixels in (1, 4000, 10**9):
            for batch_size in (1, 5):
                segmenter = adversary(blend=blend, precision=precision, batch_size=batch_size)
                cut, summed = mosaic(segmenter, pixels, valid, window=window, shard_pixels=shard_pixels)
                assert (cut == whole).all(), (window, shard_pixels, batch_size)
                assert summed == total


def test_two_threads_and_a_real_network_give_the_same_bits():
    torch.manual_seed(0)
    network = build_network("unet", {"width": 8}, num_classes=K, in_channels=3)
    pixels, valid = scene()
    masks = []
    for threads, batch in ((1, 1), (2, 1), (2, 7)):
        torch.set_num_threads(threads)
        segmenter = Segmenter(network, spec(), num_classes=K, precision="bf16", batch_size=batch)
        masks.append(mosaic(segmenter, pixels, valid, window=64, shard_pixels=64**2))
    torch.set_num_threads(1)
    assert all((mask == masks[0][0]).all() and total == masks[0][1] for mask, total in masks)


def test_threads_that_share_a_segmenter_do_not_mix_their_images():
    segmenter = adversary(batch_size=3)
    scenes = [scene(seed=seed) for seed in range(4)]
    expected = [mosaic(segmenter, *found, window=64, shard_pixels=4000) for found in scenes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda found: mosaic(segmenter, *found, window=64, shard_pixels=4000), scenes))
    for (one, total), (other, summed) in zip(expected, together):
        assert (one == other).all()
        assert total == summed


def brute_force(segmenter: Segmenter, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The mask by the definition of the lattice: every tile on a whole-image canvas, one at a time."""
    tile, stride = segmenter.spec.tile, segmenter.spec.tile - segmenter.spec.overlap
    height, width = valid.shape
    down, across = (1 if n <= tile else -((tile - n) // stride) + 1 for n in (height, width))
    pad = ((down - 1) * stride + tile - height, (across - 1) * stride + tile - width)
    canvas = torch.zeros(K, height + pad[0], width + pad[1])
    padded = np.pad(pixels, ((0, 0), (0, pad[0]), (0, pad[1])), mode="reflect")
    padded_valid = np.pad(valid, ((0, pad[0]), (0, pad[1])), mode="reflect")
    ramp = torch.from_numpy((1 - np.cos(np.pi * (np.arange(8) + 0.5) / 8)) / 2).float()
    for i in range(down):
        for j in range(across):
            part = np.s_[..., i * stride : i * stride + tile, j * stride : j * stride + tile]
            batch = (torch.from_numpy(padded[part].copy())[None], torch.from_numpy(padded_valid[part].copy())[None])
            weight = torch.ones(2, tile)
            for axis, (index, count) in enumerate(((i, down), (j, across))):
                if index:
                    weight[axis, :8] = ramp
                if index < count - 1:
                    weight[axis, -8:] = 1 - ramp
            canvas[part] += segmenter.probabilities(segmenter.logits(*batch))[0][0] * weight[0][:, None] * weight[1]
    mask = canvas.argmax(0).numpy().astype(np.uint8)[:height, :width]
    return np.where(valid, mask, IGNORE)


@pytest.mark.parametrize("size", [(32, 32), (33, 31), (56, 57), (80, 200), (203, 157)])
def test_equals_the_definition(size):
    pixels, valid = scene(*size)
    segmenter = adversary()
    agreement = (segmenter.mask_image(pixels, valid) == brute_force(segmenter, pixels, valid)).mean()
    assert agreement > 0.9999  # the two round their weights differently


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (2, 3), (31, 7)])
def test_tiny_images_are_images(size):
    pixels, valid = scene(*size)
    valid[:] = True
    mask = adversary().mask_image(pixels, valid)
    assert mask.shape == size
    assert mask.max() < K


def test_255_exactly_where_there_is_no_data_and_nan_changes_nothing():
    pixels, valid = scene()
    floats = pixels.astype(np.float32)
    clean = adversary().mask_image(floats, valid)
    floats[:, ~valid] = np.nan
    mask = adversary().mask_image(floats, valid)
    assert ((mask == IGNORE) == ~valid).all()
    assert (mask == clean).all()


def test_tiles_without_data_never_reach_the_network():
    seen = []

    class Spy(Positional):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape[0])
            return super().forward(x)

    pixels, valid = scene(200, 200)
    valid[:] = False
    valid[5, 5] = True
    segmenter = Segmenter(Spy(32, classes=K), spec(), num_classes=K)
    mask = segmenter.mask_image(pixels, valid)
    assert sum(seen) == 1
    assert (mask != IGNORE).sum() == 1


def test_statistics_of_a_window():
    pixels, valid = scene()
    region = region_of(pixels, valid, Window(0, 0, HEIGHT, WIDTH), window=500, lattice=LATTICE)
    (result,) = next(adversary().segment([region]))
    counts = np.bincount(result.mask[valid], minlength=K)
    assert (result.pixel_counts == counts).all()
    assert result.valid_pixels == valid.sum() == counts.sum()
    assert 1 / K < result.confidence <= 1
    assert 0 < result.seam_disagreement < 1


def test_seam_disagreement_of_a_network_without_context_is_zero_and_absent_without_overlap():
    network = nn.Conv2d(3, K, 1)
    pixels, valid = scene()
    region = region_of(pixels, valid, Window(0, 0, HEIGHT, WIDTH), window=500, lattice=LATTICE)
    (result,) = next(Segmenter(network, spec(), num_classes=K, blend="taper").segment([region]))
    assert result.seam_disagreement == 0
    alone = region_of(pixels[:, :32, :32], valid[:32, :32], Window(0, 0, 32, 32), window=500, lattice=LATTICE)
    (result,) = next(Segmenter(network, spec(), num_classes=K, blend="taper").segment([alone]))
    assert result.seam_disagreement is None


def test_a_region_with_too_few_pixels_is_refused():
    pixels, valid = scene()
    region = region_of(pixels, valid, Window(64, 64, 64, 64), window=64, lattice=LATTICE)
    short = Region(**{**vars(region), "extent": region.block})
    with pytest.raises(ValueError, match="its tiles are made of"):
        list(adversary().segment([short]))


def test_batches_run_across_small_images_and_are_always_full():
    sizes = []

    class Spy(Positional):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.shape[0])
            return super().forward(x)

    pixels, valid = scene(32, 32)
    whole = Window(0, 0, 32, 32)
    regions = [region_of(pixels, valid, whole, window=64, lattice=LATTICE) for _ in range(10)]
    results = list(Segmenter(Spy(32, classes=K), spec(), num_classes=K, blend="taper", batch_size=4).segment(regions))
    assert sizes == [4, 4, 4]  # oneDNN computes a convolution of one tile otherwise than one of several
    assert len(results) == 10


def test_images_whose_pixels_travel_together_give_what_they_give_alone(monkeypatch):
    images = [scene(size, 32 + size, seed=size) for size in (5, 32, 40, 9, 70, 32, 12)]
    regions = [whole_image(*image) for image in images] + [whole_image(images[1][0], np.ones_like(images[1][1]))]
    segmenter = adversary(batch_size=4)
    alone = [masks[0].mask for masks in segmenter.segment(regions)]
    segmenter.copies = torch.device("cpu")  # stands in for a GPU's stream
    monkeypatch.setattr("segray.segmenter.UPLOAD_BYTES", 2 * images[2][0].nbytes)
    together = [masks[0].mask for masks in segmenter.segment(regions)]
    assert len(together) == len(regions)
    for one, other in zip(alone, together):
        assert (one == other).all()


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": x}


@pytest.mark.parametrize(
    ("network", "batch_size", "sentence"),
    [
        (Named(), 1, "gives a dict, but should give one tensor of logits"),
        (
            Positional(32, classes=K),
            10**10,
            "0 tile.s. of 32 px do not fit into memory; lower --batch_size",
        ),
        (nn.Conv2d(5, K, 1), 1, "takes no tiles of 3 x 32 x 32: .*; give another --tile"),
    ],
)
def test_what_a_network_cannot_do_is_said_before_it_is_used(network, batch_size, sentence):
    with pytest.raises(ModelError, match=sentence):
        Segmenter(network, spec(), num_classes=K, batch_size=batch_size).try_a_tile()


def test_a_network_that_does_not_run_in_bf16_is_told_of_fp32():
    network = nn.Sequential(nn.Conv2d(3, K, 1), nn.LocalResponseNorm(3))  # torch has no bf16 kernel for it
    with pytest.raises(ModelError, match="BFloat16.*; give --precision fp32 or another --tile"):
        Segmenter(network, spec(), num_classes=K, precision="bf16").try_a_tile()
    Segmenter(network, spec(), num_classes=K).try_a_tile()


def test_a_network_that_cannot_be_compiled_is_no_matter_of_its_tiles():
    # torch looks for the compiler once per process, so this takes a process without one
    code = (
        "from torch import nn\nfrom segray.errors import ModelError\nfrom segray.inputs import InputSpec\n"
        "from segray.segmenter import Segmenter\n"
        "spec = InputSpec(bands=(0,), scale=1.0, mean=(0.0,), std=(1.0,), tile=32, overlap=8)\n"
        "network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())\n"
        "try:\n    Segmenter(network, spec, num_classes=2, compiled=True).try_a_tile()\n"
        "except ModelError as error:\n    print(error)\n"
    )
    without = {**os.environ, "CXX": "/nowhere/g++"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=without)
    assert done.stdout.startswith("the network cannot be compiled: ")
    assert done.stdout.endswith("this needs g++ on every node: install it, or leave out --compile\n")


def detailed(
    pixels: np.ndarray, valid: np.ndarray, *, window: int, shard_pixels: int, **options: object
) -> tuple[np.ndarray, dict[tuple[int, int], tuple[float, ...]], np.ndarray]:
    """Confidences of a whole image from all windows, the sampled logits by pixel, and the mask."""
    segmenter = adversary(detailed=True, sampled=True, **options)
    confidences, mask, logits = np.full(valid.shape, 7, np.uint16), np.full(valid.shape, 77, np.uint8), {}
    parts = blocks(*valid.shape, segmenter.lattice, shard_pixels)
    regions = [region_of(pixels, valid, block, window=window, lattice=segmenter.lattice) for block in parts]
    for results in segmenter.segment(regions):
        for result in results:
            place = result.window.rows, result.window.cols
            confidences[place], mask[place] = result.confidences, result.mask
            total = round((result.confidence or 0) * result.valid_pixels / CONFIDENCE_UNIT)
            assert result.confidences.sum(dtype=np.int64) == total
            found = result.sampled
            order = np.lexsort((found.cols, found.rows)) if found else []
            assert list(order) == list(range(len(order)))
            for row, col, values in zip(found.rows, found.cols, found.logits) if found else ():
                assert (row, col) not in logits
                logits[int(row), int(col)] = tuple(values.tolist())
    return confidences, logits, mask


@pytest.mark.parametrize("blend", ["taper", "crop"])
def test_details_do_not_depend_on_windows_shards_or_batches_and_change_no_mask(blend):
    pixels, valid = scene(120, 90)
    plain, _ = mosaic(adversary(blend=blend), pixels, valid, window=1000, shard_pixels=10**9)
    confidences, logits, mask = detailed(pixels, valid, window=1000, shard_pixels=10**9, blend=blend)
    assert (mask == plain).all()
    assert (confidences[~valid] == 0).all() and (confidences[valid] > 0).all()
    for window, shard_pixels, batch_size in ((13, 4000, 1), (50, 10**9, 5), (1000, 1, 3)):
        options = {"window": window, "shard_pixels": shard_pixels, "batch_size": batch_size}
        cut = detailed(pixels, valid, blend=blend, **options)
        assert (cut[0] == confidences).all()
        known = {place: values for place, values in logits.items() if valid[place]}
        assert {place: values for place, values in cut[1].items() if valid[place]} == known


def test_sampled_logits_are_those_of_the_tile_that_decides_a_cropped_pixel():
    pixels, valid = scene(120, 90)
    valid[:] = True
    confidences, logits, mask = detailed(pixels, valid, window=1000, shard_pixels=10**9, blend="crop")
    places = np.nonzero(chosen(range(120), range(90)))
    assert sorted(logits) == list(zip(*(place.tolist() for place in places)))
    values = np.array([logits[place] for place in zip(*(place.tolist() for place in places))])
    assert (values.argmax(axis=1) == mask[places]).all()
    expected = torch.from_numpy(values).float().softmax(dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose(confidences[places] * CONFIDENCE_UNIT, expected, atol=CONFIDENCE_UNIT)


@pytest.mark.parametrize("size", [(32, 32), (9, 32), (1, 1), (40, 33)])
def test_details_of_images_of_one_tile(size):
    pixels, valid = scene(*size)
    valid[0, 0] = True
    segmenter = adversary(detailed=True, sampled=True, batch_size=4, blend="crop")
    results = [found for (found,) in segmenter.segment([whole_image(pixels, valid)] * 3)]
    for found in results:
        assert found.confidences.shape == found.mask.shape == size
        assert ((found.confidences == 0) == ~valid).all()
        rows, cols = np.nonzero(chosen(*map(range, size)))
        assert (found.sampled.rows.tolist(), found.sampled.cols.tolist()) == (rows.tolist(), cols.tolist())
        assert found.sampled.logits.shape == (len(rows), K)
        assert (found.sampled.logits == results[0].sampled.logits).all()


def test_plain_segmentation_keeps_no_details():
    pixels, valid = scene(40, 40)
    (result,) = next(adversary().segment([whole_image(pixels, valid)]))
    assert (result.confidences, result.sampled) == (None, None)


class Ties(nn.Module):
    """Logits, some of which differ so little that softmax or a division makes them equal."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, P, P) -> (N, K, P, P)."""
        steps = (x * 40).round()
        near = torch.stack(
            [steps[:, 0], steps[:, 0] * (1 + 2e-7), steps[:, 1], steps[:, 0] + 1e-7 * steps[:, 2]], dim=1
        )
        return near * 0.1


@pytest.mark.parametrize("network", [Positional(32, classes=K), Ties()])
@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.3127, 40.0])
def test_a_temperature_changes_confidences_and_no_cropped_mask(network, temperature):
    pixels, valid = scene(100, 70)
    images = [whole_image(pixels, valid), whole_image(pixels[:, :20, :20], valid[:20, :20])]  # the second is one tile
    options = {"num_classes": K, "blend": "crop", "detailed": True, "sampled": True}
    plain = Segmenter(network, spec(), **options).segment(images)
    tempered = Segmenter(network, spec(), temperature=temperature, **options).segment(images)
    for (before,), (after,) in zip(plain, tempered, strict=True):
        assert (before.mask == after.mask).all()
        assert before.seam_disagreement == after.seam_disagreement
        assert (before.sampled.logits == after.sampled.logits).all()
        rows, cols = before.sampled.rows, before.sampled.cols
        expected = (torch.from_numpy(before.sampled.logits) / temperature).softmax(dim=1).amax(dim=1).numpy()
        expected = np.where(valid[rows, cols], expected, 0)
        np.testing.assert_allclose(after.confidences[rows, cols] * CONFIDENCE_UNIT, expected, atol=CONFIDENCE_UNIT)
        assert (after.confidence > before.confidence) == (temperature < 1)


def test_a_temperature_leaves_blended_images_of_one_tile_as_they_are():
    pixels, valid = scene(30, 30)
    masks = [adversary(temperature=temperature).mask_image(pixels, valid) for temperature in (1.0, 3.0)]
    assert (masks[0] == masks[1]).all()
