"""Archives of unlabelled imagery: one small file a format; `open_archive` finds the one that reads a URI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from segray.archives.files import FilesArchive
from segray.errors import SegrayError
from segray.storage import File


class Archive(Protocol):
    """What every archive format offers; an image's URI alone is enough to read it, on any machine."""

    skipped: int
    """How many members were passed over so far because their endings are no image format."""

    def images(self) -> Iterator[File]:
        """The images in a fixed order, listed without a request per image."""


ARCHIVES = {"files": FilesArchive}


def open_archive(uri: str) -> Archive:
    """The archive at a URI; SegrayError when no format reads it."""
    for archive in ARCHIVES.values():
        if archive.accepts(uri):
            return archive(uri)
    raise SegrayError(f"{uri} is no archive that segray reads; it reads a folder or prefix of PNG, JPEG and TIFF files")
