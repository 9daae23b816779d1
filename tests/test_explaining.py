"""The window with the most errors, found as brute force finds it, and what an answer shows of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import write_model
from PIL import Image

from segray.datasets import open_dataset
from segray.explaining import Question, explain, most_errors
from segray.grid import Window
from segray.inputs import InputSpec, prepare
from segray.masks import Classes, encode_png
from segray.model_dir import Description, load_network, read_description, save_model
from segray.networks import build_network

CLASSES = Classes(names=("water", "road", "field"), colors=((0, 0, 255), (90, 90, 90), (200, 200, 60)))
SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=64, overlap=8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 50), st.integers(0, 99))
def test_no_window_of_its_size_has_more_errors(height: int, width: int, step: int, tile: int, seed: int):
    rng = np.random.default_rng(seed)
    mask, truth = rng.choice(np.array([0, 1, 255], np.uint8), (2, height, width), p=(0.6, 0.2, 0.2))
    small = np.s_[::step, ::step]
    found = most_errors(mask[small], truth[small], step=step, tile=tile, size=(height, width))
    wrong = ((mask != truth) & (mask != 255) & (truth != 255))[small]
    if not wrong.any():
        assert found is None
        return
    assert found.height <= tile and found.width <= tile
    assert found.row_off + found.height <= height and found.col_off + found.width <= width
    rows, cols = (min(n, max(1, tile // step)) for n in wrong.shape)
    most = max(
        wrong[row : row + rows, col : col + cols].sum()
        for row in range(wrong.shape[0] - rows + 1)
        for col in range(wrong.shape[1] - cols + 1)
    )
    row, col = found.row_off // step, found.col_off // step
    assert wrong[row : row + rows, col : col + cols].sum() == most


def labelled(folder: Path) -> str:
    """One image of noise, of which a part is not labelled, and a transparent corner."""
    rng = np.random.default_rng(3)
    for kind in ("images", "masks"):
        (folder / "val" / kind).mkdir(parents=True)
    pixels = rng.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[60:, 90:, 3] = 0
    Image.fromarray(pixels).save(folder / "val" / "images" / "a.png")
    truth = rng.integers(0, 3, (90, 120)).astype(np.uint8)
    truth[:30] = 255
    (folder / "val" / "masks" / "a.png").write_bytes(encode_png(truth, CLASSES))
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES.to_json()}))
    return str(folder)


def model_at(uri: str) -> Description:
    """A model with random weights."""
    torch.manual_seed(0)
    options = {"width": 4}
    network = build_network("unet", options, num_classes=3, in_channels=3)
    described = {"name": "unet", "options": options}
    save_model(Description(uri=uri, network=described, classes=CLASSES, spec=SPEC), network)
    return read_description(uri)


def test_an_answer_shows_the_window_and_its_most_frequent_error(tmp_path: Path):
    description, dataset = model_at(str(tmp_path / "model")), open_dataset(labelled(tmp_path / "data"))
    (sample,) = dataset.samples("val")
    question = Question(sample=sample, window=Window(26, 56, 64, 64), note="worst: mIoU 0.100")
    (picture,) = explain(description, dataset, [question], explicit_bands=False)
    pixels = np.asarray(Image.open(tmp_path / "data" / "val" / "images" / "a.png"))[26:, 56:]
    valid, bands = pixels[..., 3] > 0, torch.from_numpy(pixels[..., :3].transpose(2, 0, 1).copy())
    x = prepare(bands[None], torch.from_numpy(valid)[None], SPEC)
    mask = load_network(description)(x)[0].argmax(dim=0).numpy()
    assert (picture.mask == np.where(valid, mask, 255)).all()
    assert (picture.image == pixels[..., :3]).all()
    assert (picture.truth[:4] == 255).all() and (picture.truth[~valid] == 255).all()
    pairs = [(right, found) for right in range(3) for found in range(3) if right != found]
    counts = {pair: ((picture.truth == pair[0]) & (picture.mask == pair[1])).sum() for pair in pairs}
    right, found = max(pairs, key=counts.get)
    names = CLASSES.names
    assert picture.note == (
        f"worst: mIoU 0.100; {counts[right, found]:,} pixels of {names[right]} taken for {names[found]}"
    )
    assert picture.evidence.shape == (64, 64) and np.abs(picture.evidence).max() > 0.5


def test_what_has_no_error_and_what_is_a_program_have_no_answer(tmp_path: Path):
    dataset = open_dataset(labelled(tmp_path / "data"))
    (sample,) = dataset.samples("val")
    unlabelled = Question(sample=sample, window=Window(0, 0, 30, 64), note="")
    assert explain(model_at(str(tmp_path / "model")), dataset, [unlabelled], explicit_bands=False) == []
    program = read_description(write_model(str(tmp_path / "program")))
    wrong = Question(sample=sample, window=Window(30, 0, 32, 32), note="")
    assert explain(program, dataset, [wrong], explicit_bands=False) == []
