"""Labelled data: layouts are recognised, labels arrive exactly, and what is wrong is named instead of learnt."""

from __future__ import annotations

import json
import os
import pickle
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scene_sets
from PIL import Image
from scene_sets import raster, write_scenes
from test_dataset_mask_shards import images_at, segmented, split_samples
from tiles import encoded as picture

from segray.datasets import DATASETS, labels, open_dataset, read
from segray.errors import ImageError, LabelError, SegrayError
from segray.grid import Window
from segray.masks import IGNORE, Classes, encode_png
from segray.storage import publish
from segray.synthetic import CLASSES, scene
from segray.uris import join

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LEGEND = {"classes": scene_sets.CLASSES, "ignore_index": 255}
IDS = np.array([[0, 1, 2, 255], [2, 2, 1, 0], [0, 0, 255, 1]], np.uint8)
COLORS = np.array([[200, 180, 90], [0, 0, 255], [90, 90, 90], [0, 0, 0]], np.uint8)[np.where(IDS == 255, 3, IDS)]
CLASS_IDS = np.where(IDS == 255, np.uint8(0), IDS)
ROGUE = np.array([[0, 1, 2, 7], [2, 2, 1, 0], [0, 0, 0, 1]], np.uint8)
OPAQUE = np.where(IDS == 255, 0, 255).astype(np.uint8)
ROGUE_WHERE_CLEAR = np.where(OPAQUE[..., None] == 0, np.uint8(9), COLORS)  # fully transparent pixels have no label
tiff = partial(raster, crs=None, transform=None)
SCENE = raster(np.ones((5, 6), np.uint8))
ROAD, CAR, PLATE, VOID = 7, 26, 255, 4


FOREIGN = [(255 - k, k, 7) for k in range(256)]  # not a legend's colours: only the indices mean something


def palette_png(
    ids: np.ndarray, bits: int = 8, colors: Sequence[Sequence[int]] = FOREIGN, kind: str = "PNG", **options: object
) -> bytes:
    """A palette PNG whose indices are `ids`, with these colours."""
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return picture(image, kind, **({"bits": bits} if kind == "PNG" else {}), **options)


def palette_tiff(ids: np.ndarray, colors: Sequence[Sequence[int]]) -> bytes:
    with rasterio.MemoryFile() as file:
        with file.open(driver="GTiff", count=1, height=3, width=4, dtype="uint8") as target:
            target.write(ids, 1)
            target.write_colormap(1, {k: (*color, 255) for k, color in enumerate(colors)})
        return file.read()


def packed_grey(ids: np.ndarray, bits: int, *, clear: int | None = None) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel, written by hand: Pillow writes none of 2 and 4. clear: a transparent id."""
    rows = [b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in ids]
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    hidden = () if clear is None else ((b"tRNS", struct.pack(">H", clear)),)
    chunks = ((b"IHDR", header), *hidden, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    sums = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sums)


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where data may be put: a local folder, or a store that is no file system."""
    return str(tmp_path / "data") if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def folder(uri: str, mask: bytes, *, name: str = "masks/a.png", image: bytes | None = None) -> str:
    """A labelled folder of one image, 3 x 4 pixels, and one mask."""
    publish(join(uri, "classes.json"), json.dumps(LEGEND).encode())
    publish(join(uri, "train/images/a.png"), image or picture(np.zeros((3, 4, 3), np.uint8)))
    publish(join(uri, "train", name), mask)
    return uri


def only_mask(uri: str) -> np.ndarray:
    dataset = open_dataset(uri)
    (sample,) = dataset.samples("train")
    labelled = read(dataset, sample)
    assert labelled.mask.dtype == np.uint8
    return labelled.mask


