"""Confidence of a scene's pixels as a Cloud Optimized GeoTIFF: whole percent, on the scene's grid, with overviews."""

from __future__ import annotations

from rasterio.io import DatasetWriter

from segray.exports import cog
from segray.exports.names import CONFIDENCE_STEM, mirror
from segray.scenes import Masks, Scene, SceneReader
from segray.settings import ExportSettings
from segray.shards import CONFIDENCE

PER_SCENE = True
LAYER = CONFIDENCE
MEDIA_TYPE = cog.MEDIA_TYPE
OPTIONS = {**cog.OPTIONS, "overview_resampling": "AVERAGE"}
beside = cog.beside


def name(scene: Scene, archive: str) -> str:
    """The path of the scene's file in the output."""
    return mirror(scene.image, archive, f"{CONFIDENCE_STEM}.tif")


def write(masks: Masks, scene: Scene, path: str, options: ExportSettings) -> dict:
    """Write the scene to a local path, window by window.

    uint8, the top-1 probability of each pixel in percent, 255 where there is no data; overviews hold means.
    """
    return cog.write_cog(SceneReader(masks, scene, CONFIDENCE), path, _describe, OPTIONS)


def _describe(file: DatasetWriter) -> None:
    file.set_band_description(1, "confidence")
    file.set_band_unit(1, "percent")
