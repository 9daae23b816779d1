"""Open rasters are reused while their file stays the same, by one thread at a time, and few are kept."""

from __future__ import annotations

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from containers import put, tar_of

from segray.archives import opened, ranges, tars
from segray.archives.images import read_header, read_image
from segray.archives.rasters import read
from segray.errors import ImageError
from segray.grid import Window, windows
from segray.storage import publish
from segray.uris import join

PIXELS = np.random.default_rng(0).integers(1, 256, (3, 300, 400), dtype=np.uint8)
PARTS = windows(300, 400, 70)


@pytest.fixture
def large(monkeypatch):
    """Every file of a store counts as large, so that none is read whole."""
    monkeypatch.setattr(ranges, "WHOLE_BYTES", 1000)


@pytest.fixture
def openings(monkeypatch) -> Counter:
    """How often each URI was opened while the test runs."""
    counts = Counter()

    class Counted(opened.OpenRaster):
        def __init__(self, uri: str, **options: object) -> None:
            counts[uri] += 1
            super().__init__(uri, **options)

    monkeypatch.setattr(opened, "OpenRaster", Counted)
    return counts


def make(folder: Path, pixels: np.ndarray = PIXELS, *, driver: str = "GTiff", **profile: object) -> bytes:
    """The bytes of a raster in blocks of 64 x 64 pixels."""
    sizes = dict(zip(("count", "height", "width"), pixels.shape))
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "dtype": pixels.dtype, **sizes, **profile}
    with rasterio.open(folder / "made", "w", driver=driver, **profile) as target:
        target.write(pixels)
    return (folder / "made").read_bytes()


def same(uri: str, part: Window, pixels: np.ndarray = PIXELS) -> bool:
    return (read(uri, part).pixels == pixels[:, part.rows, part.cols]).all()


def test_the_windows_of_a_file_open_it_once_a_thread(tmp_path, store, large, openings):
    uri = join(store, "x.tif")
    publish(uri, make(tmp_path, compress="deflate"))
    assert all(same(uri, part) for part in PARTS)
    assert openings == {uri: 1}
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda part: same(uri, part), PARTS * 4))
    assert openings[uri] <= 4


def test_a_file_that_changed_is_opened_anew(tmp_path, store, large):
    uri = join(store, "x.tif")
    for pixels in (PIXELS, 255 - PIXELS):
        publish(uri, make(tmp_path, pixels))
        if "://" not in uri:
            os.utime(uri, ns=(0, int(pixels[0, 0, 0])))  # the file system's clock may not have moved on
        assert all(same(uri, part, pixels) for part in PARTS[:3])


def test_few_rasters_are_kept_open_and_threads_share_them(tmp_path, store, large):
    uris = [join(store, f"{k}.tif") for k in range(3 * opened.MAX_IDLE)]
    data = make(tmp_path)
    for uri in uris:
        publish(uri, data)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda uri: same(uri, PARTS[7]), uris * 2))
    assert len(opened._idle._rasters) == opened.MAX_IDLE
    assert len(opened._files._open) <= opened.MAX_IDLE


def test_members_of_one_file_are_rasters_of_their_own_and_read_where_they_lie(tmp_path, large, monkeypatch):
    images = (PIXELS, 255 - PIXELS)
    rasters = {name: make(tmp_path, pixels) for name, pixels in zip(("a.tif", "b.tif"), images)}
    files = list(tars.members(put(str(tmp_path / "t.tar"), tar_of(rasters))))
    monkeypatch.setattr(tars, "read", None)
    for file, pixels in [*zip(files, images)] * 2:
        found = read_image(file.uri, part=file.part, window=PARTS[3])
        assert read_header(file.uri, part=file.part).width == 400
        assert (found.pixels == pixels[:, PARTS[3].rows, PARTS[3].cols]).all()


