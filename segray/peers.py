"""The plain loop over tiles that most people write first, to compare with: tile by tile, with sums of the whole scene.

It uses the same tiles and weights as segray, so its masks must be the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import rasterio

from segray.blend import axis_weights
from segray.errors import SegrayError
from segray.grid import Lattice, reflect
from segray.inputs import InputSpec
from segray.masks import IGNORE
from segray.model_dir import load_network, read_description
from segray.shards import mask_of, read_masks, window_of
from segray.stopwatch import peak_memory
from segray.uris import local_path

if TYPE_CHECKING:
    import torch
    from torch import nn


def check_local(*uris: str) -> None:
    """SegrayError unless all of them are local, as the plain loop needs."""
    for uri in uris:
        if local_path(uri) is None:
            raise SegrayError(f"the plain loop of --peer reads and writes local files, but {uri} is on a store")


def plain_loop(
    images: list[str], masks: list[str], *, model: str, spec: InputSpec, blend: str, device: str = "cpu"
) -> dict:
    """Segment rasters in fp32, each into a mask GeoTIFF; gives {"seconds", "peak_memory"} (bytes).

    The seconds are those of the work alone: libraries are imported and the model is loaded before. Images and masks
    are local paths (see `check_local`).
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    description = read_description(model)
    network = load_network(description).to(device)
    start = time.perf_counter()
    for image, mask in zip(images, masks):
        os.makedirs(os.path.dirname(mask), exist_ok=True)
        _segment(image, mask, network=network, classes=len(description.classes), spec=spec, lattice=spec.lattice(blend))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_memory": peak_memory()}


def agreement(output: str, shards: int, *, fmt: str, masks: dict[str, str]) -> float:
    """The share of pixels on which an output's mask shards agree with mask GeoTIFFs. masks: image URI -> GeoTIFF."""
    same = total = 0
    for shard in range(shards):
        for row, png in read_masks(output, shard, fmt):
            ours = mask_of(row, png)
            window = window_of(row)
            with rasterio.open(masks[row["image"]]) as source:
                theirs = source.read(1, window=(window.rows, window.cols))
            same += int((ours == theirs).sum())
            total += ours.size
    return same / total


def _segment(image: str, mask: str, *, network: nn.Module, classes: int, spec: InputSpec, lattice: Lattice) -> None:
    import torch

    device = next(network.parameters()).device
    with rasterio.open(image) as source, torch.inference_mode():
        height, width = source.height, source.width
        sums = np.zeros((classes, height, width), np.float32)
        weight = np.zeros((height, width), np.float32)
        has_data = np.zeros((height, width), bool)
        for rows, cols, weights in _tiles(height, width, lattice):
            x, valid = _read(source, rows, cols, spec)
            probability = network(x.to(device)).softmax(dim=1)[0].cpu().numpy()
            down, across = min(lattice.tile, height - rows[0]), min(lattice.tile, width - cols[0])
            part = np.s_[rows[0] : rows[0] + down, cols[0] : cols[0] + across]
            sums[(slice(None), *part)] += (probability * weights)[:, :down, :across]
            weight[part] += weights[:down, :across]
            has_data[part] |= valid[:down, :across]
        sums /= weight
        labels = np.where(has_data, sums.argmax(axis=0), IGNORE).astype(np.uint8)
        profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
        place = {"crs": source.crs, "transform": source.transform, "tiled": True, "compress": "deflate"}
    with rasterio.open(mask, "w", **profile, **place) as target:
        target.write(labels, 1)


def _tiles(height: int, width: int, lattice: Lattice) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, columns, weights) of each tile: the source pixels at its positions, and its (P, P) weights."""
    down, across = lattice.count(height), lattice.count(width)
    for row, col in product(range(down), range(across)):
        weights = [
            axis_weights(lattice, first=index == 0, last=index == count - 1)
            for index, count in ((row, down), (col, across))
        ]
        top, left = row * lattice.stride, col * lattice.stride
        rows, cols = reflect(top, top + lattice.tile, height), reflect(left, left + lattice.tile, width)
        yield rows, cols, weights[0][:, None] * weights[1]


def _read(
    source: rasterio.DatasetReader, rows: np.ndarray, cols: np.ndarray, spec: InputSpec
) -> tuple[torch.Tensor, np.ndarray]:
    """The (1, C, P, P) input of the network and the (P, P) validity of a tile, reflected beyond the image's edges."""
    import torch

    window = slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1)
    part = np.s_[(rows - rows.min())[:, None], cols - cols.min()]
    pixels = source.read([band + 1 for band in spec.bands], window=window)[(slice(None), *part)]
    valid = (source.dataset_mask(window=window) > 0)[part]
    mean, std = (np.float32(values).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    x = np.where(valid, (pixels * np.float32(spec.scale) - mean) / std, np.float32(0))
    return torch.from_numpy(x[None]), valid
