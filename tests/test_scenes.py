"""Scenes are put together from shards as they were cut, with the image's own georeference."""

from __future__ import annotations

import os
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_shards import CLASSES, UTM, Image, ids, scenes_of, write_masks

from segray.errors import SegrayError
from segray.grid import Window, windows
from segray.masks import decode_png
from segray.scenes import Masks, Scene, SceneReader, open_masks, pieces_of, scene_in, whole
from segray.shards import (
    CONFIDENCE,
    MaskRow,
    Place,
    failed_row,
    read_masks,
    read_metadata,
    shard_uri,
    write_shard,
)
from segray.storage import publish, read_bytes, remove
from segray.uris import join

BIG = Image(uri="/a/big.tif", mask=ids(230, 190), crs="EPSG:32633", transform=UTM)
SMALL = [Image(uri=f"/a/s{k}.png", mask=ids(40 + k, 30, seed=k)) for k in range(4)]


def pixels(masks: Masks, scene: Scene) -> np.ndarray:
    """All pixels of a scene."""
    return SceneReader(masks, scene).read(Window(0, 0, scene.height, scene.width))


@pytest.mark.parametrize("formats", ["parquet", "png", "png,parquet"])
@pytest.mark.parametrize(("window", "rows"), [(1000, 1), (100, 1), (100, 2), (64, 100), (33, 7)])
def test_scenes_are_those_that_were_cut(tmp_path, window, rows, formats):
    images = [SMALL[0], BIG, *SMALL[1:]]
    uri = write_masks(str(tmp_path), images, archive="/a", window=window, rows_a_shard=rows, formats=formats)
    masks = open_masks(uri)
    assert (masks.archive, masks.classes) == ("/a", CLASSES)
    found = scenes_of(masks)
    assert [scene.image for scene in found] == [image.uri for image in images]
    for scene, image in zip(found, images):
        assert (scene.height, scene.width) == image.mask.shape
        assert (scene.crs, scene.transform, scene.error) == (image.crs, image.transform, None)
        assert scene.is_usable
        assert (pixels(masks, scene) == image.mask).all()
        reader = SceneReader(masks, scene)
        for piece in (piece for piece in scene.pieces if piece.status == "ok"):
            assert (reader.piece(piece) == image.mask[piece.window.rows, piece.window.cols]).all()


def test_strips_of_a_wide_scene_decode_each_window_once(tmp_path, monkeypatch):
    wide = Image(uri="/a/wide.png", mask=ids(20, 400))
    masks = open_masks(write_masks(str(tmp_path), [wide], archive="/a", window=10))
    (scene,) = scenes_of(masks)
    decoded = []
    monkeypatch.setattr("segray.scenes.decode_png", lambda *png: decoded.append(png) or decode_png(*png))
    reader = SceneReader(masks, scene)
    for top in range(0, 20, 4):  # the third strip lies in both rows of windows
        assert (reader.read(Window(top, 0, 4, 400)) == wide.mask[top : top + 4]).all()
    assert len(decoded) == sum(piece.status == "ok" for piece in scene.pieces) > 60


@settings(deadline=None, max_examples=60)
@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 400), st.integers(1, 400))
def test_any_window_is_read_also_beyond_the_edges(row, col, height, width):
    masks, scene = big_scene()
    padded = np.pad(BIG.mask, 1000, constant_values=255)
    window = Window(row, col, height, width)
    expected = padded[1000 + row : 1000 + row + height, 1000 + col : 1000 + col + width]
    assert (SceneReader(masks, scene).read(window) == expected).all()


def big_scene() -> tuple[Masks, Scene]:
    """The big scene in windows that no lattice of the reader fits."""
    uri = write_masks("memory://scenes", [BIG], archive="/a", window=77)
    masks = open_masks(uri)
    return masks, scenes_of(masks)[0]


