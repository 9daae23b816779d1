"""URIs of files on any fsspec store: which file system they name, their parts, and how to make one of another."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import zipfile

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.core import split_protocol, url_to_fs

from segray.errors import ImageError, SegrayError
from segray.store_errors import FINAL_ERRORS, describe, store_errors

# Stores on which a finished put is atomic: a reader sees the old object or the whole new one, never a part.
ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
PLAIN_STORES = ATOMIC_PUT | {"file", "local"}  # on these a file never lies inside another
GZIPPED = re.compile("tar://.*[.]tgz", re.IGNORECASE)  # fsspec knows .tar.gz only
REFERENCES = re.compile("(^|::)reference:")  # fsspec's scheme of files that list parts of others


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a URI and the path in it; SegrayError on a scheme that fsspec cannot open here.

    The container of a chain is opened, too; ImageError where it is missing, damaged or refused.
    """
    if REFERENCES.search(uri):
        raise SegrayError(f"{uri} is not opened: a file of references holds templates to execute; give the files")
    try:
        if "::" in uri and not is_chain(uri):  # fsspec would split the file's name
            fs = get_filesystem_class(split_protocol(uri)[0])()
            return fs, fs._strip_protocol(uri)
        with store_errors():
            return url_to_fs(uri, **({"tar": {"compression": "gzip"}} if GZIPPED.fullmatch(uri) else {}))
    except (ValueError, TypeError, ImportError) as error:  # TypeError: of a store that needs more than a URI
        raise SegrayError(f"{uri} cannot be opened: {describe(error)}; check the URI") from error
    except (tarfile.TarError, zipfile.BadZipFile, *FINAL_ERRORS) as error:
        raise ImageError(f"{uri} cannot be opened: {describe(error)}; check the URI") from error


def is_chain(uri: str) -> bool:
    """Whether a URI names a member of another file, as in tar://x.jpg::s3://b/a.tar; a plain name may hold "::" too."""
    protocol = split_protocol(uri)[0] or ("file" if uri.startswith("/") else "")
    return "::" in uri and protocol not in PLAIN_STORES


def ending(uri: str) -> str:
    """The ending of a file's name in lower case, as in .tif; see `bare`."""
    return posixpath.splitext(bare(uri))[1]


def bare(uri: str) -> str:
    """A URI in lower case, up to the end of the file's name; of a chain, the member's.

    On web servers, what follows "?" or "#", as in a signed address, is not part of the name.
    """
    name = uri.split("::", maxsplit=1)[0] if is_chain(uri) else uri
    if split_protocol(name)[0] in ("http", "https"):
        name = re.split("[?#]", name, maxsplit=1)[0]
    return name.lower()


def is_local(uri: str) -> bool:
    """Whether the URI names the local file system."""
    return protocol_of(filesystem(uri)[0]) in ("file", "local")


def join(uri: str, *parts: str) -> str:
    """The URI of something below a URI."""
    return posixpath.join(uri, *parts)


def beside(uri: str, name: str) -> str:
    """The URI of a file named relative to the folder of another; any `.` and `..` are resolved.

    Empty names between slashes stay, except on a disk: to stores they are names like any other.
    """
    scheme, mark, path = uri.rpartition("://")
    if scheme in ("http", "https"):
        path = re.split("[?#]", path, maxsplit=1)[0]
    named = path[: path.rfind("/") + 1] + name
    if scheme in ("", "file", "local"):
        return scheme + mark + posixpath.normpath(named)
    parts: list[str] = []
    for part in named.split("/"):
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    return scheme + mark + "/".join(parts)


def is_absolute(uri: str) -> bool:
    """Whether a text names a file by itself: a URI with a scheme, or an absolute path."""
    return uri.startswith("/") or split_protocol(uri)[0] is not None


def local_path(uri: str) -> str | None:
    """The absolute path of a local URI, None for any other."""
    return filesystem(uri)[1] if is_local(uri) else None


def real(uri: str) -> str:
    """A folder's canonical name: a local path with links and dots resolved; any other URI without trailing slashes."""
    path = local_path(uri)
    return os.path.realpath(path) if path else uri.rstrip("/")


def absolute(uri: str) -> str:
    """A local path, also the container's at the end of a chain, made absolute: workers run in other directories.

    Any other URI is unchanged, without trailing slashes.
    """
    if is_chain(uri):
        member, _, container = uri.rpartition("::")
        return f"{member}::{absolute(container)}"
    return local_path(uri) or uri.rstrip("/")


def protocol_of(fs: AbstractFileSystem) -> str:
    """The scheme of the URIs of a file system."""
    return fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
