"""Losses by their definition, on masks without labels, and over two processes with unequal void."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from segray.losses import LOSSES, cross_entropy_sum, global_mean, network_loss

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


def gradient(network: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
    network.zero_grad()
    global_mean(*network_loss(network(images), mask, cross_entropy_sum)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def worker(rank: int, folder: str) -> None:
    """One of two processes; writes the mean over both of the gradient of each case.

    DistributedDataParallel takes this mean too, but needs 4 seconds to be imported.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {name: gradient(TwoHeads(), *batch(void[rank], seed=rank)) for name, void in VOID.items()}
    for summed in found.values():
        dist.all_reduce(summed)
    torch.save({name: summed / dist.get_world_size() for name, summed in found.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gradients_of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", VOID)
def test_two_workers_have_the_gradient_of_one(case: str, gradients_of_two: list[dict[str, Tensor]]) -> None:
    parts = [batch(void, seed=rank) for rank, void in enumerate(VOID[case])]
    expected = gradient(TwoHeads(), *(torch.cat(tensors) for tensors in zip(*parts)))
    for found in gradients_of_two:
        assert (found[case] - expected).norm() <= 1e-6 * expected.norm()
    assert bool(expected.any()) == (case != "nobody has a label")


def test_cross_entropy_is_its_definition() -> None:
    _, mask = batch(0.3)
    logits = logits_like(mask)
    loss, count = cross_entropy_sum(logits, mask)
    probabilities = logits.detach().double().softmax(dim=1)
    valid = mask != 255
    picked = probabilities.gather(1, mask.long().where(valid, torch.tensor(0))[:, None])[:, 0]
    assert loss.item() == pytest.approx(-picked[valid].log().sum().item(), rel=1e-5)
    assert count.item() == valid.sum().item()


def test_void_pixels_have_no_gradient() -> None:
    _, mask = batch(0.5)
    logits = logits_like(mask)
    global_mean(*cross_entropy_sum(logits, mask)).backward()
    void = (mask == 255)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    assert logits.grad[~void].all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_loss_is_zero_without_labels(name: str, dtype: torch.dtype) -> None:
    _, mask = batch(1.0)
    logits = logits_like(mask)
    loss, count = LOSSES[name](logits.to(dtype), mask)
    global_mean(loss, count).backward()
    assert (loss.item(), count.item()) == (0.0, 0)
    assert (loss.dtype, count.dtype, loss.shape, count.shape) == (torch.float32, torch.int64, (), ())
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_adds_over_the_batch(name: str) -> None:
    _, mask = batch(0.3)
    logits = logits_like(mask)
    parts = [LOSSES[name](logits[i : i + 1], mask[i : i + 1]) for i in range(2)]
    loss, count = LOSSES[name](logits, mask)
    assert sum(part[0] for part in parts).item() == pytest.approx(loss.item(), rel=1e-5)
    assert sum(part[1] for part in parts) == count


def test_low_precision_logits_are_computed_in_float32() -> None:
    _, mask = batch(0.2)
    half = logits_like(mask).bfloat16()
    assert torch.equal(cross_entropy_sum(half, mask)[0], cross_entropy_sum(half.float(), mask)[0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("logits_shape", "mask", "word"),
    [
        ((2, 3, 4, 5), torch.zeros(2, 4, 5), "float32"),
        ((2, 3, 4, 5), torch.zeros(2, 3, 4, 5), "float32"),  # what torch takes for class probabilities
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


def test_auxiliary_logits_weigh_half_and_count_once() -> None:
    _, mask = batch(0.2)
    out = logits_like(mask)
    aux = out * 2
    loss, count = network_loss({"out": out, "aux": aux}, mask, cross_entropy_sum)
    main, valid = network_loss(out, mask, cross_entropy_sum)
    assert torch.equal(loss, main + 0.5 * cross_entropy_sum(aux, mask)[0])
    assert torch.equal(count, valid)
