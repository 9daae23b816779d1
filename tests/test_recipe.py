"""Everything in the dictionaries trains: every loss and network learns four images, with the recipe's own parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from segray.loss_terms import class_weights, parse_loss
from segray.losses import LOSSES, make_loss, network_loss, valid_count
from segray.metrics import confusion_matrix, scores
from segray.networks import NETWORKS, build_network
from segray.optimizer import make_optimizer
from segray.schedules import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4
SMALL = {"encoder_decoder": {"width": 16}, "unet": {"width": 8, "depth": 2}, "nano": {"width": 16}}
OPTIONS = {"smp": {"architecture": "unet", "encoder": "resnet18"}}
RATES = {"adam": 0.01, "adamw": 0.01, "sgd": 0.2}


def four_images(side: int) -> tuple[Tensor, Tensor]:
    """(4, 3, side, side) pixels of mean 0 and their mask: squares of four classes, and a corner that is void.

    Classes 0 and 1 differ in colour, 2 and 3 in texture alone: stripes along the rows or along the columns.
    """
    rng = np.random.default_rng(0)
    cells = rng.integers(CLASSES, size=(4, side // 16, side // 16))
    mask = cells.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)
    rows, cols = np.indices((side, side)) % 4 // 2 * 2 - 1
    grey = np.choose(mask, [-1.0 + 0 * rows, 1.0 + 0 * rows, rows, cols])
    pixels = np.stack([grey, np.where(mask == 1, -1.0, grey), grey], axis=1) + rng.normal(0, 0.2, (4, 3, side, side))
    mask[:, :8, :8] = 255
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(mask)


def fit(
    name: str, images: Tensor, mask: Tensor, *, steps: int, loss: str = "cross_entropy", optimizer: str = "adamw"
) -> tuple[torch.nn.Module, list[float]]:
    """The network after that many steps on the whole batch, and the loss before each."""
    torch.manual_seed(0)
    options = SMALL.get(name, OPTIONS.get(name, {}))
    network = build_network(name, options, num_classes=CLASSES, in_channels=3).train()
    pixels = np.bincount(mask.flatten().numpy(), minlength=256)[:CLASSES]
    criterion = make_loss(parse_loss(loss), torch.tensor(class_weights("inverse_sqrt", pixels.tolist())))
    peak = RATES[optimizer]
    optimiser = make_optimizer(network, name=optimizer, lr=peak, weight_decay=1e-4)
    history = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps=steps, peak=peak, schedule="cosine", warm_up=0.05)
        loss_sum, count = network_loss(network(images), mask, criterion), valid_count(mask)
        optimiser.zero_grad()
        (loss_sum / count).backward()
        optimiser.step()
        history.append(loss_sum.item() / count.item())
    return network.eval(), history


def miou(network: torch.nn.Module, images: Tensor, mask: Tensor) -> float:
    with torch.no_grad():
        predicted = network(images).argmax(dim=1).to(torch.uint8)
    assert valid_count(mask) < mask.numel()
    return scores(confusion_matrix(mask.numpy(), predicted.numpy(), CLASSES))["miou"]


@pytest.mark.parametrize("loss", [*LOSSES, "cross_entropy+0.5*lovasz"])
def test_every_loss_learns_four_images(loss: str) -> None:
    images, mask = four_images(48)
    network, history = fit("unet", images, mask, steps=50, loss=loss)
    assert miou(network, images, mask) > 0.95
    assert history[-1] < 0.3 * history[0]


@pytest.mark.parametrize("name", SMALL)
def test_every_small_network_learns_four_images(name: str) -> None:
    images, mask = four_images(48)
    network, _ = fit(name, images, mask, steps=100)
    assert miou(network, images, mask) > 0.95


@pytest.mark.parametrize("optimizer", RATES)
def test_every_optimizer_learns_four_images(optimizer: str) -> None:
    images, mask = four_images(48)
    network, _ = fit("unet", images, mask, steps=50, optimizer=optimizer)
    assert miou(network, images, mask) > 0.95


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SMALL])
def test_every_heavy_network_lowers_its_loss(name: str) -> None:
    images, mask = four_images(64)
    _, history = fit(name, images[:2], mask[:2], steps=4)
    assert all(np.isfinite(history))
    assert history[-1] < history[0]
