"""How much one planning task holds at a time."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from containers import WRITERS
from scene_sets import raster

from segray import expand
from segray.archives import open_archive
from segray.archives.options import ArchiveOptions
from segray.expand import Cutting
from segray.grid import Lattice
from segray.inputs import InputSpec
from segray.listing import list_files

COUNT = 8
MORE = set(range(3, COUNT + 1))
SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3)
CUTTING = Cutting(
    spec=SPEC, explicit_bands=False, lattice=Lattice(512, 64), shard_pixels=2**22, options=ArchiveOptions()
)


def geotiff() -> bytes:
    return raster(np.ones((3, 20, 30), np.uint8))


def packed(path: Path) -> str:
    """A tar or a zip of some rasters."""
    path.write_bytes(WRITERS["".join(path.suffixes)]({f"{number}.tif": geotiff() for number in range(COUNT)}))
    return str(path)


@pytest.mark.parametrize(("bands", "blocks"), [((0, 1, 2), 1), ((0, 1, 2, 3, 4, 5), 2)])
def test_a_block_is_as_large_as_the_bands_that_are_read_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bands: tuple[int, ...], blocks: int
) -> None:
    (tmp_path / "a.tif").write_bytes(raster(np.ones((20, 64, 32), np.uint8)))
    monkeypatch.setattr(expand, "MAX_BLOCK_BYTES", 3 * 64 * 32)
    spec = replace(SPEC, bands=bands, mean=(0.5,) * len(bands), std=(0.2,) * len(bands), tile=32, overlap=8)
    cutting = replace(CUTTING, spec=spec, explicit_bands=True, lattice=spec.lattice("taper"))
    (found,) = expand.expand(tuple(list_files(str(tmp_path))), cutting)
    assert [item.error for item in found.items] == [None] * blocks


@pytest.mark.parametrize(
    ("name", "large", "together"),
    [("a.zip", 100, {2}), ("a.tar.gz", 100, {2}), ("a.tar", 100, MORE), ("a.zip", 10**6, MORE)],
)
def test_large_members_that_are_unpacked_whole_are_read_two_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: int, together: set[int]
) -> None:
    running, seen, lock, read_header = [], [], threading.Lock(), expand.read_header

    def slow(uri: str, **options: str) -> object:
        with lock:
            running.append(uri)
            seen.append(len(running))
        time.sleep(0.05)
        header = read_header(uri, **options)
        with lock:
            running.remove(uri)
        return header

    monkeypatch.setattr(expand, "read_header", slow)
    monkeypatch.setattr(expand, "UNPACKED_BYTES", large)
    packed(tmp_path / name)
    found = list(expand.expand(tuple(list_files(str(tmp_path))), CUTTING))
    assert [item.error for one in found for item in one.items] == [None] * COUNT
    assert max(seen) in together


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("reference://x.png::file:///a.json", "is not opened: a file of references holds templates to execute"),
        ("zip://x.png::reference://a.zip::file:///a.json", "is not opened: a file of references"),
        ("zip://x.png::reference::file:///a.json", "is not opened: a file of references"),
        ("jupyter://x.png", "cannot be opened: .*; check the URI"),
        ("data:,x.png", "cannot be read: "),
        ("s3://", "cannot be read: .*[Bb]ucket"),
        ("http://[/x.png", "cannot be read: "),
        ("nothing://x.png", "cannot be opened: Protocol not known"),
        ("/tmp", "cannot be read: it is a folder, not a file"),
    ],
)
def test_a_line_of_a_list_that_names_no_image_is_a_row(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "list.txt").write_text(line)
    (file,) = open_archive(str(tmp_path / "list.txt"), ArchiveOptions()).images()
    ((item,),) = (found.items for found in expand.expand((file,), CUTTING))
    assert re.search(reason, item.error)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tar", "a.pmtiles"])
def test_what_is_no_file_is_a_row_and_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("segray.storage.time.sleep", lambda seconds: None)
    (tmp_path / "0.tif").write_bytes(geotiff())
    os.mkfifo(tmp_path / name)
    (tmp_path / f"b-{name}").symlink_to(f"b-{name}")
    listing = tmp_path / "list.txt"
    listing.write_text(f"{name}\n{'x' * 300}.png\nb-{name}\n")
    for files in (list_files(str(tmp_path)), open_archive(str(listing), ArchiveOptions()).images()):
        items = [item for file in files for found in expand.expand((file,), CUTTING) for item in found.items]
        errors = [item.error for item in items if item.image[-4:] != ".txt" and "0.tif" not in item.image]
        assert "a pipe, a device or the like" in errors[0]
        assert "Too many levels of symbolic links" in errors[-1]
        assert all(" cannot be read: " in error for error in errors)
