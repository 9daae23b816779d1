"""The names of exported files: paths as in the archive, safe below any output, and never the same for two images."""

from __future__ import annotations

import hashlib
import posixpath
import re

from segray.archives.entries import IMAGES
from segray.storage import TEMPORARY_BYTES
from segray.uris import is_chain

UNSAFE = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\[\]]')  # not allowed in some file systems, or patterns of fsspec
CONFIDENCE_STEM = ".confidence"  # what the stems of confidence's files end with, and those of no others
ADDED = "-0123456789" * 2 + CONFIDENCE_STEM + ".tif.aux.xml"  # the most added to a name
MAX_NAME_BYTES = 255 - len(ADDED) - TEMPORARY_BYTES  # file systems allow 255
WEB = re.compile(r"(^|::)(https?://)(?:[^/?#]*@)?([^?#]*).*", re.DOTALL)  # groups: what holds no credential


def mirror(image: str, archive: str, ending: str) -> str:
    """Where the file of an image goes in an output: its path in the archive, with another ending.

    Members of a file go to a folder with the file's name. What file names should not hold, or would lead out of the
    output, is replaced, and the user, query and fragment of a web address are left out, since they may be credentials;
    names changed like this carry a hash of the URI, so that no two images share one.
    """
    members, outer = _taken_apart(image)
    path = _below(outer, _taken_apart(archive)[1])
    if not path and not members:
        path = posixpath.basename(outer)
    names = [path, *members] if path else members
    raw = [part for name in names for part in name.split("/")]
    parts = [_safe(part) for part in raw if part not in ("", ".")]
    stem = _without_ending(parts[-1]) if parts else "image"
    if parts != raw or public(image) != image or stem.endswith(CONFIDENCE_STEM):
        stem += f"-{_hash(image)}"
    return "/".join([*parts[:-1], stem + ending])


def public(uri: str) -> str:
    """A URI without the user, query and fragment of a web address: those of a signed one hold its key."""
    return WEB.sub(r"\1\2\3", uri, count=1)


def distinct(name: str, image: str, usual: str) -> str:
    """The name of an image's file, or one with the image's own ending in it where another image could have that name.

    usual: the image ending that names leave out (see `ending_of`): if it is .jpg, a.jpg gives a.tif, and a.png beside
    it a.png.tif. The result depends on the arguments alone, so no list of names is kept.
    """
    own = ending_of(image)
    stem, new = posixpath.splitext(name)
    if stem.endswith(CONFIDENCE_STEM):
        stem, new = stem.removesuffix(CONFIDENCE_STEM), CONFIDENCE_STEM + new
    if own == usual and not ending_of(_without_ending(_last_name(image))):
        return name
    return f"{stem}{own or '-' + _hash(image)}{new}"


def ending_of(image: str) -> str:
    """The ending of an image's name if it is that of an image format, as written; else ""."""
    ending = posixpath.splitext(_last_name(image))[1]
    return ending if ending.lower() in IMAGES else ""


def _last_name(image: str) -> str:
    members, outer = _taken_apart(image)
    return posixpath.basename(members[-1] if members else outer)


def _without_ending(name: str) -> str:
    ending = ending_of(name)
    return name[: -len(ending)] if ending else name


def _taken_apart(uri: str) -> tuple[list[str], str]:
    """(paths of the members, outermost first; the URI of the file or folder that holds them)."""
    uri = public(uri)
    if not is_chain(uri):
        return [], uri
    *members, outer = uri.split("::")
    return [member.partition("://")[2].removeprefix("/") for member in reversed(members)], outer


def _below(uri: str, archive: str) -> str:
    """The path of a URI in the archive; outside it, its whole path, below its scheme if that is not the archive's."""
    archive = archive.rstrip("/")
    if uri == archive:
        return ""
    if uri.startswith(f"{archive}/"):
        return uri[len(archive) + 1 :]
    (ours, _), (theirs, path) = _scheme(archive), _scheme(uri)
    return path if ours == theirs else f"{theirs or 'file'}/{path}"


def _scheme(uri: str) -> tuple[str, str]:
    """(scheme, or "" of a local path; the path without it)."""
    scheme, separator, path = uri.partition("://")
    return (scheme, path.removeprefix("/")) if separator else ("", uri.removeprefix("/"))


def _safe(part: str) -> str:
    safe = UNSAFE.sub("_", "__" if part == ".." else part)
    if safe.startswith("."):  # hidden files are overlooked
        safe = f"_{safe[1:]}"
    if len(safe.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
        return safe
    return safe.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore") + ending_of(safe)


def _hash(image: str) -> str:
    return hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()[:10]
