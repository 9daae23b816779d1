"""One worker's network, optimizer and weight average, and a step of training."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from segray import photometric
from segray.averaging import WeightAverage
from segray.batch_norm import synchronise
from segray.depthwise import FasterDepthwise
from segray.errors import SegrayError
from segray.inference import default_precision
from segray.inputs import prepare
from segray.loading import Batch
from segray.losses import make_loss, network_loss, valid_count
from segray.optimizer import make_optimizer
from segray.sampling import share
from segray.schedules import learning_rate
from segray.training_job import Job
from segray.workers import Worker


class Learner:
    """What a worker trains. precision: bf16 or fp32, the same on all workers; model(): what is validated, published."""

    def __init__(self, job: Job, worker: Worker, *, pretrained: bool = True) -> None:
        """pretrained: see `Job.network`."""
        self.job, self.worker, settings = job, worker, job.settings
        fast = worker.all_agree(default_precision(worker.device.type) == "bf16")
        self.precision = settings.precision or ("bf16" if fast else "fp32")
        with worker.together():
            network = job.network(pretrained=pretrained)
        self.reduce = getattr(network, "reduce", 1)  # in training it has logits of every reduce-th pixel only
        self.network = network.to(worker.device, memory_format=torch.channels_last)
        self.average = WeightAverage(self.network, decay=settings.ema)
        if worker.world_size > 1:
            self.network = synchronise(self.network, gpu=worker.device.type == "cuda")
        if settings.compile:
            self.network.compile(dynamic=False)
        self.parallel = worker.parallel(self.network)
        self.optimizer = make_optimizer(
            self.network,
            name=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
        weights = job.class_weights()
        self.loss = make_loss(
            settings.loss_terms, None if weights is None else torch.tensor(weights, device=worker.device)
        )

    def model(self) -> nn.Module:
        """The network to validate and publish, in eval mode: the averaged weights with --ema, else the last ones."""
        if not self.job.settings.ema:
            self.average.update(step=0)
        return self.average.network

    def state(self) -> dict:
        """What a resumed run continues from."""
        return {
            "precision": self.precision,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict() if self.job.settings.ema else {},
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict) -> None:
        """Continue from a state."""
        self.precision = state["precision"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.job.settings.ema:
            self.average.network.load_state_dict(state["average"])

    def step(self, batch: Batch, *, epoch: int, index: int) -> Tensor:
        """One step of the optimizer on this worker's crops; index: of the step in its epoch, 0-based.

        Returns this worker's loss sum, valid pixels and gradient norm, (3,) float64. Nothing here makes the host wait
        for the device.
        """
        settings, step = self.job.settings, (epoch - 1) * self.job.steps + index
        mask = self._to_device(batch.mask)[:, self.reduce // 2 :: self.reduce, self.reduce // 2 :: self.reduce]
        count = valid_count(mask)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        # the loss is a mean over all workers' valid pixels, but gradients are averaged over workers: hence world_size
        factor = self.worker.world_size / self.worker.sum(count).clamp(min=1)
        drawn, loss_sum = self._drawn(epoch, index), torch.zeros((), device=self.worker.device)
        self.optimizer.zero_grad()
        for part in self._parts(len(mask)):
            with self._sharing(part.stop == len(mask)):
                outputs = self._forward(self._prepared(batch, part, drawn))
                part_sum = network_loss(outputs, mask[part], self.loss, aux_weight=settings.aux_weight)
                (part_sum * factor).backward()
            loss_sum += part_sum.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip or math.inf)
        self.optimizer.step()
        if settings.ema:
            self.average.update(step)
        return torch.stack([loss_sum.double(), count.double(), norm.double()])

    def rate(self, step: int) -> float:
        """The learning rate of a step of the whole training."""
        settings = self.job.settings
        return learning_rate(
            step,
            steps=self.job.steps * settings.epochs,
            peak=settings.lr,
            schedule=settings.schedule,
            warm_up=settings.warm_up,
        )

    def _drawn(self, epoch: int, index: int) -> Tensor | None:
        """The random numbers of photometric augmentation for each of this worker's crops; None without it."""
        settings, worker = self.job.settings, self.worker
        if not settings.photometric:
            return None
        return photometric.draw(
            share(index, batch_size=settings.batch_size, rank=worker.rank, world_size=worker.world_size),
            bands=len(self.job.spec.bands),
            strength=settings.photometric,
            seed=settings.seed,
            epoch=epoch,
        )

    def _parts(self, crops: int) -> list[slice]:
        """The crops of each pass through the network; all workers make as many passes, whatever their share."""
        count = min(self.job.settings.accumulate, self.job.settings.batch_size // self.worker.world_size)
        return [slice(k * crops // count, (k + 1) * crops // count) for k in range(count)]

    def _prepared(self, batch: Batch, part: slice, drawn: Tensor | None) -> Tensor:
        """(N, C, P, P) float32 on the device: a part of the crops as the network sees them."""
        pixels, valid = self._to_device(batch.pixels[part]), self._to_device(batch.valid[part])
        x = prepare(pixels, valid, self.job.spec)
        if drawn is not None:
            x = photometric.distort(x, valid, self._to_device(drawn[part]))
        return x.contiguous(memory_format=torch.channels_last)

    def _sharing(self, shared: bool) -> AbstractContextManager:
        """A block whose backward pass averages gradients over the workers (shared) or only adds up this worker's."""
        return nullcontext() if shared or self.worker.world_size == 1 else self.parallel.no_sync()

    def _forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        bf16, on_cpu = self.precision == "bf16", self.worker.device.type == "cpu"
        eager = not self.job.settings.compile
        gradients = FasterDepthwise() if bf16 and on_cpu and eager else nullcontext()
        try:
            with torch.autocast(self.worker.device.type, torch.bfloat16, enabled=bf16), gradients:
                return self.parallel(x)
        except ValueError as error:  # the same on every worker
            reason = str(error)
            if "more than 1 value per channel" in reason:
                reason = (
                    f"a batch of {len(x)} leaves BatchNorm a single value per channel in training; give it at least 2 "
                    "images a step (--batch_size of at least twice --accumulate)"
                )
            raise SegrayError(reason) from error

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.worker.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.worker.device, non_blocking=True)
