"""One scene in every archive format, on disk and on a real S3 server: the same mask to the bit."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import png
from containers import parquet_of, tar_of, zip_of
from scene_sets import raster
from tiles import mbtiles, pmtiles, write_tree
from torch import nn

from segray import walk
from segray.archives import ARCHIVES, open_archive
from segray.archives.members import CONTAINERS
from segray.archives.options import ArchiveOptions
from segray.archives.tilesets import TILESETS
from segray.expand import Cutting, expand
from segray.inputs import InputSpec
from segray.masks import IGNORE, Classes, decode_png
from segray.plan import Item
from segray.segmenter import Segmenter
from segray.shards import OK, MaskRow
from segray.storage import publish
from segray.synthetic import scene
from segray.uris import join

SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=128, overlap=16)
CLASSES = Classes(names=("a", "b", "c"), colors=((0, 0, 0), (9, 0, 0), (0, 9, 0)))
PIXELS = scene(3, 512, 768)[0]
ZOOM, X0, Y0 = 12, 2200, 1343  # the north-western tile
TILES = {(ZOOM, X0 + x, Y0 + y): png(PIXELS[256 * y :][:256, 256 * x :][:, :256]) for x in range(3) for y in range(2)}
CUTS = ((10**9, 1000), (30_000, 200))  # pixels a shard, side of a window


def geotiff() -> bytes:
    """The scene as a tiled GeoTIFF."""
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    return raster(PIXELS.transpose(2, 0, 1), crs=None, transform=None, **options)


def one(name: str, content: Callable[[], bytes], beside: dict[str, Callable[[], bytes]] | None = None) -> Callable:
    """Writes a file (and others beside it); the file is the archive."""

    def write(store: str) -> str:
        for other, data in {name: content, **(beside or {})}.items():
            publish(join(store, other), data())
        return join(store, name)

    return write


def folder(writer: Callable[[str], str]) -> Callable[[str], str]:
    """The folder that a writer fills is the archive."""

    def write(store: str) -> str:
        writer(store)
        return store

    return write


ITEMS = {"type": "FeatureCollection", "features": [{"type": "Feature", "id": "i", "assets": {}}]}
ITEMS["features"][0]["assets"] = {"image": {"href": "./data/scene.tif", "roles": ["data"]}}
BESIDE = {"data/scene.tif": geotiff}
OTHER = {"k/scene.json": b"{}"}  # no image
ARCHIVE_OF = {
    "files: PNG": folder(one("a.png", lambda: png(PIXELS))),
    "files: TIFF": one("a.tif", geotiff),
    "tar: PNG": one("a.tar", lambda: tar_of({"k/scene.png": png(PIXELS), **OTHER})),
    "tar: TIFF, in a folder": folder(one("a.tar", lambda: tar_of({"k/scene.tif": geotiff(), **OTHER}))),
    "tar.gz": one("a.tar.gz", lambda: tar_of({"k/scene.tif": geotiff(), **OTHER}, "w:gz")),
    "tgz": one("a.tgz", lambda: tar_of({"scene.png": png(PIXELS), **OTHER}, "w:gz")),
    "zip: stored": one("a.zip", lambda: zip_of({"scene.tif": geotiff(), **OTHER}, zipfile.ZIP_STORED)),
    "zip: deflated": folder(one("a.zip", lambda: zip_of({"scene.tif": geotiff(), **OTHER}))),
    "parquet": one("a.parquet", lambda: parquet_of(id=[1], image=[png(PIXELS)])),
    "parquet: TIFF": one("a.parquet", lambda: parquet_of(image=[{"bytes": geotiff(), "path": "x.tif"}])),
    "xyz": lambda store: write_tree(store, TILES),
    "xyz: a level": lambda store: join(write_tree(store, TILES), str(ZOOM)),
    "tms": lambda store: write_tree(store, TILES, tms=True),
    "mbtiles": one("a.mbtiles", lambda: mbtiles(TILES)),
    "pmtiles": folder(one("a.pmtiles", lambda: pmtiles(TILES))),
    "list: text": one("a.txt", lambda: b"data/scene.tif\n", BESIDE),
    "list: CSV": one("a.csv", lambda: b"id,uri\n1,data/scene.tif\n", BESIDE),
    "list: Parquet": one("a.parquet", lambda: parquet_of(uri=["data/scene.tif"]), BESIDE),
    "list: of an archive": one("a.txt", lambda: b"t.tar", {"t.tar": lambda: tar_of({"scene.png": png(PIXELS)})}),
    "stac": one("items.json", lambda: json.dumps(ITEMS).encode(), BESIDE),
}


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(nn.Conv2d(3, 3, 5, padding=2, padding_mode="reflect"), SPEC, num_classes=3)


@pytest.fixture(scope="module")
def expected(segmenter: Segmenter) -> np.ndarray:
    return segmenter.mask_image(PIXELS.transpose(2, 0, 1), np.ones((512, 768), bool))


def items_of(uri: str, options: ArchiveOptions, shard_pixels: int) -> list[Item]:
    lattice = SPEC.lattice("crop")
    cutting = Cutting(spec=SPEC, explicit_bands=False, lattice=lattice, shard_pixels=shard_pixels, options=options)
    files = open_archive(uri, options).images()
    return [item for file in files for found in expand((file,), cutting) for item in found.items]


def rows_of(items: list[Item], segmenter: Segmenter, window: int) -> list[MaskRow]:
    readings = walk.read_items(items, SPEC, blend="crop", window=window, explicit_bands=False)
    return list(walk.rows(walk.segment(readings, segmenter), CLASSES))


STORES = [(name, store) for name in ARCHIVE_OF for store in ("local", "s3")] + [("tar: PNG", "memory")]


@pytest.mark.parametrize(("name", "store"), STORES, indirect=["store"])
def test_the_mask_is_the_same_in_every_format(
    store: str, segmenter: Segmenter, expected: np.ndarray, name: str
) -> None:
    uri = ARCHIVE_OF[name](store)
    options = ArchiveOptions(tiles="tms" if name == "tms" else "auto")
    for shard_pixels, window in CUTS:
        rows = rows_of(items_of(uri, options, shard_pixels), segmenter, window)
        assert {row.status for row in rows} == {OK}, rows[0].error
        assert len({row.image for row in rows}) == 1
        mask = np.full((512, 768), IGNORE, np.uint8)
        for row in rows:
            assert (row.image_height, row.image_width) == (512, 768)
            mask[row.row_off : row.row_off + row.height, row.col_off : row.col_off + row.width] = decode_png(row.mask)
        np.testing.assert_array_equal(mask, expected)


def test_every_format_is_among_them() -> None:
    kinds = {name.split(":")[0].split(".")[0] for name in ARCHIVE_OF}
    assert set(ARCHIVES) - {"tree"} | set(CONTAINERS) | set(TILESETS) <= kinds
