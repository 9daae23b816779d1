"""Why a model errs: of an image the tile with the most errors, and the evidence for the most frequent one there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from segray.archives.images import read_for
from segray.datasets import Dataset, Sample
from segray.grid import Window, reflect
from segray.inputs import prepare
from segray.masks import IGNORE
from segray.metrics import confusion_matrix
from segray.model_dir import Description, load_network
from segray.report import Picture, for_eyes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Question:
    """A window of an image to explain. note: why the image is shown."""

    sample: Sample
    window: Window
    note: str


def most_errors(mask: np.ndarray, truth: np.ndarray, *, step: int, tile: int, size: tuple[int, int]) -> Window | None:
    """The window of about a tile with the most errors in an image of that size; None without any error.

    mask, truth: (h, w) uint8 of every `step`-th pixel of the image.
    """
    wrong = (mask != truth) & (mask != IGNORE) & (truth != IGNORE)
    if not wrong.any():
        return None
    height, width = (min(length, max(1, tile // step)) for length in wrong.shape)
    sums = np.pad(wrong.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    counts = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    row, col = (int(place) * step for place in np.unravel_index(counts.argmax(), counts.shape))
    return Window(row, col, min(height * step, tile, size[0] - row), min(width * step, tile, size[1] - col))


def explain(
    description: Description, dataset: Dataset, questions: Sequence[Question], *, explicit_bands: bool
) -> list[Picture]:
    """Pictures with evidence of the windows in which the network errs, computed on the CPU in fp32.

    It sees a window alone, as a tile, so its mask may differ from that of the image. None of an exported program, whose
    stages nobody knows. SegrayError when the model, an image or a mask cannot be read.
    """
    if "program" in description.network:
        return []
    network = load_network(description).requires_grad_(False)
    pictures = (_explained(description, network, dataset, question, explicit_bands) for question in questions)
    return [picture for picture in pictures if picture is not None]


def _explained(
    description: Description, network: nn.Module, dataset: Dataset, question: Question, explicit_bands: bool
) -> Picture | None:
    import torch

    from segray.evidence import evidence

    sample, window, names = question.sample, question.window, description.classes.names
    raster = read_for(sample.image, description.spec, part=sample.part, window=window, explicit_bands=explicit_bands)
    rows, cols = window.within(raster.window)
    pixels, valid = np.ascontiguousarray(raster.pixels[:, rows, cols]), np.ascontiguousarray(raster.valid[rows, cols])
    truth = dataset.read_mask(replace(sample, size=(raster.height, raster.width), window=window))
    down, across = (torch.from_numpy(reflect(0, description.spec.tile, size)) for size in valid.shape)
    x_1CHW = prepare(torch.from_numpy(pixels)[None], torch.from_numpy(valid)[None], description.spec)
    x_1CHW = x_1CHW.index_select(2, down).index_select(3, across)  # a tile, as `Lattice` has it at an image's edge
    inside = np.s_[: window.height, : window.width]
    with torch.no_grad():
        mask = network(x_1CHW)[0].argmax(dim=0).numpy().astype(np.uint8)[inside]
    mask[~valid] = truth[~valid] = IGNORE
    errors = confusion_matrix(truth, mask, len(names))[:, : len(names)]
    np.fill_diagonal(errors, 0)
    right, found = map(int, np.unravel_index(errors.argmax(), errors.shape))
    if not errors.any():
        return None
    at = torch.zeros(x_1CHW.shape[2:], dtype=torch.bool)
    at[inside] = torch.from_numpy((truth == right) & (mask == found))
    heat = evidence(network, x_1CHW, at, chosen=found, other=right)
    if heat is None:
        return None
    note = f"{question.note}; {errors[right, found]:,} pixels of {names[right]} taken for {names[found]}"
    image = for_eyes(pixels, valid)
    return Picture(
        title=sample.key,
        image=image,
        mask=mask,
        truth=truth,
        evidence=heat[inside].copy(),
        note=note.removeprefix("; "),
    )
