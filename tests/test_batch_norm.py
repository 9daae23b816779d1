"""Batch norms over two real processes: the outputs, gradients and statistics of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import mean_gradient, run_two
from torch import Tensor, nn

from segray.batch_norm import GlobalBatchNorm, synchronise
from segray.losses import cross_entropy_sum, network_loss, valid_count
from segray.networks import build_network, parse_network

VOID = (0.1, 0.9)  # of each worker's crops


class NormAct(nn.BatchNorm2d):
    """Like timm's BatchNormAct2d: the activation that follows is part of the norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Odd(nn.Module):
    """Norms of all kinds: an activation inside, no weights or frozen ones, cumulative statistics or none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), NormAct(6), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False),
            nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None, eps=0.1), nn.Tanh(),
            nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.body[-1].requires_grad_(False)
        self.flat, self.head = nn.BatchNorm1d(6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(self.flat(x.flatten(2)).view_as(x))


def network_of(text: str) -> nn.Module:
    """In float64: deep networks amplify what float32 rounds."""
    torch.manual_seed(0)
    if text == "odd":
        return Odd().double()
    name, options = parse_network(text)
    return build_network(name, options, num_classes=4, in_channels=3).double()


def batch(rank: int) -> tuple[Tensor, Tensor]:
    """A worker's crops; the other one has more of them, brighter and with more void."""
    count = 2 + rank
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(count, 3, 33, 40, generator=generator, dtype=torch.float64) * (1 + rank) + rank
    mask = torch.randint(4, (count, 33, 40), generator=generator, dtype=torch.uint8)
    mask[torch.rand(mask.shape, generator=generator) < VOID[rank]] = 255
    return images, mask


def learn(network: nn.Module, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The mean gradient of a second pass, and the buffers after it."""
    count, world_size = valid_count(mask), 1
    if dist.is_initialized():
        dist.all_reduce(count)
        world_size = dist.get_world_size()
    network.train()(images)
    loss_sum = network_loss(network(images), mask, cross_entropy_sum)
    (loss_sum * world_size / count).backward()
    return {"gradient": mean_gradient(network), **{name: buffer.clone() for name, buffer in network.named_buffers()}}


CASES = ["unet?width=4", "nano?width=8", "odd"]


def work(rank: int, folder: Path) -> None:
    """What a process computes in each case."""
    found = {text: learn(synchronise(network_of(text), gpu=False), *batch(rank)) for text in CASES}
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("norms")
    run_two(work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("text", CASES)
def test_two_workers_have_gradients_and_statistics_of_one(text: str, found_by_two: list) -> None:
    images, mask = (torch.cat(tensors) for tensors in zip(batch(0), batch(1)))
    expected = learn(network_of(text), images, mask)
    for found in found_by_two:
        assert found[text].keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(found[text][name], tensor, rtol=1e-9, atol=1e-9), name
    assert all(torch.equal(a, b) for a, b in zip(*(found[text].values() for found in found_by_two)))


def test_state_parameters_and_evaluation_stay_those_of_the_network() -> None:
    network = network_of("odd")
    parameters, state = list(network.parameters()), network.state_dict()
    expected = network.eval()(batch(0)[0])
    changed = synchronise(network, gpu=False)
    assert sum(isinstance(module, GlobalBatchNorm) for module in changed.modules()) == 6
    assert list(changed.state_dict()) == list(state)
    assert all(a is b for a, b in zip(changed.parameters(), parameters, strict=True))
    assert torch.equal(changed(batch(0)[0]), expected)
    network_of("odd").load_state_dict(changed.state_dict())


def test_on_gpus_torch_synchronises_what_has_no_activation_inside() -> None:
    changed = synchronise(Odd(), gpu=True)
    kinds = [type(module) for module in changed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert kinds.count(nn.SyncBatchNorm) == 5
    assert kinds.count(GlobalBatchNorm) == 1
