"""A tree of map tiles, z/x/y.png: each zoom level is one image, so that tiles give each other context."""

from __future__ import annotations

from collections.abc import Iterator

from segray.archives import mosaic
from segray.archives.options import ArchiveOptions
from segray.archives.xyz import check_profile, tile_tree
from segray.storage import File


class TreeArchive:
    """One zoom level of an XYZ or TMS tile tree."""

    def __init__(self, uri: str, options: ArchiveOptions) -> None:
        self.uri = uri
        self.kind = options.tiles if options.tiles in ("xyz", "tms") else tile_tree(uri)
        self.zoom = options.zoom
        self.skipped = 0

    @classmethod
    def accepts(cls, uri: str, options: ArchiveOptions) -> bool:
        """Whether the user says so, or the first files below the URI are named as tiles are."""
        return options.tiles in ("xyz", "tms") or (options.tiles == "auto" and tile_tree(uri) is not None)

    def images(self) -> Iterator[File]:
        """The level as one image; SegrayError when there is no such level, or it is not in Web Mercator."""
        check_profile(self.uri)
        yield mosaic.level(self.kind, self.uri, zoom=self.zoom)
