"""Losses by their definition, on masks without labels, and over two processes with unequal void."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo import mean_gradient, run_two
from torch import Tensor, nn

from segray.loss_terms import LOSS_NAMES, PIXEL_LOSSES, parse_loss
from segray.losses import (
    LOSSES,
    cross_entropy_sum,
    dice_sum,
    focal_sum,
    lovasz_sum,
    make_loss,
    network_loss,
    ohem_sum,
    valid_count,
)

WEIGHTS = (0.5, 2.0, 1.0, 0.25, 3.0)
VOID = {"unequal": (0.1, 0.8), "one worker has no label": (0.3, 1.0), "nobody has a label": (1.0, 1.0)}


def batch(void: float, seed: int = 0, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 9, 7, generator=generator)
    mask = torch.randint(num_classes, (2, 9, 7), generator=generator, dtype=torch.uint8)
    mask[torch.rand(mask.shape, generator=generator) < void] = 255
    return images, mask


def logits_like(mask: Tensor, num_classes: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(mask.shape[0], num_classes, *mask.shape[1:], requires_grad=True)


class TwoHeads(nn.Module):
    """A pixelwise network with an auxiliary head, the same in every process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.out, self.aux = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x).tanh()
        return {"out": self.out(features), "aux": self.aux(features)}


def gradient(name: str, images: Tensor, mask: Tensor) -> Tensor:
    """The gradient of the mean loss over the valid pixels of all workers."""
    network, count, world_size = TwoHeads(), valid_count(mask), 1
    if dist.is_initialized():
        dist.all_reduce(count)
        world_size = dist.get_world_size()
    loss_sum = network_loss(network(images), mask, make_loss(((1.0, name),), torch.tensor(WEIGHTS)))
    (loss_sum * world_size / count.clamp(min=1)).backward()
    return mean_gradient(network)


