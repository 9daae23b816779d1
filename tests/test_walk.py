"""From plan items to mask rows: every window once and in order, failures as rows, the same masks however cut."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from conftest import png
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import Affine
from torch import nn

from segray import walk
from segray.archives.images import read_for, read_header, read_image
from segray.archives.rasters import scaling_of
from segray.grid import Window, split
from segray.inputs import InputSpec
from segray.masks import IGNORE, Classes, decode_png
from segray.plan import Item, cut, whole
from segray.segmenter import Segmenter
from segray.shards import FAILED, NODATA, OK, MaskRow, mask_of
from segray.storage import File, publish
from segray.uris import join

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3, tile=32, overlap=8)
CLASSES = Classes(names=("a", "b", "c"), colors=((0, 0, 0), (9, 0, 0), (0, 9, 0)))
TRANSFORM = Affine(0.5, 0, 400000.25, 0, -0.5, 5800000.75)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 5, padding=2, padding_mode="reflect")
    return Segmenter(network, SPEC, num_classes=3, blend="taper", batch_size=3)


def raster(folder: Path, name: str = "r.tif", height: int = 100, width: int = 130) -> str:
    """A GeoTIFF without data in its left half."""
    uri = str(folder / name)
    pixels = RNG.integers(1, 256, (3, height, width), dtype=np.uint8)
    pixels[:, :, : width // 2] = 0
    sizes = {"height": height, "width": width, "count": 3, "dtype": "uint8", "nodata": 0}
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    with rasterio.open(uri, "w", driver="GTiff", crs="EPSG:32633", transform=TRANSFORM, **sizes, **tiles) as target:
        target.write(pixels)
    return uri


def picture(uri: str, height: int, width: int) -> str:
    publish(uri, png(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)))
    return uri


def items(uri: str, *, height: int, width: int, shard_pixels: int) -> list[Item]:
    lattice = SPEC.lattice("taper")
    return list(cut(File(uri, 1, "tag"), height=height, width=width, lattice=lattice, shard_pixels=shard_pixels))


def rows_of(
    work: list[Item], segmenter: Segmenter, window: int, *, spec: InputSpec = SPEC, **changes: bool
) -> list[MaskRow]:
    options = {"blend": "taper", "window": window, "explicit_bands": False, **changes}
    readings = walk.read_items(work, spec, **options)
    return list(walk.rows(walk.segment(readings, segmenter), CLASSES))


def joined(rows: list[MaskRow], height: int, width: int) -> np.ndarray:
    """The masks of the windows of one image, which must partition it."""
    mask, times = np.full((height, width), IGNORE, np.uint8), np.zeros((height, width), int)
    for row in rows:
        place = Window(row.row_off, row.col_off, row.height, row.width)
        times[place.rows, place.cols] += 1
        if row.mask:
            mask[place.rows, place.cols] = decode_png(row.mask)
    assert (times == 1).all()
    return mask


@pytest.mark.parametrize("window", [32, 40, 1000])
@pytest.mark.parametrize("shard_pixels", [1, 4000, 10**9])
def test_a_raster_has_the_same_mask_however_it_is_cut(tmp_path, segmenter, window, shard_pixels):
    uri = raster(tmp_path)
    rows = rows_of(items(uri, height=100, width=130, shard_pixels=shard_pixels), segmenter, window)
    whole_image = read_image(uri)
    assert (joined(rows, 100, 130) == segmenter.mask_image(whole_image.pixels, whole_image.valid)).all()
    for row in rows:
        place = Window(row.row_off, row.col_off, row.height, row.width)
        assert row.status == (OK if whole_image.valid[place.rows, place.cols].any() else NODATA)
        assert (row.image, row.etag, row.image_height, row.image_width) == (uri, "tag", 100, 130)
        assert row.crs == "EPSG:32633"
        assert row.transform == [0.5, 0, 400000.25 + 0.5 * row.col_off, 0, -0.5, 5800000.75 - 0.5 * row.row_off]


def test_a_picture_of_unknown_size_is_cut_into_windows_too(store, segmenter):
    uri = picture(join(store, "p.png"), 70, 50)
    rows = rows_of([whole(File(uri, 100, "t"))], segmenter, 32)
    assert [(row.row_off, row.col_off) for row in rows] == [
        (w.row_off, w.col_off) for w in split(Window(0, 0, 70, 50), 32)
    ]
    image = read_image(uri)
    assert (joined(rows, 70, 50) == segmenter.mask_image(image.pixels, image.valid)).all()
    assert {(row.crs, row.transform, row.status) for row in rows} == {(None, None, OK)}


def test_failures_are_rows_in_their_place_and_stop_nothing(tmp_path, segmenter):
    good = [picture(str(tmp_path / f"{n}.png"), 20 + n, 30) for n in range(12)]
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.tif").write_bytes(Path(raster(tmp_path)).read_bytes()[:3000])
    broken = [
        whole(File(str(tmp_path / "text.png"), 9, "t")),
        whole(File(str(tmp_path / "gone.png"), 9, "t")),
        Item(image="s3://b/deep.tif", etag="t", error="it has 9 bands"),
        *items(str(tmp_path / "cut.tif"), height=100, width=130, shard_pixels=10**9),
    ]
    work = [whole(File(uri, 9, "t")) for uri in good]
    for position, item in zip((0, 1, 5, 15), broken):
        work.insert(position, item)
    rows = rows_of(work, segmenter, 64)
    assert list(dict.fromkeys(row.image for row in rows)) == [item.image for item in work]
    failed = [row for row in rows if row.status == FAILED]
    assert [row.image for row in failed] == [item.image for item in broken[:3]] + [broken[3].image] * 6
    reasons = [row.error for row in failed]
    assert "no PNG, JPEG" in reasons[0]
    assert reasons[1].endswith("it does not exist")
    assert reasons[2] == "it has 9 bands"
    assert {(row.height > 0, row.mask, row.valid_pixels) for row in failed[3:]} == {(True, None, 0)}
    assert (failed[0].height, failed[0].image_height) == (0, 0)
    assert joined([row for row in rows if row.image == good[3]], 23, 30).max() < 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_failures_and_nothing_at_all(segmenter, count):
    rows = rows_of([Item(image=f"{n}", etag="", error="bad") for n in range(count)], segmenter, 64)
    assert [row.status for row in rows] == [FAILED] * count


def test_an_image_that_changed_its_size_is_a_failure_with_the_fix(tmp_path, segmenter):
    uri = raster(tmp_path)
    work = items(uri, height=100, width=130, shard_pixels=10**9)
    raster(tmp_path, height=100, width=140)
    (row,) = rows_of(work, segmenter, 1000)
    assert (row.status, row.crs, row.transform, row.image_width) == (FAILED, None, None, 130)  # its place is unknown
    assert "changed while it was segmented" in row.error
    assert "--overwrite" in row.error


def test_a_mismatch_is_a_failure_that_names_the_flag(tmp_path, segmenter):
    with rasterio.open(
        tmp_path / "4.tif", "w", driver="GTiff", height=9, width=9, count=4, dtype="uint8", photometric="MINISBLACK",
        alpha="no",
    ) as target:  # fmt: skip
        target.write(RNG.integers(0, 256, (4, 9, 9), dtype=np.uint8))
    work = items(str(tmp_path / "4.tif"), height=9, width=9, shard_pixels=10**9)
    (refused,), (taken,) = rows_of(work, segmenter, 64), rows_of(work, segmenter, 64, explicit_bands=True)
    assert "--bands 0,1,2" in refused.error
    assert (taken.status, taken.error) == (OK, None)


def test_few_images_are_in_memory_and_reading_is_in_order(tmp_path):
    uri = picture(str(tmp_path / "p.png"), 8, 8)
    taken = []

    def work():
        for number in range(100):
            taken.append(number)
            yield whole(File(uri, 1, f"{number}"))

    readings = walk.read_items(work(), SPEC, blend="taper", window=64, explicit_bands=False)
    for number in range(10):
        reading = next(readings)
        assert reading.place.etag == f"{number}" and reading.seconds > 0
        assert len(taken) <= number + walk.READ_THREADS + 1
    readings.close()
    assert len(taken) < 30


class Late:
    """Gives nothing until it has taken all regions, like a segmenter with a large batch. seen: their pixels."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref] = []

    def segment(self, regions):
        for region in regions:
            self.seen.append(weakref.ref(region.pixels))
        yield from ([] for _ in self.seen)


