"""What --overwrite removes: the files of the former export and those that the new one will write; no others."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from urllib.parse import unquote

from segray.export_tasks import Exporter
from segray.exports import EXPORTS
from segray.ordered import in_order
from segray.scenes import Scene
from segray.storage import exists, opened, remove_file
from segray.tasks import in_tasks
from segray.uris import join

FILES_A_TASK, THREADS = 256, 16  # stores have latency
File = tuple[str, str]  # format, path in the output


def remove_former(exporter: Exporter, groups: Iterable[list[Scene]], *, former: dict, collection: str) -> None:
    """Remove the files of scenes in the formats of the new and the former export, and all that its collection names.

    former: the record of the former export. collection: the URI of its collection, removed last, so that a removal that
    was killed can be repeated. Files of an export of other scenes that was killed before it wrote a collection stay.
    """
    output = exporter.settings.output
    listed = _listed(collection) if "masks_digest" in former and exists(collection) else iter(())
    chunks = iter(lambda: list(islice(listed, FILES_A_TASK)), [])
    for _ in in_tasks(partial(_remove, output), chunks):
        pass
    names = {name for name in str(former.get("format")).split(",") if name in EXPORTS}
    formats = ",".join(sorted(names | set(exporter.settings.formats)))
    both = replace(exporter, settings=replace(exporter.settings, format=formats))
    for _ in in_tasks(partial(_remove_scenes, both), groups):
        pass
    remove_file(collection)


def _listed(collection: str) -> Iterator[File]:
    """The files that a collection names, item by item: it has one item per line."""
    with opened(collection) as file:
        for line in file:
            yield from _files_of(line)


def _files_of(line: bytes) -> list[File]:
    """The files of an item that have a known format and lie in the output; none for a line without an item."""
    try:
        assets = json.loads(line.strip().rstrip(b","))["assets"]
        named = [(fmt, posixpath.normpath(unquote(asset["href"]))) for fmt, asset in assets.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [(fmt, path) for fmt, path in named if fmt in EXPORTS and not path.startswith(("/", ".."))]


def _remove_scenes(exporter: Exporter, scenes: list[Scene]) -> None:
    _remove(exporter.settings.output, (file for scene in scenes for file in exporter.paths(scene).items()))


def _remove(output: str, files: Iterable[File]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for fmt, path in dict.fromkeys(files):
            uri = join(output, path)
            remove_file(uri)  # first: its existence says that all of it is there
            for _ in in_order(remove_file, EXPORTS[fmt].beside(uri), pool=pool, ahead=THREADS):
                pass