@pytest.mark.parametrize("driver", ["GTiff", "JP2OpenJPEG"])
def test_threads_that_open_and_close_do_not_disturb_each_other(tmp_path, driver):
    """Local files and stored ones at once: GDAL looks for file systems while rasters come and go."""
    options = {"driver": driver, **({"REVERSIBLE": "YES", "QUALITY": "100"} if driver != "GTiff" else {})}
    ending = "tif" if driver == "GTiff" else "jp2"
    uris = [str(tmp_path / f"a.{ending}"), f"memory://threads/a.{ending}", f"memory://threads/b.{ending}"]
    for uri in uris:
        publish(uri, make(tmp_path, **options))
    wrong = []

    def work(number: int) -> None:
        for k in range(60):
            uri, part = uris[(number + k) % 3], PARTS[k % len(PARTS)]
            header = read_header(uri)
            if not (header.width == 400 and same(uri, part)):
                wrong.append((uri, part))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("stripe", [1, 64 * 400 * 3 * 2, 10**9])
def test_stripes_do_not_change_a_window(tmp_path, store, large, monkeypatch, stripe):
    monkeypatch.setattr("segray.archives.rasters.STRIPE_BYTES", stripe)
    uri = join(store, "x.tif")
    for interleave in ("pixel", "band"):
        publish(uri, make(tmp_path, interleave=interleave, compress="lzw"))
        assert all(same(uri, part) for part in (*PARTS[:4], Window(63, 65, 66, 300), Window(0, 0, 300, 400)))


def test_damage_is_told_from_a_store_that_fails(tmp_path, store, no_pause, monkeypatch):
    """Damage is reported at once; a failing store raises its own error after the retries."""
    data = make(tmp_path, compress="deflate")
    for content in (data[: len(data) // 2], data[:50], b"", b"no raster" * 99):
        publish(join(store, "damaged.tif"), content)
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(join(store, "damaged.tif"))
    assert not no_pause
    if "://" in store:
        publish(join(store, "x.tif"), data)

        def fail(*arguments: object, **options: object) -> bytes:
            raise OSError("the store is down")

        monkeypatch.setattr(ranges._Opened, "fetch", fail)
        monkeypatch.setattr(ranges, "WHOLE_BYTES", 1000)
        with pytest.raises(OSError, match="the store is down"):
            read_image(join(store, "x.tif"))
        assert no_pause


def test_a_store_that_failed_once_is_asked_again(tmp_path, large, no_pause, monkeypatch):
    uri = "memory://asked-again/x.tif"
    publish(uri, make(tmp_path, compress="deflate"))
    assert same(uri, PARTS[0])
    with monkeypatch.context() as broken:

        def fail(*arguments: object, **options: object) -> bytes:
            raise OSError("the store is down")

        broken.setattr(ranges._Opened, "fetch", fail)
        with pytest.raises(OSError, match="the store is down"):
            same(uri, PARTS[-1])
    assert same(uri, PARTS[-1])


def test_nothing_stays_of_files_that_cannot_be_opened(large):
    before = len(opened._files._open)
    for number in range(3):
        publish(f"memory://damaged/{number}.tif", b"no raster" * 99)
        with pytest.raises(ImageError):
            read_image(f"memory://damaged/{number}.tif")
    assert len(opened._files._open) == before


def test_a_mask_without_any_valid_pixel_costs_no_pixels(tmp_path):
    uri = str(tmp_path / "made")
    make(tmp_path, compress="deflate")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(uri, "r+") as target:
        target.write_mask(np.where(np.arange(400) < 200, 0, 255).astype(np.uint8) * np.ones((300, 1), np.uint8))
    Path(uri).rename(tmp_path / "x.tif")
    empty, half = (read(str(tmp_path / "x.tif"), Window(0, col, 300, 200)) for col in (0, 100))
    assert not empty.valid.any()
    assert not empty.pixels.any()
    assert (half.valid == (np.arange(200) >= 100)).all()
    assert (half.pixels == PIXELS[:, :, 100:300]).all()


def test_what_failed_in_a_thread_does_not_fail_the_next_raster_there(tmp_path):
    """GDAL keeps the last error of a thread, and rasterio would raise it for a raster that another thread opened."""
    whole, damaged = tmp_path / "whole.tif", tmp_path / "damaged.tif"
    whole.write_bytes(make(tmp_path))
    damaged.write_bytes(make(tmp_path, compress="deflate")[:100_000])
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert one.submit(same, str(whole), PARTS[0]).result()
        with pytest.raises(ImageError):
            other.submit(read, str(damaged), None).result()
        assert other.submit(same, str(whole), PARTS[0]).result()
