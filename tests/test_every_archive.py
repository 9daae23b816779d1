"""One scene in every archive format, on disk and on a real S3 server: the same mask to the bit."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from conftest import png
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer
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
from segray.storage import join, publish
from segray.synthetic import scene

SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=128, overlap=16)
CLASSES = Classes(names=("a", "b", "c"), colors=((0, 0, 0), (9, 0, 0), (0, 9, 0)))
PIXELS = scene(3, 512, 768)[0]
ZOOM, X0, Y0 = 12, 2200, 1343  # the north-western tile
TILES = {(X0 + x, Y0 + y): png(PIXELS[256 * y :][:256, 256 * x :][:, :256]) for x in range(3) for y in range(2)}
CUTS = ((10**9, 1000), (30_000, 200))  # pixels a shard, side of a window


def geotiff() -> bytes:
    """The scene as a tiled GeoTIFF."""
    with rasterio.MemoryFile() as memory:
        size = {"height": 512, "width": 768, "count": 3, "dtype": "uint8"}
        options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        with memory.open(driver="GTiff", **size, **options) as target:
            target.write(PIXELS.transpose(2, 0, 1))
        return memory.read()


def tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for member, content in ((name, data), ("k/scene.json", b"{}")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(name: str, data: bytes, method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(name, data)
        file.writestr("read.me", b"no image")
    return buffer.getvalue()


def table(**columns: list) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def mbtiles() -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".mbtiles") as file:
        connection = sqlite3.connect(file.name)
        connection.execute("create table metadata (name text, value text)")
        connection.execute("insert into metadata values ('format', 'png')")
        connection.execute("create table tiles (zoom_level int, tile_column int, tile_row int, tile_data blob)")
        rows = [(ZOOM, x, 2**ZOOM - 1 - y, data) for (x, y), data in TILES.items()]
        connection.executemany("insert into tiles values (?, ?, ?, ?)", rows)
        connection.commit()
        connection.close()
        return Path(file.name).read_bytes()


def pmtiles() -> bytes:
    buffer = io.BytesIO()
    writer = Writer(buffer)
    for tile_id, data in sorted((zxy_to_tileid(ZOOM, x, y), data) for (x, y), data in TILES.items()):
        writer.write_tile(tile_id, data)
    header = {"tile_type": TileType.PNG, "tile_compression": Compression.NONE, "center_zoom": ZOOM}
    bounds = {f"{edge}_{axis}_e7": 0 for edge in ("min", "max") for axis in ("lon", "lat")}
    writer.finalize({**header, **bounds, "center_lon_e7": 0, "center_lat_e7": 0}, {})
    return buffer.getvalue()


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


def tree(store: str, *, flip: bool = False) -> str:
    for (x, y), data in TILES.items():
        publish(join(store, str(ZOOM), str(x), f"{2**ZOOM - 1 - y if flip else y}.png"), data)
    return store


ITEMS = {"type": "FeatureCollection", "features": [{"type": "Feature", "id": "i", "assets": {}}]}
ITEMS["features"][0]["assets"] = {"image": {"href": "./data/scene.tif", "roles": ["data"]}}
BESIDE = {"data/scene.tif": geotiff}
ARCHIVE_OF = {
    "files: PNG": folder(one("a.png", lambda: png(PIXELS))),
    "files: TIFF": one("a.tif", geotiff),
    "tar: PNG": one("a.tar", lambda: tar("k/scene.png", png(PIXELS))),
    "tar: TIFF, in a folder": folder(one("a.tar", lambda: tar("k/scene.tif", geotiff()))),
    "tar.gz": one("a.tar.gz", lambda: gzip.compress(tar("k/scene.tif", geotiff()))),
    "tgz": one("a.tgz", lambda: gzip.compress(tar("scene.png", png(PIXELS)))),
    "zip: stored": one("a.zip", lambda: zipped("scene.tif", geotiff(), zipfile.ZIP_STORED)),
    "zip: deflated": folder(one("a.zip", lambda: zipped("scene.tif", geotiff(), zipfile.ZIP_DEFLATED))),
    "parquet": one("a.parquet", lambda: table(id=[1], image=[png(PIXELS)])),
    "parquet: TIFF": one("a.parquet", lambda: table(image=[{"bytes": geotiff(), "path": "x.tif"}])),
    "xyz": tree,
    "xyz: a level": lambda store: join(tree(store), str(ZOOM)),
    "tms": lambda store: tree(store, flip=True),
    "mbtiles": one("a.mbtiles", mbtiles),
    "pmtiles": folder(one("a.pmtiles", pmtiles)),
    "list: text": one("a.txt", lambda: b"data/scene.tif\n", BESIDE),
    "list: CSV": one("a.csv", lambda: b"id,uri\n1,data/scene.tif\n", BESIDE),
    "list: Parquet": one("a.parquet", lambda: table(uri=["data/scene.tif"]), BESIDE),
    "list: of an archive": one("a.txt", lambda: b"t.tar", {"t.tar": lambda: tar("scene.png", png(PIXELS))}),
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
