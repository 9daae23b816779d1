"""What a user may need to say about an archive besides its URI."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """tiles: what a tree of z/x/y files is (auto, xyz, tms or none). zoom: of a tile set, None for its highest.

    column: of a table or list, with the images' bytes or URIs. asset: name of the asset of STAC items. None: automatic.
    """

    tiles: str = "auto"
    zoom: int | None = None
    column: str | None = None
    asset: str | None = None
