"""Containers, that is, files that hold many images: one small module per format, with `Container`'s functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from segray.archives import tables, tars, zips
from segray.storage import File
from segray.uris import bare, ending, is_chain


class Container(Protocol):
    """What each format's module offers. `File.part` and the container's URI are enough to read a member anywhere."""

    ENDINGS: tuple[str, ...]
    """How the names of such files end, in lower case."""

    def members(self, file: File, column: str | None = None) -> Iterator[File | None]:
        """The images in a container, found without reading them; `column` chooses the column of a table.

        None stands for each member that is skipped: one without an image format's ending, hidden, a folder, link or
        device. A member that is known to be unreadable is listed with its error. Where a container is damaged, what can
        be listed comes first, and the last File is the container itself with the reason as its error.
        """

    def span(self, part: str) -> tuple[int, int] | None:
        """(start, size) in bytes of a member that can be read in place, None when `read` must extract it."""

    def read(self, uri: str, part: str) -> bytes:
        """The bytes of a member of the container at a URI; ImageError when it is damaged.

        A store's own error passes through. Safe for several threads.
        """


CONTAINERS: dict[str, Container] = {"tar": tars, "zip": zips, "parquet": tables}
TILE_FILES = {".mbtiles": "mbtiles", ".pmtiles": "pmtiles"}  # ending -> kind of tile set, see `mosaic`


def kind_of(uri: str) -> str | None:
    """The kind of a file that holds many images, by its ending: a key of `CONTAINERS` or `mosaic.TILESETS`, else None.

    None for any member, whatever its container's name.
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
    """Whether an image is a row of a table: its name has no ending, so only its bytes show its format."""
    return uri.startswith("parquet://")
