"""Containers, files that hold many images: one small module a format, all with the functions of `Container`."""

from __future__ import annotations

from typing import Protocol

from segray.archives import tables, tars, zips
from segray.archives.entries import Listing
from segray.storage import File, bare, ending, is_chain


class Container(Protocol):
    """What the module of a format offers. `File.part` and the container's URI are enough to read a member anywhere."""

    ENDINGS: tuple[str, ...]
    """How the names of such files end, in lower case."""

    def members(self, file: File, column: str | None = None) -> Listing:
        """The images in a container, found without reading them; `column` chooses the one of a table.

        Members whose ending is no image format, hidden ones, folders, links and devices are counted as skipped.
        """

    def span(self, part: str) -> tuple[int, int] | None:
        """(start, size) in bytes of a member that lies in the container as it is, None when it must be unpacked."""

    def read(self, uri: str, part: str) -> bytes:
        """The bytes of a member of the container at a URI; ImageError when it is damaged, a store's own error goes on.

        Safe for several threads.
        """


CONTAINERS: dict[str, Container] = {"tar": tars, "zip": zips, "parquet": tables}
TILE_FILES = {".mbtiles": "mbtiles", ".pmtiles": "pmtiles"}  # ending -> kind of tile set, see `mosaic`


def kind_of(uri: str) -> str | None:
    """What holds many images, by the ending of its name: a key of `CONTAINERS` or of `mosaic.TILESETS`, else None.

    A member is an image, whatever the name of its container.
    """
    if is_chain(uri):
        return None
    found = (kind for kind, container in CONTAINERS.items() if bare(uri).endswith(container.ENDINGS))
    return next(found, TILE_FILES.get(ending(uri)))


def holder(uri: str) -> tuple[Container, str]:
    """The format and the URI of the container that holds a member."""
    scheme, rest = uri.split("://", maxsplit=1)
    return CONTAINERS[scheme], rest.split("::", maxsplit=1)[1]


def is_row(uri: str) -> bool:
    """Whether an image is a row of a table: its name has no ending, so that its bytes alone say its format."""
    return uri.startswith("parquet://")
