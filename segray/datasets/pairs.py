"""Files that belong together: an image and its labels lie in two folders of a split and share their stem."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterator

from segray.archives.images import is_image
from segray.errors import SegrayError
from segray.listing import files_if_any, names
from segray.storage import File
from segray.uris import filesystem, join

LEGEND = "classes.json"
SPLITS = ("train", "val", "test")
VECTORS = (".geojson", ".gpkg", ".parquet")  # endings of vector labels
LABELS = {"labels", *(f"labels{ending}" for ending in VECTORS)}  # the folder of labels, or one file of vectors


def splits_at(uri: str) -> list[str]:
    """The splits that lie at a URI."""
    there = names(uri)
    return [split for split in SPLITS if split in there]


def check_split(uri: str, split: str) -> None:
    """SegrayError when a split is not there."""
    there = splits_at(uri)
    if split not in there:
        raise SegrayError(f"{uri} has no split '{split}'; there is {', '.join(there) or 'none'}")


def kinds_of_labels(uri: str) -> set[str]:
    """Which of `masks` and `labels` the splits at a URI have; see LABELS."""
    found = {name for split in splits_at(uri) for name in names(join(uri, split))}
    return ({"masks"} & found) | ({"labels"} if LABELS & found else set())


def pairs(folder: str, labels: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, File, File]]:
    """(stem, image, label) of the folders `images` and `labels` of a split's folder, sorted by stem.

    wanted: whether a URI is that of a label. SegrayError when a file lacks its partner.
    """
    found = images_of(folder), by_stem(join(folder, labels), wanted)
    for stem in sorted(found[0].keys() ^ found[1].keys()):
        there, lacking = (found[0], labels) if stem in found[0] else (found[1], "images")
        raise SegrayError(f"{there[stem].uri} has no {lacking.removesuffix('s')}: {_lack(join(folder, lacking), stem)}")
    return ((stem, image, found[1][stem]) for stem, image in found[0].items())


def _lack(folder: str, stem: str) -> str:
    """Why a folder has no partner of that stem: there may be one in a format that is not read, such as a shapefile."""
    parent, name = posixpath.split(stem)
    there = names(join(folder, parent))
    others = sorted(other for other in there if posixpath.splitext(other)[0] == name)
    if others:
        return f"{folder} holds {' and '.join(others)}, in no format that is read there; convert it"
    composed = {unicodedata.normalize("NFC", posixpath.splitext(other)[0]) for other in there}
    if unicodedata.normalize("NFC", name) in composed:  # macOS writes letters and accents apart
        return f"the name in {folder} has another Unicode form (NFC or NFD); rename one of them"
    return f"{folder} holds no {stem}.*"


def images_of(folder: str) -> dict[str, File]:
    """Stem -> image of a split's folder, sorted; SegrayError when there is none, or two share a stem."""
    images = by_stem(join(folder, "images"), is_image)
    if not images:
        raise SegrayError(f"{join(folder, 'images')} holds no image; put files into it and their labels beside it")
    return images


def by_stem(folder: str, wanted: Callable[[str], bool]) -> dict[str, File]:
    """Path below the folder without its ending -> file, sorted; SegrayError when two share one, or one is no file."""
    root, found = filesystem(folder)[1], {}
    for file in files_if_any(folder):  # the caller says what is missing
        if wanted(file.uri):
            if file.error:
                raise SegrayError(file.error)
            stem = posixpath.splitext(file.uri.partition(root + "/")[2])[0]
            if stem in found:
                raise SegrayError(f"{found[stem].uri} and {file.uri} have the same stem; remove one of them")
            found[stem] = file
    return dict(sorted(found.items()))
