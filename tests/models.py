"""Model directories for tests, written by hand as users with networks from elsewhere write them."""

from __future__ import annotations

import io
import json

import torch
from torch import nn

from segray.inputs import InputSpec
from segray.masks import Classes
from segray.model_dir import Description, save_model
from segray.networks import build_network
from segray.storage import publish
from segray.uris import join

CLASSES = [
    {"id": 0, "name": "water", "color": [0, 0, 255]},
    {"id": 1, "name": "road", "color": [90, 90, 90]},
    {"id": 2, "name": "field", "color": [200, 200, 60]},
]


class Positional(nn.Module):
    """An adversary: its logits depend on a pixel's place in the tile, so that every misplaced tile shows."""

    def __init__(self, tile: int, bands: int = 3, classes: int = len(CLASSES)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("bias", torch.randn(1, classes, tile, tile, generator=generator) * 2)
        self.mix = nn.Conv2d(bands, classes, 5, padding=2, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(self.mix.weight.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, P, P) -> (N, K, P, P)."""
        return self.mix(x) + self.bias


def write_model(uri: str, *, tile: int = 32, overlap: int = 8, bands: int = 3) -> str:
    """Write a model directory with program.pt2 and a hand-made model.json; its URI."""
    example = (torch.zeros(2, bands, tile, tile),)
    program = torch.export.export(Positional(tile, bands), example, dynamic_shapes=({0: torch.export.Dim("n")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    spec = {"bands": list(range(bands)), "scale": 1 / 255, "mean": [0.5] * bands, "std": [0.2] * bands}
    document = {
        "format_version": 1,
        "network": {"program": "program.pt2"},
        "classes": CLASSES,
        "ignore_index": 255,
        "input": {**spec, "tile": tile, "overlap": overlap, "resolution": None},
        "metrics": {},
        "training": {},
    }
    publish(join(uri, "program.pt2"), buffer.getvalue())
    publish(join(uri, "model.json"), json.dumps(document).encode())
    return uri


def write_small_model(uri: str) -> str:
    """Write a model directory of one of the project's networks, whose masks hold all classes; its URI.

    It loads some two seconds faster than a program.
    """
    options = {"width": 8}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = build_network("encoder_decoder", options, num_classes=len(CLASSES), in_channels=3)
        network.head.bias.zero_()
        network.head.weight.sub_(network.head.weight.mean(dim=0))  # or one class would win everywhere
    spec = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.4,) * 3, std=(0.05,) * 3, tile=32, overlap=8)
    described = {"name": "encoder_decoder", "options": options}
    classes = Classes.from_json(CLASSES, 255, source="models.py")
    save_model(Description(uri=uri, network=described, classes=classes, spec=spec), network)
    return uri