def work(rank: int, folder: Path) -> None:
    """What each of two processes computes: the gradient of every loss in every case."""
    found = {
        f"{name} {case}": gradient(name, *batch(void[rank], seed=rank))
        for name in LOSSES
        for case, void in VOID.items()
    }
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def gradients_of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    run_two(work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", VOID)
def test_two_workers_have_the_gradient_of_one(case: str, name: str, gradients_of_two: list[dict[str, Tensor]]) -> None:
    parts = [batch(void, seed=rank) for rank, void in enumerate(VOID[case])]
    expected = gradient(name, *(torch.cat(tensors) for tensors in zip(*parts)))
    for found in gradients_of_two:
        assert (found[f"{name} {case}"] - expected).norm() <= 1e-6 * expected.norm()
    assert bool(expected.any()) == (case != "nobody has a label")


def test_cross_entropy_is_its_definition() -> None:
    _, mask = batch(0.3)
    logits = logits_like(mask)
    picked = true_probabilities(logits, mask)
    assert cross_entropy_sum(logits, mask).item() == pytest.approx(-np.log(picked).sum(), rel=1e-5)
    assert valid_count(mask).item() == len(picked)


def test_class_weights_multiply_the_loss_of_a_pixel() -> None:
    _, mask = batch(0.3)
    logits, weights = logits_like(mask), torch.tensor(WEIGHTS)
    for loss in (cross_entropy_sum, focal_sum):
        parts = [loss(logits, torch.where(mask == k, mask, 255)) * WEIGHTS[k] for k in range(5)]
        assert torch.allclose(loss(logits, mask, class_weights=weights), torch.stack(parts).sum())


def test_focal_loss_is_its_definition() -> None:
    _, mask = batch(0.3)
    logits = logits_like(mask)
    picked = true_probabilities(logits, mask)
    assert focal_sum(logits, mask).item() == pytest.approx((-((1 - picked) ** 2) * np.log(picked)).sum(), rel=1e-5)


def true_probabilities(logits: Tensor, mask: Tensor) -> np.ndarray:
    """The probability of the true class of every valid pixel, in the mask's order."""
    probabilities = logits.detach().double().softmax(dim=1).permute(0, 2, 3, 1)
    valid = mask != 255
    return probabilities[valid].gather(1, mask[valid].long()[:, None])[:, 0].numpy()


def test_ohem_is_the_mean_of_the_hardest_quarter_of_each_image() -> None:
    masks = [mask for void in (0.0, 0.3, 0.97) for mask in batch(void)[1].split(1)]
    for mask in masks:
        logits = logits_like(mask)
        losses = np.sort(-np.log(true_probabilities(logits, mask)))[::-1]
        expected = losses[: -(-len(losses) // 4)].mean() * len(losses)
        assert ohem_sum(logits, mask).item() == pytest.approx(expected, rel=1e-5)


def image_mean(logits: Tensor, mask: Tensor, of_class) -> float:
    """Sum over images of (mean over the classes in its truth of of_class(p, t)) times its valid pixels."""
    total = 0.0
    for image, truth in zip(logits.detach().double().softmax(dim=1).numpy(), mask.numpy()):
        valid = truth != 255
        losses = [of_class(image[k][valid], truth[valid] == k) for k in np.unique(truth[valid])]
        total += np.mean(losses) * valid.sum()
    return total


def rare_classes(mask: Tensor) -> Tensor:
    """The mask, its first image without class 0 and with a single pixel of class 4."""
    mask = mask.clone()
    mask[0][(mask[0] == 0) | (mask[0] == 4)] = 1
    mask[0, 0, 0] = 4
    return mask


def dice(p: np.ndarray, t: np.ndarray) -> float:
    return 1 - 2 * (p * t).sum() / (p.sum() + t.sum())


def jaccard_extension(p: np.ndarray, t: np.ndarray) -> float:
    """The Lovasz extension of the Jaccard loss, from its values on sets of mispredicted pixels."""
    errors = np.abs(t - p)
    order = np.argsort(-errors)
    total, before = 0.0, 0.0
    for count in range(1, len(p) + 1):
        wrong = np.zeros(len(p), bool)
        wrong[order[:count]] = True
        after = 1 - (t & ~wrong).sum() / (t | wrong).sum()
        total, before = total + errors[order[count - 1]] * (after - before), after
    return total


@pytest.mark.parametrize(("loss", "of_class"), [(dice_sum, dice), (lovasz_sum, jaccard_extension)])
def test_losses_of_overlap_are_their_definitions(loss, of_class) -> None:
    mask = rare_classes(batch(0.3)[1])
    logits = logits_like(mask)
    assert loss(logits, mask).item() == pytest.approx(image_mean(logits, mask, of_class), rel=1e-5)


@pytest.mark.parametrize("loss", [dice_sum, lovasz_sum])
def test_losses_of_overlap_run_from_0_to_1_a_pixel(loss) -> None:
    _, mask = batch(0.3)
    truth = nn.functional.one_hot(mask.long().clamp(max=5), 6)[..., :5].permute(0, 3, 1, 2) * 100.0
    assert loss(truth, mask).item() == pytest.approx(0, abs=1e-3)
    worst = loss(truth.roll(1, dims=1), mask)
    assert worst.item() == pytest.approx(valid_count(mask).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_void_pixels_have_no_gradient_and_no_say(name: str) -> None:
    _, mask = batch(0.5)
    logits = logits_like(mask)
    loss = LOSSES[name](logits, mask)
    loss.backward()
    void = (mask == 255)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    assert logits.grad[~void].any() if name == "ohem" else logits.grad[~void].all()
    other = logits.detach().where(~void, torch.randn(logits.shape) * 30)
    assert torch.allclose(LOSSES[name](other, mask), loss)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_loss_is_zero_without_labels(name: str, dtype: torch.dtype) -> None:
    _, mask = batch(1.0)
    logits = logits_like(mask)
    loss = LOSSES[name](logits.to(dtype), mask)
    loss.backward()
    assert (loss.item(), loss.dtype, loss.shape) == (0.0, torch.float32, ())
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_logits_are_computed_in_float32(name: str) -> None:
    _, mask = batch(0.2)
    half = logits_like(mask).bfloat16()
    assert torch.equal(LOSSES[name](half, mask), LOSSES[name](half.float(), mask))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("logits_shape", "mask", "word"),
    [
        ((2, 3, 4, 5), torch.zeros(2, 4, 5), "float32"),
        ((2, 3, 4, 5), torch.zeros(2, 3, 4, 5), "float32"),  # torch would take it for class probabilities
        ((2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool), "bool"),
        ((2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.uint8), "(2, 1, 4, 5)"),
        ((2, 3, 4, 5), torch.zeros(2, 5, 4, dtype=torch.uint8), "(2, 5, 4)"),
        ((2, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.uint8), "(1, 4, 5)"),
        ((3, 4, 5), torch.zeros(4, 5, dtype=torch.uint8), "(4, 5)"),
        ((2, 1, 4, 5), torch.zeros(2, 4, 5, dtype=torch.uint8), "two classes"),
    ],
)
def test_every_loss_refuses_what_torch_would_train_on(
    name: str, logits_shape: tuple[int, ...], mask: Tensor, word: str
) -> None:
    with pytest.raises(ValueError) as error:
        LOSSES[name](torch.zeros(logits_shape), mask)
    assert word in str(error.value)


def test_auxiliary_logits_weigh_half() -> None:
    _, mask = batch(0.2)
    out = logits_like(mask)
    aux = out * 2
    loss = network_loss({"out": out, "aux": aux}, mask, cross_entropy_sum)
    main = network_loss(out, mask, cross_entropy_sum)
    assert torch.equal(loss, main + 0.5 * cross_entropy_sum(aux, mask))


def test_a_sum_of_losses_is_their_weighted_sum() -> None:
    _, mask = batch(0.2)
    logits, weights = logits_like(mask), torch.tensor(WEIGHTS)
    loss = make_loss(parse_loss("focal+0.5*lovasz"), weights)(logits, mask)
    expected = focal_sum(logits, mask, class_weights=weights) + 0.5 * lovasz_sum(logits, mask)
    assert torch.allclose(loss, expected)


def test_the_losses_are_those_that_settings_name() -> None:
    assert tuple(LOSSES) == LOSS_NAMES
    weighted = [name for name, loss in LOSSES.items() if "class_weights" in (loss.__kwdefaults__ or {})]
    assert tuple(weighted) == PIXEL_LOSSES
