"""Georeferenced scenes with labels, for tests: small rasters and features that tests choose."""

from __future__ import annotations

import io
import json
import warnings
from functools import reduce

import geopandas
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry.base import BaseGeometry

from segray.storage import publish
from segray.uris import join

CLASSES = [
    {"id": 0, "name": "land", "color": [200, 180, 90]},
    {"id": 1, "name": "water", "color": [0, 0, 255]},
    {"id": 2, "name": "road", "color": [90, 90, 90]},
    {"id": 255, "name": "unknown", "color": [0, 0, 0]},
]
UTM, GRID = "EPSG:32632", rasterio.Affine(10, 0, 500_000, 0, -10, 5_500_000)


def moved(*affines: rasterio.Affine) -> rasterio.Affine:
    """Affines combined, the last one first."""
    matrices = [np.reshape(tuple(affine)[:9], (3, 3)) for affine in affines]
    return rasterio.Affine(*reduce(np.matmul, matrices).ravel()[:6])


def raster(
    pixels: np.ndarray,
    *,
    crs: str | None = UTM,
    transform: rasterio.Affine | None = GRID,
    mask: np.ndarray | None = None,
    **options: object,
) -> bytes:
    """The bytes of a GeoTIFF, or a raster of another driver, of (C, H, W) or (H, W) pixels; mask: written into it."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "crs": crs}
    profile |= {"driver": "GTiff", "photometric": "MINISBLACK", **options}
    if transform is not None:
        profile["transform"] = transform
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.MemoryFile() as file:
            with file.open(**profile) as target, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                target.write(pixels)
                if mask is not None:
                    target.write_mask(mask)
            return file.read()


def features(shapes: list[BaseGeometry], crs: str | None, ending: str, **attributes: list) -> bytes:
    """The bytes of a vector file of that ending."""
    frame, file = geopandas.GeoDataFrame(attributes, geometry=shapes, crs=crs), io.BytesIO()
    if ending == "parquet":
        frame.to_parquet(file)
    else:
        frame.to_file(file, driver={"geojson": "GeoJSON", "gpkg": "GPKG"}[ending])
    return file.getvalue()


def write_scenes(uri: str, files: dict[str, bytes], **legend: object) -> str:
    """Write a set of scenes (classes.json, and files by their paths); its URI."""
    publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES, "ignore_index": 255, **legend}).encode())
    for name, content in files.items():
        publish(join(uri, name), content)
    return uri
