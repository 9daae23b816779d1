"""Test-time augmentation: the mean over views of each tile, which moves no pixel and depends on no cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import Positional
from test_segmenter import K, adversary, mosaic, scene, spec
from torch import nn

from segray.errors import ModelError
from segray.segmenter import Segmenter
from segray.views import VIEWS


def turned(array: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    array = np.rot90(array, turns, axes=(-2, -1))
    return array[..., ::-1] if mirrored else array


def turned_back(array: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    return np.rot90(array[..., ::-1] if mirrored else array, -turns, axes=(-2, -1))


@pytest.mark.parametrize("tta", VIEWS)
def test_logits_are_the_logarithm_of_the_mean_probability_of_the_views(tta):
    pixels = torch.from_numpy(np.stack([scene(32, 32, seed)[0] for seed in (1, 2)]))
    found = adversary(tta=tta).logits(pixels, None)
    probabilities = []
    for view in VIEWS[tta]:
        seen = torch.from_numpy(turned(pixels.numpy(), *view).copy())
        probabilities.append(turned_back(adversary().logits(seen, None).softmax(dim=1).numpy(), *view))
    np.testing.assert_allclose(found.softmax(dim=1).numpy(), np.mean(probabilities, axis=0), atol=1e-6)
    assert found.is_contiguous()


def test_the_views_are_a_flip_from_left_to_right_and_the_eight_symmetries_of_a_square():
    corner = np.arange(4).reshape(2, 2)
    seen = {name: [turned(corner, *view).tolist() for view in views] for name, views in VIEWS.items()}
    assert seen["none"] == [corner.tolist()]
    assert seen["flip"] == [corner.tolist(), np.fliplr(corner).tolist()]  # street scenes are never upside down
    symmetries = [np.rot90(side, turns).tolist() for side in (corner, np.fliplr(corner)) for turns in range(4)]
    assert sorted(seen["d4"]) == sorted(symmetries) and seen["d4"][0] == corner.tolist()


@pytest.mark.parametrize(("tta", "views"), [("flip", VIEWS["flip"]), ("d4", VIEWS["d4"])])
def test_the_mask_of_a_view_is_the_view_of_the_mask(tta, views):
    pixels, _ = scene(32, 32)
    valid = np.ones((32, 32), bool)
    mask, plain = (adversary(tta=name).mask_image(pixels, valid) for name in (tta, "none"))
    assert len(np.unique(mask)) > 1
    for view in views[1:]:
        seen = turned(pixels, *view).copy()
        assert (adversary(tta=tta).mask_image(seen, valid) == turned(mask, *view)).all()
        assert (adversary().mask_image(seen, valid) != turned(plain, *view)).any()  # Positional sees the place


@pytest.mark.parametrize("blend", ["taper", "crop"])
def test_masks_do_not_depend_on_windows_shards_or_batches(blend):
    pixels, valid = scene()
    options = {"blend": blend, "tta": "d4"}
    whole, total = mosaic(adversary(**options), pixels, valid, window=1000, shard_pixels=10**9)
    assert (whole != mosaic(adversary(blend=blend), pixels, valid, window=1000, shard_pixels=10**9)[0]).any()
    cut, summed = mosaic(adversary(batch_size=5, **options), pixels, valid, window=50, shard_pixels=4000)
    assert (cut == whole).all() and summed == total


class Sure(nn.Module):
    """So certain of one class that the others' probabilities are 0 in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, P, P) -> (N, K, P, P)."""
        return torch.cat([torch.full_like(x[:, :1], 1e4), x.new_zeros((len(x), K - 1, *x.shape[2:]))], dim=1)


def test_classes_without_probability_have_finite_logits():
    logits = Segmenter(Sure(), spec(), num_classes=K, tta="d4").logits(torch.zeros((1, 3, 32, 32)), None)
    assert logits.isfinite().all() and (logits.argmax(dim=1) == 0).all()


def test_a_network_that_gives_no_logits_is_named():
    with pytest.raises(ModelError, match=r"gives \(1, 4, 32, 32\) for tiles of \(1, 3, 32, 32\)"):
        Segmenter(Positional(32, classes=4), spec(), num_classes=7, tta="d4").try_a_tile()
