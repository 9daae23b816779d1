"""What a benchmark uses if none is given: archives of repeated scenes, and a model with random weights."""

from __future__ import annotations

import io
import os
import tempfile

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from rasterio.windows import Window

from segray.errors import SegrayError
from segray.inputs import InputSpec
from segray.model_dir import Description, save_model
from segray.settings import BenchmarkSettings
from segray.storage import exists, publish, publish_file
from segray.synthetic import CLASSES, scene
from segray.uris import join

BLOCK = 512  # side of the GeoTIFF's blocks and of the JPEG tiles, pixels
SCENE = 1024  # side of the scene that is repeated, pixels
QUALITY = 90  # of the JPEG tiles


def make_raster(uri: str, size: int, *, flat: bool = False) -> str:
    """Make a tiled, georeferenced GeoTIFF of size x size pixels, unless it exists; its URI.

    flat: squares of one colour instead of scenes, which compress to a few hundredths, for sizes that disks cannot hold.
    """
    if exists(uri):
        return uri
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "scene.tif")
        _write(source, size, _squares() if flat else _pattern())
        publish_file(uri, source)
    return uri


def make_tiles(uri: str, count: int) -> str:
    """Make a folder of that many JPEG tiles, unless it exists; its URI."""
    if exists(join(uri, f"{count - 1:06d}.jpg")):
        return uri
    pattern = _pattern().transpose(1, 2, 0)
    rng = np.random.default_rng(0)
    for number in range(count):
        row, col = rng.integers(0, 2 * SCENE - BLOCK, 2)
        buffer = io.BytesIO()
        Image.fromarray(pattern[row : row + BLOCK, col : col + BLOCK]).save(buffer, "JPEG", quality=QUALITY)
        publish(join(uri, f"{number:06d}.jpg"), buffer.getvalue())
    return uri


def make_model(uri: str, network: str) -> str:
    """Make a model directory of a network with random weights (always the same), unless it exists; its URI.

    SegrayError when there is no such network.
    """
    import torch

    from segray.networks import build_network, parse_network

    if exists(join(uri, "model.json")):
        return uri
    try:
        name, options = parse_network(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = build_network(name, options, num_classes=len(CLASSES), in_channels=3)
    except ValueError as error:
        raise SegrayError(str(error)) from error
    spec = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    network_of = {"name": name, "options": options}
    save_model(Description(uri=uri, network=network_of, classes=CLASSES, spec=spec), built)
    return uri


def archive_of(settings: BenchmarkSettings, *, side: int, times: int = 1, flat: bool = False) -> str:
    """The archive of a benchmark: the one given, else imagery made up under OUTPUT.

    side: of the GeoTIFF in pixels. times: a factor on --count, the number of JPEG tiles.
    """
    if settings.archive:
        return settings.archive
    if settings.image == "tiles":
        return make_tiles(join(settings.output, f"tiles-{settings.count * times}"), settings.count * times)
    name = f"{'flat' if flat else 'cog'}-{side}"
    return make_raster(join(settings.output, name, "scene.tif"), side, flat=flat)


def model_of(settings: BenchmarkSettings, network: str) -> str:
    """The model of a benchmark: the one given, else a network with random weights under OUTPUT."""
    name = "".join(letter if letter.isalnum() else "-" for letter in network)
    return settings.model or make_model(join(settings.output, f"model-{name}"), network)


def _write(path: str, size: int, pattern_CHW: np.ndarray) -> None:
    """Write a GeoTIFF a row of blocks at a time, so that memory does not grow with the square of its side."""
    options = {"height": size, "width": size, "count": 3, "dtype": "uint8", "driver": "GTiff", "photometric": "RGB"}
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel", "BIGTIFF": "IF_SAFER"}
    packing = {"compress": "deflate", "zlevel": 1, "num_threads": "all_cpus"}
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_800_000, 0.5, 0.5)}
    cols = np.arange(size) % pattern_CHW.shape[2]
    with rasterio.open(path, "w", **options, **blocks, **packing, **place) as file:
        for top in range(0, size, BLOCK):
            rows = np.arange(top, min(top + BLOCK, size))
            strip = pattern_CHW[:, rows % pattern_CHW.shape[1]][:, :, cols]
            file.write(strip, window=Window(0, top, size, len(rows)))


def _pattern() -> np.ndarray:
    """(3, 2 x SCENE, 2 x SCENE) uint8: a scene mirrored to the right and downwards, so that repeats have no seams."""
    image = scene(0, SCENE, SCENE)[0].transpose(2, 0, 1)
    image = np.concatenate([image, image[:, :, ::-1]], axis=2)
    return np.concatenate([image, image[:, ::-1]], axis=1)


def _squares() -> np.ndarray:
    """(3, BLOCK, BLOCK) uint8 squares of 64 pixels, each of one colour."""
    colors = np.random.default_rng(0).integers(30, 220, (3, BLOCK // 64, BLOCK // 64), np.uint8)
    return colors.repeat(64, axis=1).repeat(64, axis=2)
