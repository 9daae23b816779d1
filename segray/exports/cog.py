"""Cloud Optimized GeoTIFF of a scene: class ids with their colours and names, overviews, the scene's georeference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import rasterio
from rasterio import Affine
from rasterio.io import DatasetWriter
from rasterio.shutil import copy
from rasterio.windows import Window as RasterioWindow

from segray.exports.names import mirror
from segray.exports.style import names_in_xml
from segray.masks import IGNORE, Classes, palette
from segray.scenes import Masks, Scene, SceneReader
from segray.scratch import scratch
from segray.settings import ExportSettings
from segray.shards import MASK, OK

PER_SCENE = True
LAYER = MASK
MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
SIDECAR = ".aux.xml"  # GDAL's ending for what it stores beside a file
BLOCK = 512
COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))  # GDAL's types, usages
OPTIONS = {
    "driver": "COG",
    "compress": "DEFLATE",  # what every reader has; zstd is missing in some
    "predictor": "NO",  # ids have no gradients: the files of four scenes were 7% to 14% larger with one
    "level": "9",
    "blocksize": str(BLOCK),
    "overview_resampling": "MODE",  # ids are names: neither averaged nor picked at random
    "bigtiff": "IF_SAFER",
    "num_threads": "1",  # a task is given one core
}


def name(scene: Scene, archive: str) -> str:
    """The path of the scene's file in the output."""
    return mirror(scene.image, archive, ".tif")


def beside(uri: str) -> list[str]:
    """The URI of a file's sidecar, in which GDAL also keeps what GeoTIFF cannot hold, like a rare CRS."""
    return [f"{uri}{SIDECAR}"]


def write(masks: Masks, scene: Scene, path: str, options: ExportSettings) -> dict:
    """Write the scene to a local path, window by window; beside it PATH.aux.xml with the names of the classes.

    uint8 class ids, 255 where there is no data; overviews hold the most frequent class. GeoTIFF itself has no place for
    names: GDAL keeps them in the file beside it, and band tags CLASS_0, CLASS_1, ... repeat them in the GeoTIFF. A CRS
    that has no GeoTIFF keys is only in the file beside it.
    """
    facts = write_cog(SceneReader(masks, scene), path, partial(_describe, masks.classes), OPTIONS)
    name_classes(f"{path}{SIDECAR}", masks.classes)
    return facts


def write_cog(reader: SceneReader, path: str, describe: Callable[[DatasetWriter], None], options: dict) -> dict:
    """Write what a reader reads to a local path, window by window; describe: writes what the one band is."""
    with scratch() as folder:
        plain = os.path.join(folder, "plain.tif")
        _write_plain(reader, plain, describe)
        copy(plain, path, **options)
    return {"pixels": reader.scene.height * reader.scene.width}


def name_classes(path: str, classes: Classes) -> None:
    """Write the .aux.xml in which GDAL looks for category names (its PAM format) and QGIS for a table of classes.

    Or add to the one that GDAL made for what GeoTIFF cannot hold, like a rare CRS.
    """
    root = ElementTree.parse(path).getroot() if os.path.exists(path) else Element("PAMDataset")
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = SubElement(root, "PAMRasterBand", band="1")
    names, categories = names_in_xml(classes), SubElement(band, "CategoryNames")
    for text in names:
        SubElement(categories, "Category").text = text
    table = SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for k, values in enumerate(COLUMNS):
        _add(table, "FieldDefn", k, zip(("Name", "Type", "Usage"), values))
    for k, (text, color) in enumerate(zip(names, classes.colors)):
        _add(table, "Row", k, (("F", value) for value in (k, text, *color)))
    Path(path).write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def _add(table: Element, tag: str, index: int, children: Iterable[tuple[str, object]]) -> None:
    entry = SubElement(table, tag, index=str(index))
    for name, value in children:
        SubElement(entry, name).text = str(value)


def _describe(classes: Classes, file: DatasetWriter) -> None:
    table = {index: (*map(int, color), 255) for index, color in enumerate(palette(classes)[:IGNORE])}
    file.write_colormap(1, {**table, IGNORE: (0, 0, 0, 0)})
    file.update_tags(1, **{f"CLASS_{index}": text for index, text in enumerate(classes.names)})


def _write_plain(reader: SceneReader, path: str, describe: Callable[[DatasetWriter], None]) -> None:
    """A scene as an uncompressed tiled GeoTIFF, of which only blocks with data take up disk space."""
    scene = reader.scene
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": IGNORE, "height": scene.height}
    profile |= {"width": scene.width, "crs": scene.crs, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    if scene.transform is not None:
        profile["transform"] = Affine(*scene.transform)
    with rasterio.open(path, "w", sparse_ok="TRUE", bigtiff="YES", **profile) as file:
        describe(file)
        for piece in scene.pieces:
            if piece.status == OK:
                window = piece.window
                part = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
                file.write(reader.piece(piece), 1, window=part)