def test_a_scene_of_several_shards_is_put_together_once_for_all_windows(tmp_path, monkeypatch):
    masks = open_masks(write_masks(str(tmp_path), [SMALL[0], BIG], archive="/a", window=20, rows_a_shard=3))
    joined, shards, parts = [], range(masks.shards), windows(*BIG.mask.shape, 50)
    monkeypatch.setattr("segray.scenes.whole", lambda parts: joined.append(1) or whole(parts))
    found = {window: scene_in(masks, BIG.uri, shards, window) for window in parts}
    assert len(joined) == 1 + len(shards)  # the scene, and what each shard holds of any
    for window, scene in found.items():
        assert all(piece.window.meets(window) for piece in scene.pieces)
        assert (SceneReader(masks, scene).read(window) == BIG.mask[window.rows, window.cols]).all()


def test_windows_are_found_where_they_touch_several_cells(tmp_path):
    mask = np.full((50, 9000), 255, np.uint8)
    mask[:, 4090:4100], mask[20, 8999] = 1, 2
    uri = write_masks(str(tmp_path), [Image(uri="/a/wide.tif", mask=mask)], archive="/a", window=3000)
    masks = open_masks(uri)
    reader = SceneReader(masks, scenes_of(masks)[0])
    assert (reader.read(Window(0, 4000, 50, 1000)) == mask[:, 4000:5000]).all()
    assert [piece.window.col_off for piece in reader.pieces(Window(0, 0, 50, 9000))] == [3000, 6000]  # 0 has no data
    assert not reader.pieces(Window(0, 0, 50, 3000))


@pytest.mark.parametrize("failed", [(0,), (5,), (0, 1, 2)])
def test_a_scene_that_failed_in_part_has_its_size_and_place_and_a_reason(tmp_path, failed):
    image = Image(uri=BIG.uri, mask=BIG.mask, crs=BIG.crs, transform=UTM, failed=failed)
    masks = open_masks(write_masks(str(tmp_path), [image], archive="/a"))
    (scene,) = scenes_of(masks)
    assert (scene.height, scene.width, scene.crs, scene.error) == (230, 190, "EPSG:32633", "it is torn")
    assert scene.is_usable
    assert scene.transform == pytest.approx(UTM, rel=1e-15)
    for number, piece in enumerate(scene.pieces):
        part = pixels(masks, scene)[piece.window.rows, piece.window.cols]
        expected = 255 if number in failed else BIG.mask[piece.window.rows, piece.window.cols]
        assert (part == expected).all()


def test_a_scene_that_failed_unmeasured_is_not_usable(tmp_path):
    write_masks(str(tmp_path), [BIG], archive="/a")
    row = failed_row(Place(image="/a/x.tif", etag=""), Window(0, 0, 0, 0), "the file is empty")
    metadata = open_masks(str(tmp_path)).metadata
    write_shard(str(tmp_path), 0, rows=[row], formats=["parquet"], metadata=metadata)
    (scene,) = pieces_of(open_masks(str(tmp_path)), 0)
    assert (scene.height, scene.width, scene.error) == (0, 0, "the file is empty")
    assert not scene.is_usable


def test_the_digest_follows_the_masks_and_not_their_place(tmp_path):
    def digest(folder: str, image: Image) -> str:
        return open_masks(write_masks(str(tmp_path / folder), [image], archive="/a")).digest

    assert digest("1", BIG) == digest("2", BIG) != digest("3", SMALL[0])


def test_what_is_no_finished_segmentation_is_refused(tmp_path):
    uri = str(tmp_path)
    with pytest.raises(SegrayError, match="holds no summary.json; give the OUTPUT"):
        open_masks(uri)
    publish(join(uri, "summary.json"), b"{}")
    with pytest.raises(SegrayError, match="is no summary of a segmentation"):
        open_masks(uri)
    for text in (b"[1", b"[" * 10**5):
        publish(join(uri, "summary.json"), text)
        with pytest.raises(SegrayError, match="is no summary of a segmentation"):
            open_masks(uri)
    write_masks(uri, [BIG], archive="/a")
    os.remove(shard_uri(uri, 1, "parquet"))
    with pytest.raises(SegrayError, match="holds 1 of 2 shards"):
        open_masks(uri)
    remove(join(uri, "masks"))
    with pytest.raises(SegrayError, match="holds 0 of 2 shards"):
        open_masks(uri)


