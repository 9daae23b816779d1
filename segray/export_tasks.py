"""A worker's part of an export: it writes, publishes and describes a few scenes."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError

from segray.errors import SegrayError
from segray.exports import EXPORTS
from segray.exports.names import distinct, mirror
from segray.exports.stac import item
from segray.ordered import in_order
from segray.scenes import Masks, Scene, forget_shards
from segray.scratch import remove_abandoned, scratch
from segray.settings import ExportSettings
from segray.storage import is_file, publish_file
from segray.store_errors import describe, full_disk_named
from segray.uris import join

THREADS = 16  # stores have latency
# Errors of a single scene; any other (a full disk, a store that fails) ends the job, which can be run again.
SCENE_ERRORS = (SegrayError, RasterioError, CRSError, CPLE_BaseError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a scene. item: its STAC item, None when it failed. facts: numbers to be summed up.

    written: whether any of its files is new. there: whether all of them were there before. incomplete: whether a part
    of it was not segmented and is 255 in its file. scenes: 0 if this is the outcome of a file of all scenes.
    """

    image: str
    scenes: int = 1
    written: bool = False
    there: bool = False
    error: str | None = None
    incomplete: bool = False
    item: dict | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """What a worker needs to export scenes. usual: the image ending that names leave out (see `names.distinct`)."""

    masks: Masks
    settings: ExportSettings
    usual: str

    def formats(self, *, per_scene: bool) -> list[str]:
        """The formats that write a file for each scene, or those that write one for all."""
        return [name for name in self.settings.formats if EXPORTS[name].PER_SCENE is per_scene]

    def paths(self, scene: Scene) -> dict[str, str]:
        """Format -> path in the output, of the formats that can hold the scene."""
        found = {}
        for fmt in self.settings.formats:
            with suppress(*SCENE_ERRORS):
                found[fmt] = self._path(fmt, scene)
        return found

    def outcomes(self, scenes: list[Scene]) -> Iterator[Outcome]:
        """Write and publish the files of scenes that are not there yet; yields the outcome of each scene."""
        remove_abandoned()
        for scene in scenes:
            yield self._outcome(scene)
        forget_shards()

    def all_in_one(self, fmt: str, scenes: list[Scene]) -> Outcome:
        """Write the one file of a format that takes all scenes; its module decides which of them have a place in it."""
        remove_abandoned()
        module = EXPORTS[fmt]
        path, options = module.FILE, self.settings
        try:
            facts = self._publish(path, lambda local: module.write_all(self.masks, scenes, local, options))
        except SCENE_ERRORS as error:
            return Outcome(scenes=0, image=path, error=describe(error))
        forget_shards()
        return Outcome(scenes=0, image=path, written=facts is not None, there=facts is None, facts=facts or {})

    def _outcome(self, scene: Scene) -> Outcome:
        """Export a scene in all formats; if one of them fails, the scene has failed."""
        if not scene.is_usable:
            return Outcome(image=scene.image, error=scene.error or "it was not segmented")
        facts: dict[str, float] = {}
        assets, error, written = {}, None, False
        for fmt in self.settings.formats:
            try:
                path = self._path(fmt, scene)
                new = self._write(fmt, scene, path) if EXPORTS[fmt].PER_SCENE else None
            except SCENE_ERRORS as found:
                error = describe(found)
                continue
            of_tiles = path.endswith(".json")
            media_type = "application/json" if of_tiles else EXPORTS[fmt].MEDIA_TYPE
            assets[fmt] = (path, media_type, EXPORTS[fmt].LAYER)
            written = written or new is not None
            for key, value in (new or {}).items():  # its pixels are the same in every format
                facts[key] = value if key == "pixels" else facts.get(key, 0) + value
        described = item(self.masks, scene, self._id(scene), assets) if assets else None
        return Outcome(
            image=scene.image,
            written=written,
            there=error is None and not written and bool(self.formats(per_scene=True)),
            error=error,
            incomplete=error is None and scene.error is not None,
            item=described,
            facts=facts,
        )

    def _path(self, fmt: str, scene: Scene) -> str:
        module = EXPORTS[fmt]
        path = module.name(scene, self.masks.archive)
        if path is None:
            raise SegrayError(f"{scene.image} cannot be exported as {fmt}: {module.REFUSED}")
        return distinct(path, scene.image, self.usual) if module.PER_SCENE else path

    def _id(self, scene: Scene) -> str:
        """The name of the scene's files without their endings, which no other scene has."""
        name = mirror(scene.image, self.masks.archive, ".x")
        return posixpath.splitext(distinct(name, scene.image, self.usual))[0]

    def _write(self, fmt: str, scene: Scene, path: str) -> dict | None:
        module, options = EXPORTS[fmt], self.settings
        return self._publish(path, lambda local: module.write(self.masks, scene, local, options))

    def _publish(self, path: str, write: Callable[[str], dict]) -> dict | None:
        """Write a file and publish it; returns what `write` says of it, or None if it was there before."""
        uri = join(self.settings.output, path)
        if is_file(uri):
            return None
        with scratch() as folder, _bad_names_told(uri):
            local = os.path.join(folder, posixpath.basename(path))
            with full_disk_named(folder):
                facts = write(local)
            files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
            others = (file.relative_to(folder).as_posix() for file in files if str(file) != local)
            _publish_all(others, folder, posixpath.dirname(uri))
            publish_file(uri, local)  # last: its existence says that all of it is there
            return {**facts, "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _publish_all(names: Iterator[str], folder: str, output: str) -> None:
    """Publish files of a folder under the same names, several at once: a tile set has thousands of small ones."""

    def put(name: str) -> None:
        publish_file(join(output, name), os.path.join(folder, name))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in in_order(put, names, pool=pool, ahead=THREADS):  # on a full disk no more than these are tried
            pass


@contextmanager
def _bad_names_told(uri: str) -> Iterator[None]:
    """Turn a name that the file system cannot hold into an error of one scene; other errors of a disk end the job."""
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise SegrayError(
            f"{uri} cannot be written, as a file and a folder would have the same name; rename the image or its folder"
        ) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise SegrayError(f"{uri} is too long a path; give a shorter --output, or rename the image") from error
