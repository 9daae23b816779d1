"""The settings of jobs/train.py: the data, the network, and the recipe to train it with."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from segray.flags import check_range, option, parse_range, positive
from segray.loss_terms import CLASS_WEIGHTS, LOSS_NAMES, check_loss, parse_loss
from segray.masks import MAX_SIDE
from segray.schedules import SCHEDULES, default_warm_up

# name: default (peak learning rate, weight decay); for sgd those of torchvision's reference training
OPTIMIZERS = {"adam": (1e-3, 0.0), "adamw": (1e-3, 0.01), "sgd": (0.02, 1e-4)}
MOMENTUM = 0.9  # default of sgd
PHOTOMETRIC = 0.3  # default strength of photometric augmentation
IMAGENET = "imagenet"  # the pretrained weights that a library publishes for a network's backbone
SCALES = "0.5:2"  # default range of random zoom, as in torchvision's reference training


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of jobs/train.py."""

    data: str = option("labelled data: train/ and val/ with classes.json, Cityscapes, or an OUTPUT of segment.py")
    output: str = option("where the model, metrics.jsonl, report.html and the resumable state go")
    network: str = option("network, as in unet, unet?width=32, smp/unet/resnet34", "unet")
    weights: str | None = option(
        "what to start from: the model directory of an earlier training or a file of a pretrained backbone (path or "
        f"URI), {IMAGENET} for what the library of the network's backbone publishes, or a torchvision weights name",
        None,
    )
    epochs: int = option("passes over the training images", 20)
    batch_size: int = option("crops per step, over all workers", 8)
    crop: int = option("side of the training crops in pixels; also the tile of the model", 256)
    balance: float = option("share of the crops drawn by class, so that rare classes are seen more often", 0.0)
    loss: str = option(
        f"loss: {', '.join(LOSS_NAMES)}, or a sum such as cross_entropy+0.5*lovasz",
        "cross_entropy",
    )
    class_weights: str = option(
        "weights of the classes by their share of pixels, in the losses with a value per pixel",
        "none",
        ("none", *CLASS_WEIGHTS),
    )
    aux_weight: float = option("weight of the loss of the auxiliary head, in networks that have one", 0.5)
    optimizer: str = option("optimizer", "adamw", tuple(OPTIMIZERS))
    lr: float | None = option("peak learning rate (default: 0.001; sgd 0.02)", None)
    momentum: float | None = option(f"momentum of sgd (default: {MOMENTUM})", None)
    weight_decay: float | None = option(
        "weight decay, not on norms and biases (default: adamw 0.01, sgd 0.0001; adam has none)", None
    )
    schedule: str = option("course of the learning rate after the warm-up", "cosine", tuple(SCHEDULES))
    warm_up: float | None = option(
        "share of all steps in which the learning rate rises (default: 0.05; one_cycle 0.3)", None
    )
    clip: float = option("largest gradient norm; larger gradients are scaled down to it; 0: no limit", 1.0)
    accumulate: int = option("parts that a worker's crops of a step are split into, to save memory", 1)
    ema: float = option(
        "decay of the running average of the weights, which is validated and saved: steadier than the last weights; "
        "averages less early in the run; 0: the last weights",
        0.999,
    )
    compile: bool = option("compile the network: takes a worker a minute, then is faster; on CPUs needs g++", False)
    augment: str = option(
        "zoom and mirror crops (street), turn them too (nadir), none of it (none); auto: street for Cityscapes, else "
        "nadir",
        "auto",
        ("auto", "nadir", "street", "none"),
    )
    scale_range: str | None = option(
        f"MIN:MAX of the random zoom of a crop (default: {SCALES}; 1:1 with --augment none)", None
    )
    photometric: float | None = option(
        "strength, 0 to 1, of random contrast, brightness, colour and gamma, for light, seasons and sensors unlike "
        f"the labelled ones (default: {PHOTOMETRIC}; 0 with --augment none)",
        None,
    )
    bands: tuple[int, ...] | None = option("0-based bands of the images to train on, as in 0,1,2 (default: all)", None)
    num_workers: str | None = option(
        "MIN[:MAX] training workers, as many as there is room for (default: one per GPU, or one on CPUs)", None
    )
    validators: int = option(
        "actors that validate an epoch while the next is trained, each with the resources of a worker; 0: the workers "
        "validate, between epochs",
        0,
    )
    seed: int = option("seed of every random choice", 0)
    device: str | None = option("where the network runs (default: gpu where the cluster has one)", None, ("cpu", "gpu"))
    precision: str | None = option(
        "number format of the forward pass (default: bf16 where it is fast)", None, ("bf16", "fp32")
    )
    keep: int = option("states to keep: the newest, and earlier ones in case it is damaged", 2)
    save_minutes: float = option("minutes between states saved within an epoch, for a restart to continue from", 10.0)
    max_failures: int = option("how often to restart from the newest state after a worker died", 3)
    mlflow: str | None = option("MLflow tracking URI to log the training to as well", None)
    wandb: str | None = option("Weights & Biases PROJECT or ENTITY/PROJECT to log the training to as well", None)
    overwrite: bool = option("start afresh, discarding what an earlier training left in OUTPUT", False)

    def __post_init__(self) -> None:
        self._settle()
        positive(self, "epochs", "batch_size", "crop", "lr", "accumulate", "keep", "save_minutes")
        for name in ("seed", "weight_decay", "max_failures", "validators", "aux_weight", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"--seed must be below 2**63, but is {self.seed}")
        for name in ("warm_up", "photometric", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is 0 to 1, not {getattr(self, name)}")
        for name in ("ema", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} is at least 0 and below 1, not {getattr(self, name)}")
        check_range("num_workers", self.num_workers)
        _, most = self.worker_range or (1, 1)
        if most > self.batch_size:
            raise ValueError(
                f"--num_workers {self.num_workers} is more than the {self.batch_size} crops of --batch_size"
            )
        if self.validators and self.worker_range and self.worker_range[0] < most:
            raise ValueError(
                f"--num_workers {self.num_workers} with --validators {self.validators}: Ray would count what the "
                "validators hold as free for workers; give one number of workers"
            )
        if self.accumulate > self.batch_size // most:
            raise ValueError(f"--accumulate {self.accumulate} is more than the crops of a worker in a step; lower it")
        self._check_optimizer()
        check_loss(self.loss, self.class_weights)
        if re.search(r"://[^/@]*:[^/@]*@", self.mlflow or ""):
            raise ValueError("--mlflow holds a password; give it in MLFLOW_TRACKING_PASSWORD")
        self._check_crop()

    def _check_crop(self) -> None:
        """ValueError when --scale_range is not valid, or a crop shows more than fits into memory."""
        if not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise ValueError(f"--scale_range is MIN:MAX, two positive numbers as in {SCALES}, not {self.scale_range}")
        if self.crop > MAX_SIDE or self.reach > MAX_SIDE:
            raise ValueError(
                f"--crop {self.crop} at the MIN of --scale_range {self.scale_range} shows more than {MAX_SIDE} pixels "
                "a side, the most that a crop may; lower --crop, or raise MIN"
            )

    def _check_optimizer(self) -> None:
        """ValueError when a setting has no effect on the optimizer."""
        name = self.optimizer
        if name == "adam" and self.weight_decay:
            raise ValueError(f"--weight_decay {self.weight_decay:g} has no effect on adam; leave it out, or use adamw")
        if name != "sgd" and self.momentum != MOMENTUM:  # the default, stored for every optimizer
            raise ValueError(f"--momentum {self.momentum:g} has no effect on {name}; leave it out, or use sgd")

    def _settle(self) -> None:
        """Fill in settings whose default depends on another one, so that their value is stored with the rest."""
        plain = self.augment == "none"
        lr, weight_decay = OPTIMIZERS[self.optimizer]
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": MOMENTUM,
            "warm_up": default_warm_up(self.schedule),
            "scale_range": "1:1" if plain else SCALES,
            "photometric": 0.0 if plain else PHOTOMETRIC,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """(MIN, MAX) of --num_workers."""
        return parse_range(self.num_workers)

    @property
    def trackers(self) -> dict[str, str | None]:
        """Where experiment trackers log to, by flag; None if not wanted."""
        return {"mlflow": self.mlflow, "wandb": self.wandb}

    @property
    def loss_terms(self) -> tuple[tuple[float, str], ...]:
        """The factors and names of --loss."""
        return parse_loss(self.loss)

    @property
    def reach(self) -> int:
        """Side of the largest area that a crop can show, in pixels of the image."""
        return math.ceil(self.crop / self.scales[0])

    @property
    def scales(self) -> tuple[float, float]:
        """The two numbers of --scale_range; (0, 0) if it is not MIN:MAX."""
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+):(\d+\.?\d*|\.\d+)", self.scale_range)
        return (float(match[1]), float(match[2])) if match else (0.0, 0.0)
