"""Trees of tiles, ROOT/{z}/{x}/{y}.png, on any store: XYZ (rows count from the north) and TMS (from the south)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from segray.archives.entries import IMAGES
from segray.errors import SegrayError
from segray.listing import address, list_files
from segray.storage import File, exists, read_bytes, read_text, retry
from segray.uris import filesystem, is_local, join

ENDINGS = ("png", "jpg", "jpeg", "webp")
MAX_ZOOM = 30  # beyond, a tile is smaller than a coin
LOOKED_AT = 100  # files of a folder, to tell whether it is a tree of tiles
_NUMBER = "(0|[1-9][0-9]{0,9})"  # tile servers write no leading zeros, dates have them
_TILE = re.compile(rf"{_NUMBER}/{_NUMBER}\.({'|'.join(ENDINGS)})", re.IGNORECASE)
_ZOOM = re.compile(_NUMBER)
RESOURCE = "tilemapresource.xml"  # in which gdal2tiles describes a tree, unless it is run with --xyz
MERCATOR = ("mercator", "global-mercator")  # profiles of gdal2tiles and of the TMS specification
_PROFILE = re.compile(r"""<TileSets\s[^>]*?\bprofile\s*=\s*["']([^"']*)""")


class XYZ:
    """A tree of tiles. One of its zoom folders may be given instead (the last part of the URI is an integer)."""

    def __init__(self, uri: str, etag: str = "", *, endings: tuple[str, ...] = ENDINGS) -> None:
        """Endings: those that its tiles have, the most frequent first; a missing tile costs a request for each."""
        self._given, self._endings = uri.rstrip("/"), endings

    @cached_property
    def uri(self) -> str:
        """The URI of the tree's root, above the zoom folders."""
        return self._given if self._only is None else posixpath.dirname(self._given)

    def zooms(self) -> list[int]:
        """The zoom levels that have a folder, ascending; FileNotFoundError when nothing is there."""
        if self._only is not None:
            return [self._only]
        fs, path = filesystem(self.uri)
        fs.invalidate_cache()
        names = (posixpath.basename(info["name"].rstrip("/")) for info in retry(lambda: fs.ls(path, detail=True)))
        return sorted(zoom for name in names if (zoom := _zoom_of(name)) is not None)

    def tiles(self, zoom: int) -> Iterator[tuple[int, int]]:
        """(x, y) of the level's tiles in the order of the listing, y counted from the north."""
        return ((x, y) for x, y, _, _ in self.files(zoom))

    def files(self, zoom: int) -> Iterator[tuple[int, int, str, File]]:
        """(x, y, path below the zoom folder, file) of the level's tiles as `listing.list_files` gives them."""
        for name, file in _below(join(self.uri, str(zoom))):
            if place := _TILE.fullmatch(name):
                yield int(place[1]), self._row(zoom, int(place[2])), name, file

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        """The bytes of a tile, None when there is no such tile; whatever error the store gives."""
        for ending in self._endings:
            try:
                return read_bytes(join(self.uri, str(zoom), str(x), f"{self._row(zoom, y)}.{ending}"))
            except FileNotFoundError:
                continue
        return None

    @cached_property
    def _only(self) -> int | None:
        """The zoom of the folder that was given, None when it is a tree's root."""
        zoom = _zoom_of(posixpath.basename(self._given))
        return zoom if zoom is not None and _depth(self._given) == 2 else None

    @staticmethod
    def _row(zoom: int, y: int) -> int:
        """A row counted from the north as a row of this scheme, or the reverse."""
        return y


class TMS(XYZ):
    """A tree of tiles whose rows count from the south."""

    @staticmethod
    def _row(zoom: int, y: int) -> int:
        return 2**zoom - 1 - y


def tile_tree(uri: str) -> str | None:
    """The scheme of a folder that is a tree of tiles, "xyz" or "tms", else None; looks at its first files only.

    Its first pictures must all be z/x/y.png with z <= 30 and x, y < 2 ** z, or x/y.png below a folder named z. Both
    schemes look alike: TMS is recognised by its tilemapresource.xml.
    """
    depth = _depth(uri.rstrip("/"))
    if not depth:
        return None
    root = uri.rstrip("/") if depth == 3 else posixpath.dirname(uri.rstrip("/"))
    return "tms" if exists(join(root, RESOURCE)) else "xyz"


def check_profile(uri: str) -> None:
    """SegrayError when the tilemapresource.xml of a tree says that its tiles are not those of Web Mercator."""
    root = XYZ(uri).uri
    source = join(root, RESOURCE)
    found = _PROFILE.search(read_text(source)) if exists(source) else None
    if found and found[1] not in MERCATOR:
        reason = f"has tiles in the profile {found[1]}, not in Web Mercator"
        raise SegrayError(f"{root} {reason}; give the raster, or --tiles none")


def _depth(uri: str) -> int:
    """How many numbers name each of the first pictures of a folder: 3 in a tree, 2 in a zoom folder, 0 elsewhere."""
    try:
        names = [name for name, _ in islice(_below(uri), LOOKED_AT)]
    except FileNotFoundError:
        return 0
    names = [name for name in names if posixpath.splitext(name)[1].lower() in IMAGES]  # programs leave other files too
    if names and all(_is_tile(*name.partition("/")[::2]) for name in names):
        return 3
    return 2 if names and all(_is_tile(posixpath.basename(uri), name) for name in names) else 0


def _is_tile(zoom_folder: str, name: str) -> bool:
    zoom, place = _zoom_of(zoom_folder), _TILE.fullmatch(name)
    return zoom is not None and place is not None and max(int(place[1]), int(place[2])) < 2**zoom


def _zoom_of(name: str) -> int | None:
    return int(name) if _ZOOM.fullmatch(name) and int(name) <= MAX_ZOOM else None


def _below(uri: str) -> Iterator[tuple[str, File]]:
    """(path below a folder, file) of all its files, streamed; FileNotFoundError when nothing is there."""
    fs, path = filesystem(uri)
    start = len(path if is_local(uri) else address(fs, path, uri))
    return ((file.uri[start:].lstrip("/"), file) for file in list_files(uri))
