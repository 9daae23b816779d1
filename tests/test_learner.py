"""A training step: what is clipped, averaged and augmented, and what a learner continues from."""

from __future__ import annotations

import pytest
import torch
from test_trainer import job, make_job  # noqa: F401 the former is a fixture
from torch import nn

from segray.learner import Learner
from segray.loading import Batch
from segray.training_job import Job
from segray.workers import Worker


@pytest.fixture
def batch() -> Batch:
    """Four crops of noise, without data at their top, labelled by how red they are."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    valid[:, :9] = False
    return Batch(pixels=pixels, valid=valid, mask=(pixels[:, 0] > 99).to(torch.uint8))


def test_gradients_are_clipped(labelled_folder, tmp_path, batch):
    recipe = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "schedule": "constant"}
    learner = Learner(make_job(labelled_folder, str(tmp_path / "trained"), **recipe, clip=1e-3), Worker())
    before = [weights.detach().clone() for weights in learner.network.parameters()]
    assert learner.step(batch, epoch=1, index=0)[2] > 1e-2  # the norm before clipping
    moved = [(now - then).square().sum() for now, then in zip(learner.network.parameters(), before)]
    assert 0 < sum(moved).sqrt() <= learner.rate(0) * 1e-3 * 1.01


def test_what_has_no_data_keeps_no_colour(labelled_folder, tmp_path, batch):
    learner = Learner(make_job(labelled_folder, str(tmp_path / "trained"), photometric=1.0), Worker())
    plain, changed = (learner._prepared(batch, slice(0, 4), drawn) for drawn in (None, learner._drawn(1, 0)))
    assert not changed[:, :, :9].any() and not torch.allclose(changed[:, :, 9:], plain[:, :, 9:])


def test_a_training_goes_on_in_the_precision_it_began_with(job: Job):  # noqa: F811
    learner = Learner(job, Worker())
    learner.load({**learner.state(), "precision": "bf16"})
    assert learner.precision == "bf16"


def test_depthwise_convolutions_have_gradients_of_float32(labelled_folder, tmp_path, batch):
    recipe = {"network": "lraspp_mobilenet_v3_large", "precision": "bf16", "clip": 0}
    learner = Learner(make_job(labelled_folder, str(tmp_path / "trained"), **recipe), Worker())
    learner.step(batch, epoch=1, index=0)
    depthwise = [m for m in learner.network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    in_float32 = [m for m in depthwise if not torch.equal(m.weight.grad, m.weight.grad.bfloat16().float())]
    assert in_float32 == [m for m in depthwise if max(*m.kernel_size, 2 * max(*m.stride, *m.dilation)) > 3]


def test_the_average_knows_the_step_of_the_whole_training(job: Job, batch, monkeypatch):  # noqa: F811
    learner, steps = Learner(job, Worker()), []
    monkeypatch.setattr(learner.average, "update", steps.append)
    learner.step(batch, epoch=3, index=1)
    assert steps == [2 * job.steps + 1]