def test_pixels_are_let_go_once_they_are_segmented(tmp_path):
    uri, late = picture(str(tmp_path / "p.png"), 40, 40), Late()
    work = [whole(File(uri, 1, f"{number}")) for number in range(20)]
    results = walk.segment(walk.read_items(work, SPEC, blend="taper", window=64, explicit_bands=False, ahead=1), late)
    next(results)
    gc.collect()
    assert len(late.seen) == 20
    assert sum(pixels() is not None for pixels in late.seen) <= 2
    assert len(list(results)) == 19


def test_what_may_have_killed_a_process_is_not_opened_again(tmp_path, segmenter, monkeypatch):
    (item,) = items(raster(tmp_path), height=100, width=130, shard_pixels=10**9)
    monkeypatch.setattr(walk, "read_header", None)
    monkeypatch.setattr(walk, "read_for", None)
    (row,) = rows_of([replace(item, error="it kills")], segmenter, 1000)
    assert (row.status, row.error, row.crs) == (FAILED, "it kills", None)


class NoNumbers(nn.Conv2d):
    """Gives NaN for tiles with a bright pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).masked_fill(x.amax(dim=(1, 2, 3), keepdim=True) > 0, float("nan"))


def test_an_image_for_which_the_network_gives_no_numbers_is_a_failure_and_stops_nothing(tmp_path):
    for name, value in (("a", 0), ("b", 255), ("c", 0)):
        Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    work = [whole(File(str(tmp_path / f"{name}.png"), 1, "t")) for name in "abc"]
    rows = rows_of(work, Segmenter(NoNumbers(3, 3, 1), SPEC, num_classes=3, blend="taper", batch_size=1), 99)
    assert [row.status for row in rows] == [OK, FAILED, OK]
    assert "b.png: the network gives no numbers (NaN)" in rows[1].error


def fine_raster(folder: Path) -> str:
    """A GeoTIFF of 0.5 m a pixel with overviews and no data in a corner."""
    uri = str(folder / "fine.tif")
    pixels = np.repeat(np.repeat(RNG.integers(1, 256, (3, 40, 60), dtype=np.uint8), 5, 1), 5, 2)[:, :197, :291]
    pixels[:, :60, :90] = 0
    sizes = {"height": 197, "width": 291, "count": 3, "dtype": "uint8", "nodata": 0}
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    with rasterio.open(uri, "w", driver="GTiff", crs="EPSG:32633", transform=TRANSFORM, **sizes, **tiles) as target:
        target.write(pixels)
        target.build_overviews([2, 4], Resampling.average)
    return uri


def coarse_items(uri: str, resolution: float, shard_pixels: int) -> list[Item]:
    header = read_header(uri)
    size = {"height": header.height, "width": header.width}
    lattice = SPEC.lattice("taper")
    scaling = scaling_of(header, resolution)
    return list(cut(File(uri, 1, "tag"), **size, lattice=lattice, shard_pixels=shard_pixels, scaling=scaling))


@pytest.mark.parametrize(("resolution", "start"), [(None, 264), (1.2, 96 * 291 / 121)])
def test_only_windows_with_no_numbers_fail_and_lie_on_the_image_s_own_grid(tmp_path, resolution, start):
    """start: the first column of the last tiles, the only ones with the bright columns."""
    uri, spec = fine_raster(tmp_path), replace(SPEC, resolution=resolution)
    options = {"blend": "taper", "window": 40, "explicit_bands": False}
    (item,) = coarse_items(uri, resolution, 10**9)
    (reading,) = walk.read_items([item], spec, **options)
    reading.region.pixels[:], reading.region.pixels[:, :, -8:] = 0, 255
    broken = NoNumbers(3, 3, 1)
    sound = nn.Conv2d(3, 3, 1)
    sound.load_state_dict(broken.state_dict())
    rows, expected = (
        list(walk.rows(walk.segment([reading], Segmenter(network, spec, num_classes=3, blend="taper")), CLASSES))
        for network in (broken, sound)
    )
    joined(rows, 197, 291)
    assert {row.status for row in rows} == {OK, NODATA, FAILED}
    for row, same in zip(rows, expected, strict=True):
        if row.col_off + row.width > round(start):
            assert (row.status, row.row_off, row.col_off) == (FAILED, same.row_off, same.col_off)
            assert "gives no numbers" in row.error
        else:
            assert row == same


@pytest.mark.parametrize(("resolution", "size"), [(1.2, (82, 121)), (2.4, (41, 61))])
def test_a_coarse_model_sees_a_coarse_image(
    tmp_path: Path, segmenter: Segmenter, resolution: float, size: tuple
) -> None:
    uri, spec = fine_raster(tmp_path), replace(SPEC, resolution=resolution)
    masks = {}
    for enlarge, shard_pixels, window in [(True, 10**9, 1000), (True, 900, 40), (False, 10**9, 1000), (False, 900, 9)]:
        items = coarse_items(uri, resolution, shard_pixels)
        rows = rows_of(items, segmenter, window, spec=spec, enlarge=enlarge)
        masks[enlarge, shard_pixels] = joined(rows, *((197, 291) if enlarge else size))
        assert all(row.status in (OK, NODATA) and max(row.height, row.width) <= window for row in rows)
        masks_of_rows = [mask_of(vars(row), row.mask) for row in rows]
        counts = [np.bincount(mask[mask != IGNORE], minlength=3).tolist() for mask in masks_of_rows]
        assert [row.pixel_counts for row in rows] == counts
        assert [row.valid_pixels for row in rows] == [sum(count) for count in counts]
        expected = (197, 291) if enlarge else size
        assert {(row.image_height, row.image_width) for row in rows} == {expected}
        first = next(row for row in rows if not (row.row_off or row.col_off))
        if enlarge:
            assert tuple(first.transform) == tuple(TRANSFORM)[:6]
        else:
            assert first.transform[0] * size[1] == pytest.approx(0.5 * 291, rel=1e-12)
    fine, coarse = masks[True, 10**9], masks[False, 10**9]
    np.testing.assert_array_equal(masks[True, 900], fine)
    np.testing.assert_array_equal(masks[False, 900], coarse)
    rows, cols = (((np.arange(n) + 0.5) / (n / m)).astype(int) for n, m in zip(fine.shape, coarse.shape))
    np.testing.assert_array_equal(fine, coarse[rows[:, None], cols])
    assert (fine[:55, :85] == IGNORE).all()
    raster = read_for(uri, spec)  # means of a finer level, so close to means of the finest pixels
    scaling, exact = raster.scaling, read_image(uri)
    mean, valid = scaling.shrink(exact.pixels, exact.valid, Window(0, 0, *size))
    both = raster.valid & valid
    assert both.mean() > 0.85
    assert np.corrcoef(raster.pixels[:, both].ravel(), mean[:, both].ravel())[0, 1] > 0.95


def test_windows_of_an_image_that_nobody_has_measured_are_no_larger_than_asked(tmp_path, segmenter):
    """As those in rows of tables."""
    uri, spec = fine_raster(tmp_path), replace(SPEC, resolution=1.2)
    rows, measured = (
        rows_of(work, segmenter, 40, spec=spec)
        for work in ([Item(image=uri, etag="tag")], coarse_items(uri, 1.2, 10**9))
    )
    assert max(max(row.height, row.width) for row in rows) <= 40
    assert rows == measured


def test_details_of_a_coarse_image_are_on_the_grid_of_the_image(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, spec = fine_raster(tmp_path), replace(SPEC, resolution=1.2)
    monkeypatch.setattr(segmenter, "detailed", True)
    monkeypatch.setattr(segmenter, "sampled", True)
    options = {"blend": "taper", "window": 1000, "explicit_bands": False}
    for enlarge in (False, True):
        readings = walk.read_items([Item(image=uri, etag="")], spec, enlarge=enlarge, **options)
        (found,) = walk.segment(readings, segmenter)
        (result,) = found.on_grid()
        assert found.masks[0].mask.shape == (82, 121)  # kept small until it is asked for
        assert result.mask.shape == result.confidences.shape == ((197, 291) if enlarge else (82, 121))
        assert ((result.confidences == 0) == (result.mask == IGNORE)).all()
        if not enlarge:
            coarse = result
    down, across = 197 / 82, 291 / 121
    assert (result.sampled.logits == coarse.sampled.logits).all()
    np.testing.assert_array_equal(result.sampled.rows, ((coarse.sampled.rows + 0.5) * down).astype(int))
    places, on_coarse = ((found.sampled.rows, found.sampled.cols) for found in (result, coarse))
    np.testing.assert_array_equal(result.sampled.cols, ((coarse.sampled.cols + 0.5) * across).astype(int))
    np.testing.assert_array_equal(result.confidences[places], coarse.confidences[on_coarse])
    np.testing.assert_array_equal(result.mask[places], coarse.mask[on_coarse])


@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize("resolution", [None, 2.0])
def test_a_failed_window_says_where_it_lies(tmp_path, segmenter, resolution, enlarge) -> None:
    uri = fine_raster(tmp_path)
    Path(uri).write_bytes(Path(uri).read_bytes()[:-110_000])  # cuts some blocks of it and of its overviews
    spec, work = replace(SPEC, resolution=resolution), coarse_items(uri, resolution, 900)
    rows = rows_of(work, segmenter, 64, spec=spec, enlarge=enlarge)
    failed = [row for row in rows if row.status == FAILED]
    assert len(failed) > 1
    for row in failed:
        across, down = (291 / row.image_width * 0.5, 197 / row.image_height * 0.5)
        origin = 400000.25 + across * row.col_off, 5800000.75 - down * row.row_off
        assert row.crs == "EPSG:32633" and row.geometry
        np.testing.assert_allclose(row.transform, [across, 0, origin[0], 0, -down, origin[1]], rtol=1e-12)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_member_whose_container_is_gone_is_a_failed_row(tmp_path, segmenter, name) -> None:
    (row,) = rows_of([Item(image=f"zip://{name}::{tmp_path}/gone.zip", etag="")], segmenter, 64)
    assert row.status == FAILED and f"{tmp_path}/gone.zip cannot be " in row.error


def test_a_failed_coarse_image_has_the_windows_of_its_own_grid(tmp_path: Path, segmenter: Segmenter) -> None:
    uri = fine_raster(tmp_path)
    items = coarse_items(uri, 2.0, 900)
    Path(uri).unlink()
    spec = replace(SPEC, resolution=2.0)
    rows = rows_of(items, segmenter, 64, spec=spec)
    assert {row.status for row in rows} == {FAILED}
    joined(rows, 197, 291)
