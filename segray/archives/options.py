"""What a user may have to say about an archive, beside its URI."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """tiles: auto, xyz, tms or none, what a tree of z/x/y files is. zoom: of a tile set, None for its highest.

    column: of a table, with the images' bytes or URIs. asset: of STAC items, by name. None: found by itself.
    """

    tiles: str = "auto"
    zoom: int | None = None
    column: str | None = None
    asset: str | None = None
