"""Legends, ids and colours, and palette PNG bytes: here, in Pillow, damaged and foreign."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from tiles import encoded

from segray.errors import LabelError, SegrayError
from segray.masks import Classes, colors_to_mask, decode_png, encode_png, ids_to_mask, palette

CLASSES = Classes(names=("water", "road", "tree"), colors=((0, 0, 255), (9, 9, 9), (0, 128, 0)))


def entry(index: object, name: str, color: object) -> dict:
    return {"id": index, "name": name, "color": color}


LEGEND = {
    "classes": [entry(1, "b", [4, 5, 6]), entry(0, "a", [1, 2, 3]), entry(7, "void", [0, 0, 0])],
    "ignore_index": 7,
}


def test_parse_orders_classes_and_sets_ignore_colours_apart() -> None:
    expected = Classes(names=("a", "b"), colors=((1, 2, 3), (4, 5, 6)), ignore_index=7, ignore_colors=((0, 0, 0),))
    assert Classes.parse(json.dumps(LEGEND), source="x") == expected
    assert Classes.parse(json.dumps(LEGEND).encode("utf-8-sig"), source="x") == expected
    assert len(expected) == 2


def test_to_json_and_back() -> None:
    assert Classes.from_json(json.loads(json.dumps(CLASSES.to_json()))) == CLASSES


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[]", "an object"),
        ("{}", "no legend"),
        ({"classes": []}, "1 to 255"),
        ({"classes": [{"id": 0, "name": "a"}]}, "'color'"),
        ({"classes": [{"id": 0, "color": [0, 0, 0]}]}, "'name'"),
        ({"classes": [{"name": "a", "color": [0, 0, 0]}]}, "'id'"),
        ({"classes": [entry(1, "a", [0, 0, 0])]}, "[1]"),
        ({"classes": [entry(0, "a", [0, 0, 0]), entry(0, "b", [1, 1, 1])]}, "[0, 0]"),
        ({"classes": [entry("0", "a", [0, 0, 0])]}, "['0']"),
        ({"classes": [entry(0, "a", [0, 0, 0]), entry(1, "a", [1, 1, 1])]}, "unique"),
        ({"classes": [entry(0, "a", [0, 0])]}, "three integers"),
        ({"classes": [entry(0, "a", [0, 0, 256])]}, "three integers"),
        ({"classes": [entry(0, "a", "#50E3C2")]}, "three integers"),
        ({"classes": [entry(0, "a", 7)]}, "no legend"),
        ({"classes": [entry(0, "a", [0, 0, 0]), entry(255, "void", [0, 0])]}, "three integers"),
        ({"classes": ["water"]}, "no legend"),
        ({"classes": [entry(0, "\ud800", [0, 0, 0])]}, "surrogates"),
        ({"classes": [entry(0, "a", [0, 0, 0])], "ignore_index": float("inf")}, "no legend"),
        ("[" * 10**5, "not JSON"),
        ({"classes": [entry(0, "a", [0, 0, 0])], "ignore_index": None}, "no legend"),
    ],
)
def test_bad_legends_are_refused_by_name(text: object, word: str) -> None:
    text = json.dumps(text) if isinstance(text, dict) else text
    with pytest.raises(SegrayError) as error:
        Classes.parse(text, source="here/classes.json")
    assert "here/classes.json" in str(error.value)
    assert word in str(error.value)


@pytest.mark.parametrize("wrong", [{"colors": ((0, 0, 0),)}, {"ignore_index": 1}])
def test_classes_that_contradict_themselves_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Classes(**{"names": ("a", "b"), "colors": ((0, 0, 0), (1, 1, 1)), **wrong})


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64"])
@pytest.mark.parametrize("ignore_index", [255, 100])
def test_ids_become_a_mask(dtype: str, ignore_index: int) -> None:
    classes = Classes(names=CLASSES.names, colors=CLASSES.colors, ignore_index=ignore_index)
    mask = ids_to_mask(np.array([[0, 1], [2, ignore_index]], dtype), classes, source="x")
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1], [2, 255]]


def test_a_negative_ignore_index() -> None:
    classes = Classes(names=CLASSES.names, colors=CLASSES.colors, ignore_index=-1)
    assert ids_to_mask(np.array([[0, -1]], np.int8), classes, source="x").tolist() == [[0, 255]]
    assert ids_to_mask(np.array([[0, 2]], np.uint8), classes, source="x").tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("ids", "ignore_index", "value"),
    [
        (np.array([[0, 3]], np.uint8), 255, "3"),
        (np.array([[0, 255]], np.uint8), 100, "255"),
        (np.array([[0, -1]], np.int16), 255, "-1"),
        (np.array([[0, 256]], np.uint16), 255, "256"),  # as a byte it would be 0
        (np.array([[0, 1.5]], np.float32), 255, "1.5"),
    ],
)
def test_unknown_ids_are_errors(ids: np.ndarray, ignore_index: int, value: str) -> None:
    classes = Classes(names=CLASSES.names, colors=CLASSES.colors, ignore_index=ignore_index)
    with pytest.raises(LabelError, match=rf"masks/a\.png holds the id {value},"):
        ids_to_mask(ids, classes, source="masks/a.png")


@settings(deadline=None)
@given(arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 255])))
def test_colours_become_the_mask_that_they_were_painted_from(mask: np.ndarray) -> None:
    classes = Classes(names=CLASSES.names, colors=CLASSES.colors, ignore_colors=((255, 255, 255), (1, 0, 0)))
    table = palette(classes)
    table[255] = (255, 255, 255)
    assert np.array_equal(colors_to_mask(table[mask], classes, source="x"), mask)


def test_unknown_colours_are_errors_and_never_the_nearest() -> None:
    rgb = np.array([[[0, 0, 255], [0, 0, 254]]], np.uint8)
    with pytest.raises(LabelError, match=r"masks/a\.png holds the colour \(0, 0, 254\), .* with the id 255 if it"):
        colors_to_mask(rgb, CLASSES, source="masks/a.png")


@pytest.mark.parametrize(("colors", "ignored"), [(((1, 1, 1), (1, 1, 1)), ()), (((1, 1, 1), (2, 2, 2)), ((2, 2, 2),))])
def test_colours_that_two_entries_share_are_errors(colors: tuple, ignored: tuple) -> None:
    classes = Classes(names=("a", "b"), colors=colors, ignore_colors=ignored)
    with pytest.raises(LabelError, match="share"):
        colors_to_mask(np.ones((1, 1, 3), np.uint8), classes, source="x")


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_png_round_trip_here_and_in_pillow(mask: np.ndarray) -> None:
    data = encode_png(mask, CLASSES)
    assert np.array_equal(decode_png(data), mask)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)


def test_pillow_sees_the_colours_and_a_transparent_ignore() -> None:
    mask = np.array([[0, 1, 2, 255, 9]], np.uint8)
    rgba = np.asarray(Image.open(io.BytesIO(encode_png(mask, CLASSES))).convert("RGBA"))
    assert rgba[0, :3, :3].tolist() == [list(color) for color in CLASSES.colors]
    assert rgba[0, :, 3].tolist() == [255, 255, 255, 0, 255]


def test_same_mask_same_bytes_and_a_mask_of_one_class_is_small() -> None:
    mask = np.ones((512, 512), np.uint8)
    assert encode_png(mask, CLASSES) == encode_png(mask[::-1], CLASSES)
    assert len(encode_png(mask, CLASSES)) < 2500


def pillow_png(mode: str) -> bytes:
    return encoded(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode))


def forged(height: int, width: int, inflated: bytes) -> bytes:
    """A PNG whose header claims height x width and whose rows are `inflated`."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)), (b"IDAT", zlib.compress(inflated))]
    body = b"".join(struct.pack(">I4s", len(data), name) + data + bytes(4) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


WHOLE = encode_png(np.arange(100, dtype=np.uint8).reshape(10, 10), CLASSES)
FOREIGN = {
    "empty": b"",
    "text": b"no picture at all, just some text",
    "jpeg signature": b"\xff\xd8\xff" + WHOLE[3:],
    "signature alone": WHOLE[:8],
    "half": WHOLE[: len(WHOLE) // 2],
    "cut in the last chunks": WHOLE[:-20],
    "grey": pillow_png("L"),
    "colour": pillow_png("RGB"),
    "row filters": forged(2, 3, b"\x01abc\x00abc"),
    "too few rows": forged(3, 3, b"\x00abc"),
    "no pixel": forged(0, 3, b""),
    "too many rows": forged(1, 3, b"\x00abc" + bytes(10_000_000)),
    "claims 10^18 pixels": forged(2**30, 2**30, b"\x00abc"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_any_other_png_is_refused(name: str) -> None:
    with pytest.raises(SegrayError, match="a mask"):
        decode_png(FOREIGN[name])


def test_a_forged_png_that_is_whole_is_read() -> None:
    assert decode_png(forged(2, 3, b"\x00abc\x00abd")).tolist() == [[97, 98, 99], [97, 98, 100]]


def test_no_more_is_inflated_than_the_header_announces() -> None:
    bomb = forged(10, 10, bytes(200_000_000))
    tracemalloc.start()
    with pytest.raises(SegrayError, match="too late"):
        decode_png(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(bomb)
