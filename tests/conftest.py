"""Small labelled data for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.masks import encode_png
from segray.storage import join, publish
from segray.synthetic import CLASSES, scene

SPLITS = {"train": 4, "val": 2, "test": 2}


def png(array: np.ndarray) -> bytes:
    """The bytes of a PNG that holds an array exactly: (H, W) of 8 or 16 bit, or (H, W, 3 or 4) of 8 bit."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def write_folder() -> Callable[[str], str]:
    """A function that writes a labelled folder of synthetic scenes, 96 x 96 pixels, to a URI and returns it."""

    def write(uri: str) -> str:
        publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES.to_json()}).encode())
        for number, (split, count) in enumerate(SPLITS.items()):
            for k in range(count):
                image, mask = scene(100 * number + k, 96, 96)
                publish(join(uri, split, "images", f"s{k}.png"), png(image))
                publish(join(uri, split, "masks", f"s{k}.png"), encode_png(mask, CLASSES))
        return uri

    return write


@pytest.fixture
def labelled_folder(write_folder: Callable[[str], str], tmp_path: Path) -> str:
    """The path of a labelled folder of synthetic scenes: 4 to train on, 2 to validate, 2 to test."""
    return write_folder(str(tmp_path / "labelled"))
