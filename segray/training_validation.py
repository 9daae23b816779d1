"""Validation during training: each worker or validator takes a part of the split, and the parts are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from segray.datasets import Sample
from segray.errors import SegrayError
from segray.inspection import spread
from segray.report import Picture
from segray.segmenter import Segmenter
from segray.training_job import Job
from segray.validation import title_of, validate

TILES_A_PASS = 16  # on a GPU
PICTURES = 4  # images shown on the page


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A result. matrix: (K, K + 1) int64 confusion matrix. pictures: of some images, the same ones every time."""

    matrix: np.ndarray
    pictures: list[Picture]


Validation = Callable[[], Validated]  # one that is under way or done; a call waits for its result
Elsewhere = Callable[[Job, dict[str, Tensor], str], Validation]  # begins to validate weights, in bf16 or fp32


def validate_part(
    job: Job,
    network: nn.Module,
    samples: Sequence[Sample],
    *,
    device: torch.device,
    precision: str,
    pool: ThreadPoolExecutor,
) -> Validated:
    """Validate some samples of the split. network: in eval mode, on the device. SegrayError: out of GPU memory."""
    segmenter = Segmenter(
        network,
        job.spec,
        num_classes=len(job.dataset.classes),
        device=device,
        precision=precision,
        batch_size=1 if device.type == "cpu" else TILES_A_PASS,
    )
    shown = spread(job.val, PICTURES)
    try:
        matrix, pictures = validate(segmenter, samples, shown=shown, read=job.read, pool=pool)
    except torch.OutOfMemoryError as error:
        raise SegrayError("validation ran out of GPU memory; lower --crop, the side of its tiles") from error
    return Validated(matrix=matrix, pictures=pictures)


def joined(job: Job, parts: Sequence[Validated]) -> Validated:
    """The result for the whole split from its parts: the same, however many there are."""
    titles = [title_of(sample) for sample in spread(job.val, PICTURES)]
    pictures = [picture for part in parts for picture in part.pictures]
    pictures.sort(key=lambda picture: titles.index(picture.title))
    return Validated(matrix=sum(part.matrix for part in parts), pictures=pictures)