def cityscapes(uri: str, ids: np.ndarray, *, splits: tuple = ("train", "val", "test"), fine: bool = True) -> str:
    """The official layout with two small frames a split."""
    kind = "gtFine" if fine else "gtCoarse"
    for split in splits:
        for frame in ("aachen_000000_000019", "zurich_000001_000019"):
            city = frame.split("_")[0]
            image = picture(np.full((*ids.shape, 3), 90, np.uint8))
            publish(join(uri, "leftImg8bit", split, city, f"{frame}_leftImg8bit.png"), image)
            for ending in ("labelIds", "instanceIds", "color"):
                label = ids if ending == "labelIds" else np.full_like(ids, 99)
                publish(join(uri, kind, split, city, f"{frame}_{kind}_{ending}.png"), picture(label))
            publish(join(uri, kind, split, city, f"{frame}_{kind}_polygons.json"), b"{}")
    return uri


def hidden_as(value: int, dtype: type = np.uint8) -> np.ndarray:
    """The ids with a value in place of 255."""
    return np.where(IDS == 255, dtype(value), IDS)


LAND, WATER, ROAD_GREY, UNSEEN = (tuple(entry["color"]) for entry in LEGEND["classes"])
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
TWO_HIDDEN = np.where(IDS == 255, np.arange(1, 5, dtype=np.uint8), IDS)  # the ignored pixels become ids 3 and 4
BLUES_WHERE_CLEAR = np.where(IDS[..., None] == 255, np.array([0, 0, 7], np.uint8), COLORS)
SEVENS_WHERE_CLEAR = np.where(IDS[..., None] == 255, np.uint8(7), COLORS)
EXACT = {
    "ids": ("masks/a.png", picture(IDS)),
    "16-bit ids": ("masks/a.png", picture(IDS.astype(np.uint16))),
    "palette": ("masks/a.png", palette_png(IDS)),
    "colours": ("masks/a.png", picture(COLORS)),
    "opaque colours": ("masks/a.png", picture(np.dstack([COLORS, np.full_like(IDS, 255)]))),
    "transparent ids": ("masks/a.png", picture(np.dstack([np.where(IDS == 255, np.uint8(7), IDS), OPAQUE]))),
    "transparent colours": ("masks/a.png", picture(np.dstack([ROGUE_WHERE_CLEAR, OPAQUE]))),
    "transparent grey": ("masks/a.png", picture(hidden_as(9), transparency=9)),
    "transparent 16-bit": ("masks/a.png", picture(hidden_as(999, np.uint16), transparency=999)),
    "transparent index": ("masks/a.png", palette_png(hidden_as(9), transparency=9)),
    "transparent indices": ("masks/a.png", palette_png(hidden_as(3), transparency=b"\xff\xff\xff\0")),
    "two transparent indices": ("masks/a.png", palette_png(TWO_HIDDEN, transparency=b"\xff\xff\xff\0\0")),
    "transparent index in the colour of a class": (
        "masks/a.png", palette_png(hidden_as(3), 8, [LAND, WATER, ROAD_GREY, LAND], transparency=b"\xff\xff\xff\0")
    ),
    "transparent colour": ("masks/a.png", picture(SEVENS_WHERE_CLEAR, transparency=(7, 7, 7))),
    "transparent colour that shares channels with a class": (
        "masks/a.png", picture(BLUES_WHERE_CLEAR, transparency=(0, 0, 7))
    ),
    "bitmap": ("masks/a.bmp", picture(COLORS, "BMP")),
    "TIFF ids": ("masks/a.tif", tiff(IDS[None])),
    "TIFF 16-bit ids": ("masks/a.tiff", tiff(IDS[None].astype(np.uint16), compress="deflate")),
    "TIFF signed, nodata": ("masks/a.TIF", tiff(np.where(IDS == 255, -9, IDS.astype(np.int16))[None], nodata=-9)),
    "TIFF alpha": ("masks/a.tif", tiff(np.stack([hidden_as(9), OPAQUE]), photometric="minisblack", alpha="yes")),
    "TIFF masked": ("masks/a.tif", tiff(CLASS_IDS[None], mask=OPAQUE)),
    "TIFF masked, with alpha": (
        "masks/a.tif", tiff(np.stack([CLASS_IDS, np.full_like(IDS, 255)]), mask=OPAQUE, alpha="yes")
    ),
    "TIFF masked colours": ("masks/a.tif", tiff(ROGUE_WHERE_CLEAR.transpose(2, 0, 1), mask=OPAQUE, photometric="rgb")),
    "TIFF colours": ("masks/a.tif", tiff(COLORS.transpose(2, 0, 1), photometric="rgb")),
    "TIFF colours, nodata": ("masks/a.tif", tiff(SEVENS_WHERE_CLEAR.transpose(2, 0, 1), nodata=7)),
}  # fmt: skip


