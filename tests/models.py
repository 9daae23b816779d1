"""Model directories for tests, written by hand as users with networks from elsewhere write them."""

from __future__ import annotations

import io
import json

import torch
from torch import nn

from segray.storage import join, publish

CLASSES = [
    {"id": 0, "name": "water", "color": [0, 0, 255]},
    {"id": 1, "name": "road", "color": [90, 90, 90]},
    {"id": 2, "name": "field", "color": [200, 200, 60]},
]


class Positional(nn.Module):
    """An adversary: its logits depend on where in the tile a pixel stands, so that every wrong tile shows."""

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
    """A model directory with program.pt2 and a hand-written model.json; its URI."""
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
