"""A STAC item collection, or a single item, as JSON: one asset of each item, by its role or by name.

STAC item specification 1.1.0, https://github.com/radiantearth/stac-spec/blob/v1.1.0/item-spec/item-spec.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote, urljoin

from segray.archives.images import is_image
from segray.archives.lists import listed
from segray.archives.once import once
from segray.archives.options import ArchiveOptions
from segray.errors import SegrayError
from segray.storage import File, read_text
from segray.uris import ending

ROLES = ("data", "visual")  # of an asset that holds imagery, the preferred one first
WEB = ("http://", "https://")


class StacArchive:
    """The assets of STAC items; relative hrefs start from the document's folder."""

    def __init__(self, uri: str, options: ArchiveOptions) -> None:
        self.uri, self.asset = uri, options.asset
        self.skipped = 0

    @classmethod
    def accepts(cls, uri: str, options: ArchiveOptions) -> bool:
        """Whether the URI has the ending of a STAC document."""
        return ending(uri) in (".json", ".geojson")

    def images(self) -> Iterator[File]:
        """One image per item, in document order, each once; SegrayError when an item has none or several."""
        items = self._items()
        if not items:
            raise SegrayError(f"{self.uri} holds no STAC item")
        yield from once(listed(self.uri, self._place(self._href(item))) for item in items)

    def _place(self, href: str) -> str:
        """An href as the name of a file: joined to a document on the web, else unescaped unless it is a store's URI."""
        if self.uri.startswith(WEB) and not href.startswith("file://"):
            return urljoin(self.uri, href)
        return unquote(href) if href.startswith("file://") or "://" not in href else href

    def _items(self) -> list[dict]:
        try:
            document = json.loads(read_text(self.uri))
            kind = document["type"]
            items = document["features"] if kind == "FeatureCollection" else [document] if kind == "Feature" else None
            if items is not None:
                if not all(isinstance(item["assets"], dict) for item in items):
                    raise ValueError("the assets of an item are an object")
                return items
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SegrayError(f"{self.uri} is no STAC item or item collection") from error
        raise SegrayError(f"{self.uri} is a STAC {kind}, not an item or item collection; save its items as one")

    def _href(self, item: dict) -> str:
        assets = {name: asset for name, asset in item["assets"].items() if _has_href(asset)}
        names = [self.asset] if self.asset else _imagery(assets)
        if len(names) != 1 or names[0] not in assets:
            why = f"has the assets {', '.join(assets) or 'none'}"
            raise SegrayError(f"item {item.get('id')} of {self.uri} {why}; name the one to segment with --asset")
        return assets[names[0]]["href"]


def _has_href(asset: object) -> bool:
    return isinstance(asset, dict) and isinstance(asset.get("href"), str)


def _imagery(assets: dict[str, dict]) -> list[str]:
    """The names of the assets that may be meant: those of the best role found, else those with an image's ending."""
    for role in ROLES:
        if found := [name for name, asset in assets.items() if role in _roles(asset)]:
            return found
    return [name for name, asset in assets.items() if is_image(asset["href"])]


def _roles(asset: dict) -> list:
    roles = asset.get("roles")
    return roles if isinstance(roles, list) else []