@pytest.mark.parametrize("name, mask", EXACT.values(), ids=EXACT)
def test_labels_arrive_exactly(place: str, name: str, mask: bytes) -> None:
    assert np.array_equal(only_mask(folder(place, mask, name=name)), IDS)


def test_a_transparency_that_no_pixel_has_hides_nothing(place: str) -> None:
    ids = np.where(IDS == 0, np.uint8(1), IDS)
    for mask in (picture(ids, transparency=0), palette_png(ids, transparency=0)):
        assert np.array_equal(only_mask(folder(place, mask)), ids)


def test_half_transparent_indices_are_labels(place: str) -> None:
    ids = np.where(IDS == 255, np.uint8(2), IDS)
    assert np.array_equal(only_mask(folder(place, palette_png(ids, transparency=b"\xff\x80\xff"))), ids)


def test_what_a_mask_inside_a_tiff_hides_is_unlabelled_in_every_window(place: str) -> None:
    dataset = open_dataset(folder(place, tiff(CLASS_IDS[None], mask=OPAQUE), name="masks/a.tif"))
    (sample,) = dataset.samples("train")
    for window in (Window(0, 0, 3, 4), Window(1, 1, 2, 3), Window(0, 3, 1, 1)):
        found = dataset.read_mask(replace(sample, size=(3, 4), window=window))
        assert np.array_equal(found, IDS[window.rows, window.cols])


