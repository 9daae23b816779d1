"""Exports: mask shards written as files that other programs open; one module per format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from segray.exports import cog, confidence, pmtiles, png, polygons
from segray.scenes import Masks, Scene
from segray.settings import ExportSettings


class Export(Protocol):
    """What the module of every format offers; paths in the output are relative, with slashes.

    A module whose PER_SCENE is false writes one file for all scenes and has `write_all(masks, scenes, path, options)`
    in place of `write`; its `name` returns FILE for every scene that it takes. LAYER: what it reads of the shards.
    """

    PER_SCENE: bool
    LAYER: str
    MEDIA_TYPE: str

    def name(self, scene: Scene, archive: str) -> str | None:
        """The path of a scene's file in the output, None where the format cannot hold the scene; REFUSED says why."""

    def beside(self, uri: str) -> Iterable[str]:
        """The URIs of other files that may have been published with this one, so that all can be removed."""

    def write(self, masks: Masks, scene: Scene, path: str, options: ExportSettings) -> dict:
        """Write the file of a scene to a local path in an empty folder; returns a few numbers about it.

        Other files left in that folder are published beside it, and before it. SegrayError or an error of rasterio when
        the scene cannot be written.
        """


EXPORTS = {"cog": cog, "polygons": polygons, "png": png, "pmtiles": pmtiles, "confidence": confidence}
