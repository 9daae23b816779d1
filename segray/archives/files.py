"""A prefix of image files, and of files that hold many images, on any store; or a single such file."""

from __future__ import annotations

from collections.abc import Iterator

from segray.archives.images import is_image
from segray.archives.members import kind_of
from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.listing import list_files
from segray.storage import File
from segray.store_errors import at_fault, describe


class FilesArchive:
    """Every file below a prefix that has the ending of an image format, or of a format that holds images."""

    def __init__(self, uri: str, options: ArchiveOptions) -> None:
        self.uri = uri
        self.skipped = 0

    @classmethod
    def accepts(cls, uri: str, options: ArchiveOptions) -> bool:
        """Always, since any prefix may hold files."""
        return True

    def images(self) -> Iterator[File]:
        """The images in the order of their paths; SegrayError when the prefix holds none or cannot be listed."""
        found, self.skipped = False, 0
        try:
            for file in list_files(self.uri):
                if is_image(file.uri) or kind_of(file.uri):
                    _check_name(file.uri)
                    found = True
                    yield file
                else:
                    self.skipped += 1
        except FileNotFoundError as error:
            raise SegrayError(
                f"{self.uri} does not exist or holds no file; check the URI given with --archive"
            ) from error
        except OSError as error:
            raise at_fault(error)(f"{self.uri} cannot be listed: {describe(error)}") from error
        if not found:
            raise SegrayError(
                f"{self.uri} holds {self.skipped} file(s), but none whose ending is an image or archive format"
            )


def _check_name(uri: str) -> None:
    """SegrayError on a name that is not UTF-8, which no table can hold; only local file systems have such names."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise SegrayError(f"the name of {ascii(uri)} is not UTF-8; rename the file") from error
