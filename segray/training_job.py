"""What is trained and on what: everything that follows from settings and data and is the same on every worker."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from segray.augment import Augment
from segray.datasets import Dataset, Labelled, Sample
from segray.errors import SegrayError
from segray.first_weights import first_weights
from segray.inputs import InputSpec
from segray.inspection import Inspection, counted_units
from segray.loading import Batch, CropLoader, ImageCache
from segray.loss_terms import class_weights
from segray.model_dir import Description
from segray.networks import build_network, load_backbone, parse_network
from segray.reading import read_labelled
from segray.sampling import balanced, epoch_order, steps_per_epoch
from segray.settings import TrainSettings
from segray.training_state import compared
from segray.uris import join
from segray.versions import versions


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings, the data and its inspection. data: the fingerprint of the data.

    train: samples, large scenes as pieces (see `Inspection.train`). val: large scenes as blocks (see `Inspection.val`).
    """

    settings: TrainSettings
    dataset: Dataset
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    inspection: Inspection
    data: str

    @property
    def spec(self) -> InputSpec:
        """The input spec of the network."""
        return self.inspection.spec(self.settings.crop)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        crops = self.inspection.crops_per_image
        return steps_per_epoch(len(self.train), crops_per_image=crops, batch_size=self.settings.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """(steps * batch_size, 2) int64: image and class of every crop of an epoch; see `sampling.balanced`."""
        images, crops, together = len(self.train), self.inspection.crops_per_image, self.inspection.together
        stream = {"seed": self.settings.seed, "epoch": epoch}
        positions = self.steps * self.settings.batch_size
        order = epoch_order(images, crops_per_image=crops, positions=positions, together=together, **stream)
        counts = np.zeros((images if self.settings.balance else 0, len(self.dataset.classes)), np.int64)
        if self.settings.balance:
            counts[counted_units(images, balance=self.settings.balance)] = self.inspection.class_counts
        fit = images <= together  # then each is decoded only once, whatever the order
        return balanced(
            order,
            counts,
            part=self.settings.balance,
            span=together * crops,
            crops=1 if fit else crops,
            **stream,
        )

    def read(self, sample: Sample) -> Labelled:
        """A sample, read as the network's input spec requires."""
        return read_labelled(self.dataset, sample, self.spec, explicit_bands=self.settings.bands is not None)

    def augment(self) -> Augment:
        """What may happen to a crop."""
        settings = self.settings
        return Augment.named(
            settings.augment, crop=settings.crop, scale_range=settings.scales, nadir=self.dataset.nadir
        )

    def batches(self, pool: ThreadPoolExecutor, *, steps: range, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A worker's crops of some steps, numbered from the start of the training; see `CropLoader.batches`."""
        loader = CropLoader(
            cache=ImageCache(lambda index: self.read(self.train[index])),
            augment=self.augment(),
            pool=pool,
            batch_size=self.settings.batch_size,
            rank=rank,
            world_size=world_size,
            seed=self.settings.seed,
        )
        return loader.batches(self.order, steps=steps, per_epoch=self.steps)

    def class_weights(self) -> tuple[float, ...] | None:
        """The weight of each class in the loss, from its labelled pixels; None if all weigh the same."""
        return class_weights(self.settings.class_weights, self.inspection.class_pixels)

    def network(self, *, pretrained: bool = True) -> nn.Module:
        """The network before its first step: random weights from the seed, replaced by the pretrained ones that fit.

        pretrained: False if a state will be loaded into it anyway; the pretrained weights may then be gone.
        """
        settings = self.settings if pretrained else replace(self.settings, weights=None)
        return initial_network(settings, bands=len(self.inspection.bands), classes=len(self.dataset.classes))

    def description(self, row: dict, *, precision: str) -> Description:
        """What model.json says of the network after an epoch; row: the epoch's row of metrics.jsonl."""
        name, options = parse_network(self.settings.network)
        metrics = {name: row[name] for name in ("val_miou", "val_iou", "classes_in_mean", "pixel_accuracy")}
        training = {
            "settings": compared(self.settings),
            "data": self.data,
            "class_pixels": dict(zip(self.dataset.classes.names, self.inspection.class_pixels)),
            "precision": precision,
            "epoch": row["epoch"],
            "step": row["step"],
            "versions": versions(),
        }
        return Description(
            uri=join(self.settings.output, "model"),
            network={"name": name, "options": options},
            classes=self.dataset.classes,
            spec=self.spec,
            metrics=metrics,
            training=training,
        )


def initial_network(settings: TrainSettings, *, bands: int, classes: int) -> nn.Module:
    """See `Job.network`; SegrayError when the network or the pretrained weights cannot be used."""
    torch.manual_seed(settings.seed)
    try:
        name, options = parse_network(settings.network)
        network = build_network(name, options, num_classes=classes, in_channels=bands)
        if settings.weights:
            load_backbone(network, first_weights(settings))
    except ValueError as error:
        raise SegrayError(str(error)) from error
    return network