def test_other_files_beside_the_shards_do_not_count(tmp_path):
    uri = write_masks(str(tmp_path), [BIG], archive="/a")
    data = read_bytes(shard_uri(uri, 0, "parquet"))
    for name in ("old/shard-00000000.parquet", "all.parquet"):
        publish(join(uri, "masks", name), data)
    assert [scene.image for scene in scenes_of(open_masks(uri))] == [BIG.uri]
    os.remove(shard_uri(uri, 1, "parquet"))
    with pytest.raises(SegrayError, match="holds 1 of 2 shards"):
        open_masks(uri)


def test_a_damaged_shard_is_named(tmp_path):
    uri = write_masks(str(tmp_path), [BIG], archive="/a", rows_a_shard=100)
    masks, path = open_masks(uri), Path(shard_uri(uri, 0, "parquet"))
    (scene,) = scenes_of(masks)
    path.write_bytes(b"PAR1" + bytes(16) + path.read_bytes()[20:])  # no page begins so; Arrow has no error for it
    for read in (lambda: scenes_of(masks), lambda: pixels(masks, scene)):
        with pytest.raises(SegrayError, match="shard 0 of .* is damaged: .*; remove it and run segment.py again"):
            read()
    path.unlink()
    with pytest.raises(FileNotFoundError):  # a store's error does not count as damage
        pixels(masks, scene)


@pytest.mark.parametrize("formats", ["parquet", "png"])
@pytest.mark.parametrize(
    "changes",
    [
        {"row_off": 2**31 - 1}, {"height": -5}, {"width": None}, {"image_height": None},
        {"status": None}, {"transform": [1.0]}, {"height": 2**30, "image_height": 2**30},
    ],
)  # fmt: skip
def test_rows_of_windows_that_cannot_be_are_damage(tmp_path, changes, formats):
    uri = write_masks(str(tmp_path), [BIG], archive="/a", rows_a_shard=100, formats=formats)
    names = [field.name for field in fields(MaskRow)]
    rows = [
        MaskRow(**{name: row.get(name) for name in names if name != "geometry"} | {"mask": mask})
        for row, mask in read_masks(uri, 0, formats)
    ]
    rows[1] = replace(rows[1], **changes)
    write_shard(uri, 0, rows=rows, formats=[formats], metadata=read_metadata(uri, 0, formats))
    with pytest.raises(SegrayError, match="shard 0 of .* is damaged: row 1 "):
        scenes_of(open_masks(uri))


@pytest.mark.parametrize("name", ["0.json", "0.png"])
def test_a_link_in_a_shard_is_damage(tmp_path, name):
    uri = write_masks(str(tmp_path), [BIG], archive="/a", rows_a_shard=100, formats="png")
    with tarfile.open(shard_uri(uri, 0, "png"), "a") as tar:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, name
        tar.addfile(link)
    masks = open_masks(uri)
    with pytest.raises(SegrayError, match="shard 0 of .* is damaged"):
        scene_in(masks, BIG.uri, range(1), Window(0, 0, 1, 1))


@pytest.mark.parametrize("formats", ["parquet", "png"])
def test_a_layer_that_is_not_there_is_named(tmp_path, formats):
    masks = open_masks(write_masks(str(tmp_path), [BIG], archive="/a", formats=formats))
    (scene,) = scenes_of(masks)
    with pytest.raises(SegrayError, match=r"shard 0 of .* (is damaged|lacks a confidence_map)"):
        SceneReader(masks, scene, CONFIDENCE).piece(scene.pieces[0])


def test_a_mask_of_another_size_is_refused(tmp_path):
    uri = write_masks(str(tmp_path), [BIG], archive="/a", rows_a_shard=100)
    other = write_masks(str(tmp_path / "other"), [SMALL[0]], archive="/a", rows_a_shard=100)
    masks = open_masks(uri)
    (scene,) = scenes_of(masks)
    os.replace(shard_uri(other, 0, "parquet"), shard_uri(uri, 0, "parquet"))
    with pytest.raises(SegrayError, match="shard 0 of .* holds a mask of another size"):
        SceneReader(masks, scene).piece(scene.pieces[0])
