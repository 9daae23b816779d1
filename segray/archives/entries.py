"""What the container formats share: which members are images, which names are refused, how damage is listed."""

from __future__ import annotations

import posixpath
import re

from segray.archives import pictures, rasters
from segray.errors import ImageError
from segray.storage import File
from segray.store_errors import reason_of

MAX_MEMBER_BYTES = 2**30  # of a member that is read whole: a larger one is a bomb or not worth its memory
IMAGES = pictures.ENDINGS | rasters.ENDINGS  # endings
SEPARATOR = re.compile(r"[/\\]")  # archives made on Windows use either


def is_wanted(name: str) -> bool:
    """Whether a member's name has the ending of an image and is not hidden (leading dot, __MACOSX)."""
    segments = [segment for segment in SEPARATOR.split(name) if segment not in ("", ".", "..")]
    hidden = any(segment.startswith(".") or segment == "__MACOSX" for segment in segments)
    return not hidden and posixpath.splitext(name)[1].lower() in IMAGES


def member(container: File, scheme: str, name: str, *, size: int, part: str, error: str | None = None) -> File:
    """The File of a member, with an error when its name is refused."""
    error = error or _fault(name)
    label = name.replace("::", "%3A%3A").replace("\0", "%00")  # a refused name must not look like another URI
    uri = f"{scheme}://{label}::{container.uri}"
    return File(uri, size, container.etag, part=part, error=f"{uri} cannot be read: {error}" if error else None)


def damaged(container: File, error: BaseException) -> File:
    """The File that stands for the part of a container that cannot be listed."""
    reason = str(error) if isinstance(error, ImageError) else f"{container.uri} cannot be listed: {reason_of(error)}"
    return File(container.uri, container.size, container.etag, error=reason)


def too_large(size: int) -> str | None:
    """Why a member of that many bytes is too large to be read whole, None when it is not."""
    if size <= MAX_MEMBER_BYTES:
        return None
    return f"it has {size} bytes, more than the {MAX_MEMBER_BYTES} that are read whole; store it as a file of its own"


def _fault(name: str) -> str | None:
    """What is wrong with a member's name, None when nothing is."""
    if "\0" in name or "::" in name:
        return 'its name has a NUL or "::" in it; rename it'
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", name):
        return "its name is an absolute path; pack it with a relative one"
    if ".." in SEPARATOR.split(name):
        return 'its name has ".." in it; pack it with a path inside the archive'
    return None
