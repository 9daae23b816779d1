"""Archives of unlabelled imagery: one small file per format; `open_archive` finds the one that reads a URI.

An archive lists images, files that hold many images (see `members`) and levels of tile sets (see `mosaic`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from segray.archives.files import FilesArchive
from segray.archives.lists import ListArchive
from segray.archives.options import ArchiveOptions
from segray.archives.stac import StacArchive
from segray.archives.trees import TreeArchive
from segray.errors import SegrayError
from segray.storage import File


class Archive(Protocol):
    """What every archive format offers; an image's URI and part are enough to read it, on any machine."""

    skipped: int
    """How many files were skipped so far because their endings are not those of an image format."""

    def images(self) -> Iterator[File]:
        """The images, and the files that hold many, in a fixed order, listed without a request per image."""


ARCHIVES = {"stac": StacArchive, "list": ListArchive, "tree": TreeArchive, "files": FilesArchive}


def open_archive(uri: str, options: ArchiveOptions | None = None) -> Archive:
    """The archive at a URI, read by the first format that accepts it; the last one accepts any prefix.

    SegrayError when --asset is given for what are no STAC items.
    """
    options = options or ArchiveOptions()
    found = next(archive for archive in ARCHIVES.values() if archive.accepts(uri, options))
    if options.asset is not None and found is not StacArchive:
        raise SegrayError(f"--asset {options.asset} has no effect: {uri} holds no STAC items; leave it out")
    return found(uri, options)