def test_a_mask_of_several_pages_is_refused(place: str) -> None:
    pages = [Image.fromarray(np.full((4, 4), number, np.uint8)) for number in (0, 1)]
    mask = picture(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(LabelError, match=r"masks/a\.tif holds 2 pages, of which only the first would be read"):
        only_mask(folder(place, mask, name="masks/a.tif"))


def test_a_mask_beside_a_tiff_counts_on_disk(tmp_path: Path) -> None:
    uri = folder(str(tmp_path), b"", name="masks/a.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = tmp_path / "train/masks/a.tif"
        with rasterio.open(path, "w", driver="GTiff", count=1, height=3, width=4, dtype="uint8") as target:
            target.write(CLASS_IDS, 1)
            target.write_mask(OPAQUE)
    assert path.with_suffix(".tif.msk").exists()
    dataset = open_dataset(uri)
    (sample,) = dataset.samples("train")
    for window in (None, Window(0, 0, 3, 4)):
        assert np.array_equal(dataset.read_mask(replace(sample, size=(3, 4), window=window)), IDS)


def test_a_nodata_value_beside_a_tiff_counts_on_disk(tmp_path: Path) -> None:
    uri = folder(str(tmp_path), tiff(hidden_as(9)[None]), name="masks/a.tif")
    band = '<PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand>'
    publish(join(uri, "train/masks/a.tif.aux.xml"), f"<PAMDataset>{band}</PAMDataset>".encode())
    assert np.array_equal(only_mask(uri), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("write", [packed_grey, palette_png])
def test_ids_of_few_bits_are_not_stretched(tmp_path: Path, write: Callable, bits: int) -> None:
    ids = np.minimum(IDS, min(2, 2**bits - 1))
    assert np.array_equal(only_mask(folder(str(tmp_path), write(ids, bits))), ids)


PALETTES = {  # name -> (indices, which are the ids; the colours shown for them)
    "the legend's": (IDS, [LAND, WATER, ROAD_GREY] + [BLACK] * 253),
    "the legend's, void in its colour": (IDS, [LAND, WATER, ROAD_GREY] + [(9, 9, 9)] * 252 + [UNSEEN]),
    "foreign": (IDS, FOREIGN),
    "foreign, one class": (np.zeros_like(IDS), [BLACK, *FOREIGN[1:]]),  # black is the legend's "unknown"
    "foreign, one class in the colour of another": (np.zeros_like(IDS), [WATER, *FOREIGN[1:]]),
    "greys": (IDS, [(k, k, k) for k in range(256)]),
    "greys, one class": (np.full_like(IDS, 2), [(k, k, k) for k in range(256)]),
    "stretched greys": (CLASS_IDS, [BLACK, (127, 127, 127), WHITE]),
    "black and white": (np.minimum(CLASS_IDS, 1), [BLACK, WHITE]),
    "black and white, one class": (np.ones_like(IDS), [BLACK, WHITE]),
}  # fmt: skip


@pytest.mark.parametrize("write", [palette_png, palette_tiff])
@pytest.mark.parametrize("ids, colors", PALETTES.values(), ids=PALETTES)
def test_the_indices_of_a_palette_are_ids(tmp_path: Path, ids: np.ndarray, colors: list, write: Callable) -> None:
    ending = "png" if write is palette_png else "tif"
    uri = folder(str(tmp_path), write(ids, colors=colors), name=f"masks/a.{ending}")
    assert np.array_equal(only_mask(uri), ids)


BLACK_NONE = json.dumps({**LEGEND, "classes": [{"id": 0, "name": "none", "color": BLACK}, *LEGEND["classes"][1:3]]})
BLACK_FOR_255 = {
    "segray": encode_png(IDS, Classes.parse(BLACK_NONE, source="")),
    "another program": palette_png(IDS, colors=[BLACK, WATER, ROAD_GREY] + [BLACK] * 253),
}


@pytest.mark.parametrize("mask", BLACK_FOR_255.values(), ids=BLACK_FOR_255)
def test_black_for_255_may_be_the_colour_of_a_class_too(tmp_path: Path, mask: bytes) -> None:
    uri = folder(str(tmp_path), mask)
    publish(join(uri, "classes.json"), BLACK_NONE.encode())
    assert np.array_equal(only_mask(uri), IDS)


GREY_OF = [(k, k, k) for k in (1, 2)]
CONTRADICTIONS = {  # name -> (name of the mask, its bytes, what the error says)
    "optimised ids": ("a.png", palette_png(CLASS_IDS % 2, 1, GREY_OF), r"0 is shown as \(1, 1, 1\), which means 1;"),
    "optimised ids, void": ("a.png", palette_png(CLASS_IDS, 2, [BLACK, GREY_OF[0], WHITE]), "2 is shown as .* 255;"),
    "colours in another order": ("a.png", palette_png(CLASS_IDS, 2, [WATER, LAND, ROAD_GREY]), "0 is shown as .* 1;"),
    "filled up": ("a.png", palette_png(CLASS_IDS, 8, [WATER, LAND, ROAD_GREY] + [BLACK] * 253), "0 is shown as .* 1;"),
    "void as a class": ("a.png", palette_png(CLASS_IDS, 2, [LAND, WATER, UNSEEN]), r"2 is shown as \(0, 0, 0\).* 255;"),
    "void alone": ("a.png", palette_png(np.zeros_like(IDS), 1, [UNSEEN]), "0 is shown as .* 255;"),
    "bitmap": ("a.bmp", palette_png(CLASS_IDS, 8, [WATER, LAND, ROAD_GREY], "BMP"), "0 is shown as .* 1;"),
    "TIFF": ("a.tif", palette_tiff(CLASS_IDS, [WATER, LAND, ROAD_GREY]), "0 is shown as .* 1;"),
}  # fmt: skip


@pytest.mark.parametrize("name, mask, sentence", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_palette_that_contradicts_its_indices_is_refused(
    tmp_path: Path, name: str, mask: bytes, sentence: str
) -> None:
    dataset = open_dataset(folder(str(tmp_path), mask, name=f"masks/{name}"))
    (sample,) = dataset.samples("train")
    for window in (None, Window(0, 0, 2, 3)):
        with pytest.raises(LabelError, match=f"masks/{name} has a palette .*{sentence} save it as 8-bit grey"):
            dataset.read_mask(replace(sample, size=(3, 4), window=window))


def test_colours_that_a_program_made_indexed_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(COLORS).quantize(4)
    assert image.getpalette()[:9] != [*LAND, *WATER, *ROAD_GREY]  # Pillow's order is not the legend's
    with pytest.raises(LabelError, match="a.png has a palette that contradicts its ids"):
        only_mask(folder(str(tmp_path), picture(image)))


REFUSED = {
    "id": ("masks/a.png", picture(ROGUE), LabelError, "a.png holds the id 7"),
    "palette index": ("masks/a.png", palette_png(ROGUE), LabelError, "a.png holds the id 7"),
    "16-bit id": ("masks/a.png", picture(ROGUE.astype(np.uint16) * 256), LabelError, "holds the id 256"),
    "negative id": ("masks/a.tif", tiff(ROGUE[None].astype(np.int16) - 1), LabelError, "a.tif holds the id -1"),
    "colour": ("masks/a.png", picture(COLORS + np.uint8(1)), LabelError, r"a.png holds the colour \(201, 181, 91\)"),
    "smoothed colours": ("masks/a.png", picture(np.dstack([COLORS, IDS])), LabelError, "half transparent"),
    "JPEG": ("masks/a.jpg", picture(COLORS, "JPEG"), LabelError, "a.jpg is a mask in a lossy format"),
    "JPEG in TIFF": ("masks/a.tif", tiff(IDS[None], compress="jpeg"), LabelError, "compressed as JPEG"),
    "16-bit colours": (
        "masks/a.png", tiff(COLORS.transpose(2, 0, 1) * np.uint16(257), driver="PNG"), LabelError, "16-bit colours"
    ),
    "float target": ("masks/a.tif", tiff(IDS[None] / np.float32(255)), LabelError, "whole-number ids"),
    "two bands": ("masks/a.tif", tiff(np.stack([IDS, IDS])), LabelError, "2 bands"),
    "bands that are not read": ("masks/a.tif", tiff(np.stack([IDS, IDS]))[:-9], LabelError, "2 bands"),
    "nodata is a class": ("masks/a.tif", tiff(IDS[None], nodata=0), LabelError, "'land'"),
    "a class is transparent": ("masks/a.png", picture(IDS, transparency=0), LabelError, "declares 0 .*'land'"),
    "one of two ids of a bit is transparent": (
        "masks/a.png", packed_grey(np.minimum(IDS, 1), 1, clear=1), LabelError, "declares 1 .*'water'"
    ),
    "an index is transparent": ("masks/a.png", palette_png(IDS, transparency=0), LabelError, "declares 0 .*'land'"),
    "a colour is transparent": (
        "masks/a.png", picture(COLORS, transparency=(200, 180, 90)), LabelError, "declares 200 180 90 .* the colour "
    ),
    "grey and alpha blend": ("masks/a.png", picture(np.dstack([IDS, IDS])), LabelError, "half transparent"),
    "damaged PNG": ("masks/a.png", picture(IDS)[:-30], ImageError, "a.png cannot be read"),
    "no PNG": ("masks/a.png", b"", ImageError, "a.png cannot be read: its content is no PNG or BMP"),
    "no TIFF": ("masks/a.tif", b"hello", ImageError, "a.tif cannot be read"),
    "larger": ("masks/a.png", picture(np.zeros((6, 8), np.uint8)), LabelError, "has 6 x 8 .* has 3 x 4.*never resized"),
    "turned": ("masks/a.png", picture(IDS.T.copy()), LabelError, "has 4 x 3 .* 3 x 4; the image's EXIF orientation"),
}  # fmt: skip


@pytest.mark.parametrize("name, mask, error, sentence", REFUSED.values(), ids=REFUSED)
def test_wrong_labels_are_named(tmp_path: Path, name: str, mask: bytes, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        only_mask(folder(str(tmp_path), mask, name=name))
    assert "train/masks/a." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_piece_too_large_to_be_decoded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_PIXELS", 11)
    with pytest.raises(LabelError, match="a.tif would be read in a piece of more than 11 pixels"):
        only_mask(folder(str(tmp_path), tiff(CLASS_IDS[None]), name="masks/a.tif"))


def test_a_picture_turned_by_its_exif_tag_does_not_fit_a_mask_of_the_unturned_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn by 90 degrees to view
    uri = folder(str(tmp_path), picture(IDS), image=picture(np.zeros((3, 4, 3), np.uint8), exif=exif))
    with pytest.raises(LabelError, match="has 3 x 4 .* has 4 x 3; the image's EXIF orientation turns it"):
        only_mask(uri)


def test_the_mask_is_ignored_where_the_image_has_no_data(place: str) -> None:
    rgba = np.full((3, 4, 4), 255, np.uint8)
    rgba[0, :2, 3] = 0
    dataset = open_dataset(folder(place, picture(IDS), image=picture(rgba)))
    labelled = read(dataset, dataset.samples("train")[0])
    assert (labelled.pixels.shape, labelled.valid.sum()) == ((3, 3, 4), 10)
    assert np.array_equal(labelled.mask, np.where(labelled.valid, IDS, IGNORE))
    assert labelled.mask.dtype == np.uint8


def test_a_folder_round_trip(write_folder: Callable[[str], str], place: str) -> None:
    dataset = open_dataset(write_folder(place))
    assert (dataset.classes, dataset.nadir) == (CLASSES, True)
    counts = {split: len(samples) for split, samples in split_samples(dataset).items()}
    assert counts == {"train": 4, "val": 2, "test": 2}
    samples = dataset.samples("val")
    assert [sample.key for sample in samples] == ["s0", "s1"]
    image, mask = scene(101, 96, 96)
    labelled = read(dataset, samples[1])
    assert np.array_equal(labelled.pixels, image.transpose(2, 0, 1))
    assert np.array_equal(labelled.mask, mask)
    assert labelled.valid.all()


def test_a_relative_path_becomes_absolute(labelled_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(labelled_folder).parent)
    assert open_dataset("labelled").samples("train")[0].image == f"{labelled_folder}/train/images/s0.png"


PAIRS = {
    "image alone": ("train/images/b.png", r"images/b.png has no mask: .*train/masks holds no b\.\*"),
    "mask alone": ("train/masks/b.png", r"masks/b.png has no image: .*train/images holds no b\.\*"),
    "two images": ("train/images/a.tif", "images/a.png and .*images/a.tif have the same stem"),
    "two masks": ("train/masks/a.tif", "masks/a.png and .*masks/a.tif have the same stem"),
}


@pytest.mark.parametrize("name, sentence", PAIRS.values(), ids=PAIRS)
def test_files_without_their_partner_are_named(place: str, name: str, sentence: str) -> None:
    publish(join(folder(place, picture(IDS)), name), picture(IDS))
    with pytest.raises(SegrayError, match=sentence):
        open_dataset(place).samples("train")


def test_a_partner_whose_name_only_looks_the_same_is_told(place: str) -> None:
    folder(place, picture(IDS))
    for name in ("images/\u00e9.png", "masks/e\u0301.png"):
        publish(join(place, "train", name), picture(IDS))
    with pytest.raises(SegrayError, match="has no image: the name in .*train/images has another Unicode form"):
        open_dataset(place).samples("train")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_pipe_is_refused_and_not_waited_for(labelled_folder: str, kind: str) -> None:
    place = Path(labelled_folder, "train", kind, "s1.png")
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(SegrayError, match=f"{place} cannot be read: it is no file"):
        open_dataset(labelled_folder).samples("train")


def test_files_that_are_no_images_are_passed_over(place: str) -> None:
    folder(place, picture(IDS))
    for name in ("images/Thumbs.db", "images/a.pgw", "masks/a.png.aux.xml", "masks/.a.png"):
        publish(join(place, "train", name), b"?")
    assert len(open_dataset(place).samples("train")) == 1


def test_an_unknown_split_names_those_that_exist(labelled_folder: str) -> None:
    with pytest.raises(SegrayError, match="no split 'valid'; there is train, val, test"):
        open_dataset(labelled_folder).samples("valid")


@pytest.mark.parametrize("files", [["readme.txt"], ["classes.json", "train/images/a.tif", "train/labels.shp"]])
def test_no_layout_names_the_layouts(place: str, files: list[str]) -> None:
    for name in files:
        publish(join(place, name), b"nothing here")
    with pytest.raises(SegrayError, match="holds no labelled data.*classes.json.*labels.*leftImg8bit.*plan/"):
        open_dataset(place)


def test_data_that_are_not_there_are_not_told_of_layouts(place: str) -> None:
    with pytest.raises(SegrayError, match=f"^{join(place, 'nope')} does not exist or holds no file; check the URI"):
        open_dataset(join(place, "nope"))


def test_two_layouts_at_once_are_refused(place: str) -> None:
    cityscapes(folder(place, picture(IDS)), IDS)
    with pytest.raises(SegrayError, match="folder and cityscapes at once"):
        open_dataset(place)


def test_every_label_id_becomes_its_train_id(place: str) -> None:
    """The expected ids are those of the benchmark's table, written out again here."""
    raw = np.arange(-1, 34).astype(np.uint8)[None]  # -1 wraps to 255, as 8-bit files hold it
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = [evaluated.index(k) if k in evaluated else IGNORE for k in range(-1, 34)]
    dataset = open_dataset(cityscapes(place, raw))
    labelled = read(dataset, dataset.samples("train")[0])
    assert labelled.mask.tolist() == [expected]
    assert labelled.mask.dtype == np.uint8


def test_cityscapes_classes_are_the_nineteen(place: str) -> None:
    dataset = open_dataset(cityscapes(place, IDS))
    assert (len(dataset.classes), dataset.nadir, dataset.mode) == (19, False, "fine")
    assert (dataset.classes.names[0], dataset.classes.names[18]) == ("road", "bicycle")
    assert dataset.classes.colors[13] == (0, 0, 142)
    assert set(split_samples(dataset)) == {"train", "val"}
    assert [s.key for s in dataset.samples("val")] == ["aachen/aachen_000000_000019", "zurich/zurich_000001_000019"]


@pytest.mark.parametrize("value, dtype", [(34, "uint8"), (254, "uint8"), (256 + ROAD, "uint16"), (65535, "uint16")])
def test_an_id_outside_the_table_is_named(tmp_path: Path, value: int, dtype: str) -> None:
    dataset = open_dataset(cityscapes(str(tmp_path), np.full((2, 3), value, dtype)))
    with pytest.raises(LabelError, match=f"labelIds.png holds the id {value}, which"):
        dataset.read_mask(dataset.samples("train")[0])


def test_labels_of_cityscapes_that_were_optimised_are_refused(place: str) -> None:
    ids = np.array([[ROAD, CAR, VOID]], np.uint8)
    uri = cityscapes(place, ids)
    (city,) = (sample.mask for sample in open_dataset(uri).samples("val") if "aachen" in sample.key)
    publish(city, palette_png(np.array([[1, 2, 0]], np.uint8), 2, [(k, k, k) for k in (VOID, ROAD, CAR)]))
    dataset = open_dataset(uri)
    with pytest.raises(LabelError, match=r"labelIds.png has a palette .* 0 is shown as \(4, 4, 4\), which means 4;"):
        dataset.read_mask(dataset.samples("val")[0])
    publish(city, palette_png(ids))
    assert dataset.read_mask(dataset.samples("val")[0]).tolist() == [[0, 13, IGNORE]]


def test_coarse_labels_when_there_are_no_fine_ones(place: str) -> None:
    ids = np.array([[ROAD, CAR, PLATE, VOID]], np.uint8)
    dataset = open_dataset(cityscapes(place, ids, splits=("train", "train_extra", "val"), fine=False))
    assert dataset.mode == "coarse"
    assert dataset.read_mask(dataset.samples("train_extra")[1]).tolist() == [[0, 13, IGNORE, IGNORE]]


def test_fine_labels_when_there_are_both(place: str) -> None:
    fine, coarse = np.full((1, 2), ROAD, np.uint8), np.full((1, 2), CAR, np.uint8)
    dataset = open_dataset(cityscapes(cityscapes(place, fine), coarse, fine=False))
    assert dataset.read_mask(dataset.samples("train")[0]).tolist() == [[0, 0]]


def test_the_dummy_test_split_is_refused(place: str) -> None:
    with pytest.raises(SegrayError, match="dummy labels only.*'val'"):
        open_dataset(cityscapes(place, IDS)).samples("test")


def test_train_extra_has_no_fine_labels(place: str) -> None:
    uri = cityscapes(cityscapes(place, IDS), IDS, splits=("train_extra",), fine=False)
    with pytest.raises(SegrayError, match="no split 'train_extra' with fine labels; there is train, val"):
        open_dataset(uri).samples("train_extra")


def test_the_first_missing_label_is_named(place: str) -> None:
    cityscapes(place, IDS)
    for frame in ("bonn_000001_000019", "bonn_000000_000019"):
        publish(join(place, "leftImg8bit/train/bonn", f"{frame}_leftImg8bit.png"), picture(IDS))
    with pytest.raises(SegrayError, match="gtFine/train/bonn/bonn_000000_000019_gtFine_labelIds.png is missing"):
        open_dataset(place).samples("train")


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("gtFine", "aachen_000000_000019_leftImg8bit.png has no labels: gtFine/val/aachen/.*_labelIds.png is missing"),
        ("leftImg8bit", "the split 'val' of .* holds no .*_leftImg8bit.png"),
    ],
)
def test_folders_of_cities_that_are_empty_are_a_sentence(tmp_path: Path, part: str, sentence: str) -> None:
    dataset = open_dataset(cityscapes(str(tmp_path), IDS))
    for file in tmp_path.glob(f"{part}/val/*/*"):
        file.unlink()
    with pytest.raises(SegrayError, match=sentence):
        dataset.samples("val")


def test_images_without_labels(place: str) -> None:
    publish(join(place, "leftImg8bit/train/bonn/bonn_000000_000019_leftImg8bit.png"), picture(IDS))
    with pytest.raises(SegrayError, match="has leftImg8bit/ but no gtFine or gtCoarse/"):
        open_dataset(place)


@pytest.mark.parametrize("name", DATASETS)
def test_every_layout_keeps_the_contract(name: str, write_folder: Callable[[str], str], tmp_path: Path) -> None:
    """Samples are sorted and complete, masks hold classes or 255, and workers can be sent the data set."""
    writers = {
        "folder": write_folder,
        "scenes": lambda uri: write_scenes(uri, {"train/images/a.tif": SCENE, "train/labels/a.tif": SCENE}),
        "cityscapes": lambda uri: cityscapes(uri, np.full((5, 6), ROAD, np.uint8)),
        "mask_shards": lambda uri: segmented(uri, images_at(uri, 5)),
    }
    dataset = open_dataset(writers[name](str(tmp_path / "data")))
    assert isinstance(dataset, DATASETS[name])
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    found = split_samples(dataset)
    assert "train" in found
    for samples in found.values():
        assert [s.key for s in samples] == sorted({s.key for s in samples})
        for sample in samples:
            labelled = read(dataset, sample)
            assert labelled.mask.shape == labelled.valid.shape == labelled.pixels.shape[1:]
            assert set(np.unique(labelled.mask)) <= {*range(len(dataset.classes)), IGNORE}


def test_a_store_that_fails_is_no_fault_of_a_mask(tmp_path, monkeypatch):
    def fail(uri: str) -> bytes:
        raise OSError("slow down")

    monkeypatch.setattr(labels, "read_bytes", fail)
    with pytest.raises(OSError, match="^slow down$"):
        labels.read_labels(str(tmp_path / "a.png"))
