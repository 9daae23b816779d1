"""Containers, files that hold many images: one small module a format, all with the functions of `Container`."""

from __future__ import annotations

from typing import Protocol

from segray.archives import tables, tars, zips
from segray.archives.entries import Listing
from segray.storage import File


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


def container_of(uri: str) -> Container | None:
    """The format of a file by the ending of its name, None when it is no container."""
    return next((format_ for format_ in CONTAINERS.values() if uri.lower().endswith(format_.ENDINGS)), None)
