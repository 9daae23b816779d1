"""Rasters are read by window, with nodata, alpha and masks as validity, and their georeference to the last digit."""

from __future__ import annotations

import math
import random
import uuid
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import png
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine

from segray.archives import open_archive, rasters
from segray.archives.images import read_for, read_header, read_image
from segray.archives.members import CONTAINERS
from segray.archives.metadata import palette
from segray.archives.rasters import read
from segray.archives.reduced import read_reduced
from segray.errors import ImageError, MismatchError
from segray.grid import Window
from segray.inputs import InputSpec
from segray.listing import list_files
from segray.storage import publish
from segray.uris import join

RNG = np.random.default_rng(0)
RGB = RNG.integers(1, 256, (70, 90, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = RNG.integers(0, 65536, (70, 90), dtype=np.uint16)
COLUMN = np.arange(90) * np.ones((70, 1), int)  # each pixel's column
ALPHA = np.where(COLUMN < 7, 0, 255).astype(np.uint8)
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
BYTES = InputSpec(bands=(0, 1, 2), scale=1 / 255, mean=(0.5,) * 3, std=(0.2,) * 3)
FLAT = {"photometric": "MINISBLACK", "alpha": "no"}  # the fourth of four bands of bytes would be written as alpha
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"}


def tiff(
    folder: Path, pixels: np.ndarray, *, interpretation: tuple = (), mask: np.ndarray | None = None,
    internal: bool = True, palette: dict | None = None, **profile: object,
) -> str:  # fmt: skip
    """A tiny GeoTIFF of (H, W) or (H, W, C) pixels, with a mask (internal, or .msk beside it), palette and colours."""
    pixels = np.atleast_3d(pixels).transpose(2, 0, 1)
    sizes = dict(zip(("count", "height", "width"), pixels.shape))
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(folder / "made.tif", "w", driver="GTiff", dtype=pixels.dtype, **sizes, **profile) as target,
    ):
        if interpretation:
            target.colorinterp = interpretation
        if palette:
            target.write_colormap(1, palette)
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    return str(folder / "made.tif")


WINDOWS = [Window(0, 0, 70, 90), Window(0, 0, 1, 1), Window(69, 89, 1, 1), Window(13, 5, 40, 61), Window(64, 80, 6, 10)]


@pytest.mark.parametrize("profile", [{}, TILED, {**TILED, "interleave": "pixel"}, {"compress": "jpeg"}])
def test_windows_equal_the_whole(tmp_path, store, profile):
    uri = join(store, "x.tif")
    publish(uri, Path(tiff(tmp_path, RGB, **profile)).read_bytes())
    whole = read_image(uri)
    assert (whole.height, whole.width, whole.window) == (70, 90, Window(0, 0, 70, 90))
    assert profile.get("compress") == "jpeg" or (whole.pixels == RGB.transpose(2, 0, 1)).all()
    for window in WINDOWS:
        part = read(uri, window)
        assert (part.window, part.height, part.width) == (window, 70, 90)
        assert (part.pixels == whole.pixels[:, window.rows, window.cols]).all()
        assert (part.valid == whole.valid[window.rows, window.cols]).all()


FLOATS = np.where(COLUMN < 9, np.nan, GREY).astype(np.float32)
HOLES = np.where(COLUMN[..., None] < 9, 0, RGB).astype(np.uint8)
ONE_HOLE = np.where((COLUMN < 9)[..., None] & (np.arange(3) == 1), 0, RGB).astype(np.uint8)


def one_hole(dtype: str, hole: float) -> np.ndarray:
    """(70, 90, 3) pixels with a hole in the middle band."""
    return np.where((COLUMN < 9)[..., None] & (np.arange(3) == 1), hole, RGB.astype(dtype))


LEAST = float(np.finfo(np.float32).min)
CASES = {  # name -> (pixels, options, the first column that has data)
    "all": (RGB, {}, 0),
    "nodata": (HOLES, {"nodata": 0}, 9),
    "nodata in one band of three": (ONE_HOLE, {"nodata": 0}, 0),
    "nodata of 16 bit in one band": (one_hole("int16", -32768), {"nodata": -32768}, 9),
    "nodata of unsigned 16 bit in one band": (one_hole("uint16", 65535), {"nodata": 65535}, 9),
    "nodata of 16 bit in one band that may be black": (one_hole("uint16", 0), {"nodata": 0}, 0),
    "nodata of floats in one band": (one_hole("float32", -9999), {"nodata": -9999}, 9),
    "huge nodata of floats in one band": (one_hole("float32", 1e20), {"nodata": 1e20}, 9),
    "nodata of 16 bit": (np.where(COLUMN < 9, 65535, 5).astype(np.uint16), {"nodata": 65535}, 9),
    "nodata of floats": (np.where(COLUMN < 9, -9999, 0.5).astype(np.float32), {"nodata": -9999}, 9),
    "nodata is the least float": (np.where(COLUMN < 9, LEAST, 0.5).astype(np.float32), {"nodata": LEAST}, 9),
    "nodata is NaN": (FLOATS, {"nodata": np.nan}, 9),
    "NaN unannounced": (FLOATS, {}, 9),
    "infinity": (np.where(COLUMN < 9, np.inf, 1).astype(np.float32), {}, 9),
    "alpha": (np.dstack([RGB, ALPHA]), {"interpretation": RGBA}, 7),
    "alpha and nodata": (np.dstack([HOLES, ALPHA]), {"interpretation": RGBA, "nodata": 0}, 9),
    "faint alpha": (np.dstack([RGB, np.minimum(ALPHA, 1)]), {"interpretation": RGBA}, 7),
    "internal mask": (RGB, {"mask": ALPHA}, 7),
    "mask beside it": (RGB, {"mask": ALPHA, "internal": False}, 7),
    "mask and alpha": (np.dstack([RGB, GREY]), {"interpretation": RGBA, "mask": ALPHA}, 7),
    "mask and nodata": (HOLES, {"mask": ALPHA, "nodata": 0}, 9),
    "mask and NaN": (FLOATS, {"mask": ALPHA}, 9),
}


@pytest.mark.parametrize("name", CASES)
def test_validity(tmp_path, name):
    pixels, options, first = CASES[name]
    uri = tiff(tmp_path, pixels, **TILED, **options)
    raster = read_image(uri)
    assert (raster.valid == (first <= COLUMN)).all()
    assert raster.pixels.shape[0] == read_header(uri).bands == min(3, np.atleast_3d(pixels).shape[2])
    assert raster.pixels.dtype == pixels.dtype == read_header(uri).dtype
    part = read(uri, Window(3, 2, 10, 20))
    assert (part.valid == raster.valid[3:13, 2:22]).all()


def test_a_palette_becomes_colours(tmp_path):
    ids = (GREY % 4).astype(np.uint8)
    colours = {0: (9, 8, 7, 255), 1: (255, 0, 0, 255), 2: (0, 255, 1, 255), 3: (1, 2, 255, 255)}
    uri = tiff(tmp_path, ids, palette=colours, nodata=2)
    raster = read_image(uri)
    assert (raster.pixels.transpose(1, 2, 0) == np.array([colours[i][:3] for i in range(4)], np.uint8)[ids]).all()
    assert (raster.valid == (ids != 2)).all()
    assert read_header(uri).bands == 3


def test_a_palette_may_have_alpha_behind_it(tmp_path):
    ids = (GREY % 3).astype(np.uint8)
    colours = {0: (9, 8, 7, 255), 1: (255, 0, 0, 255), 2: (0, 255, 1, 255)}
    uri = tiff(tmp_path, np.dstack([ids, ALPHA]), palette=colours, photometric="palette", alpha="yes")
    raster, header = read_image(uri), read_header(uri)
    assert (raster.pixels.transpose(1, 2, 0) == np.array([colours[i][:3] for i in range(3)], np.uint8)[ids]).all()
    assert (raster.valid == (COLUMN >= 7)).all()
    assert (header.bands, header.alpha) == (3, 0)
    pixels, valid = read_reduced(uri, longest=100)
    assert (pixels == raster.pixels).all() and (valid == raster.valid).all()


@pytest.mark.parametrize(("nodata", "pixel", "valid"), [(None, 0, True), (200, 200, False)])
def test_missing_tiles_have_no_data_where_that_is_a_value(tmp_path, nodata, pixel, valid):
    profile = {"width": 64, "height": 64, "count": 1, "dtype": "uint8", "nodata": nodata, "sparse_ok": True, **TILED}
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", **profile) as target:
        target.write(np.full((1, 32, 16), 7, np.uint8), window=rasterio.windows.Window(16, 32, 16, 32))
    raster = read_image(str(tmp_path / "s.tif"))
    assert (raster.pixels[0, 32:, 16:32] == 7).all()
    assert raster.valid[32:, 16:32].all()
    assert (raster.pixels[0, 0, 0], raster.valid[0, 0]) == (pixel, valid)


TRANSFORMS = {
    "north up": Affine(0.1, 0, 500000.123456789, 0, -0.1, 5000000.987654321),
    "rotated": Affine(0.1, 0.2, 1 / 3, 0.3, -0.4, 2 / 3),
    "south up": Affine(1e-5, 0, 13.377704, 0, 1e-5, 52.516275),
}


SYSTEMS = [
    "EPSG:32633",
    "EPSG:4326",
    "+proj=laea +lat_0=1 +lon_0=2 +datum=WGS84 +units=m",
    "+proj=utm +zone=33 +ellps=intl +towgs84=-187,-98,-121,0,0,0,0",  # 80 m from EPSG:23033
    "+proj=tmerc +lon_0=9 +x_0=3500000 +ellps=bessel",  # 400 m from EPSG:5683
]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("crs", SYSTEMS)
def test_georeference_is_kept_to_the_last_digit(tmp_path, name, crs):
    uri = tiff(tmp_path, GREY, crs=crs, transform=TRANSFORMS[name])
    header, raster = read_header(uri), read(uri, Window(5, 6, 7, 8))
    assert header.transform == raster.transform == tuple(TRANSFORMS[name])[:6]
    assert header.crs == raster.crs
    assert rasterio.CRS.from_string(raster.crs) == rasterio.CRS.from_string(crs)
    assert not crs.startswith("EPSG") or raster.crs == crs


def test_absent_georeference_is_none(tmp_path):
    bare = read_image(tiff(tmp_path, GREY))
    assert (bare.crs, bare.transform) == (None, None)
    placed = read_image(tiff(tmp_path, GREY, transform=TRANSFORMS["rotated"]))
    assert (placed.crs, placed.transform) == (None, tuple(TRANSFORMS["rotated"])[:6])


def test_a_crs_without_a_transform_is_no_place(tmp_path):
    """GDAL gives it the identity, which would put its first pixel at the CRS's origin."""
    uri = tiff(tmp_path, GREY, crs="EPSG:32633")
    for found in (read_header(uri), read_image(uri)):
        assert (found.crs, found.transform) == ("EPSG:32633", None)
    assert read_header(uri).resolution is None
    assert read_image(uri, resolution=2.0).pixels.shape == (1, 70, 90)


VRT = """<VRTDataset rasterXSize="90" rasterYSize="70"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>
</VRTDataset>"""


def test_a_file_that_names_another_file_is_never_opened(tmp_path):
    (tmp_path / "evil.tif").write_text(VRT.format(tiff(tmp_path, GREY)))
    with rasterio.open(tmp_path / "evil.tif") as source:  # plain GDAL would open it
        assert (source.read(1) == GREY).all()
    for read_it in (read_image, read_header):
        with pytest.raises(ImageError, match="not recognized"):
            read_it(str(tmp_path / "evil.tif"))


def test_complex_numbers_and_huge_blocks_are_refused(tmp_path):
    with pytest.raises(ImageError, match="complex"):
        read_image(tiff(tmp_path, GREY.astype(np.complex64)))
    sizes = {"width": 40000, "height": 40000, "blockxsize": 32768, "blockysize": 16384}
    profile = {"count": 1, "dtype": "uint8", "tiled": True, "sparse_ok": True, **sizes}
    with rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", compress="deflate", **profile):
        pass
    with pytest.raises(ImageError, match="blocks of 16384 x 32768"):
        read(str(tmp_path / "b.tif"), Window(0, 0, 1, 1))


def test_bands_in_pages_are_refused_and_overviews_and_masks_are_no_pages(tmp_path, store):
    pages = [Image.fromarray(band) for band in RGB.transpose(2, 0, 1)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    data, sentence = (tmp_path / "pages.tif").read_bytes(), r"pages\.tif holds 3 pages.* write its bands into one page"
    uri = join(store, "pages.tif")
    publish(uri, data)
    calls = (read_header, read_image, lambda name: rasters.read_bytes(name, data, None))
    for call in calls:
        with pytest.raises(ImageError, match=sentence):
            call(uri)

    single = tiff(tmp_path, RGB, mask=ALPHA)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(single, "r+") as target:
        target.build_overviews([2, 4])
    assert (read_image(single).pixels == RGB.transpose(2, 0, 1)).all()


def test_truncated_rasters_are_refused_with_the_same_reason_in_every_run(tmp_path, store, no_pause):
    data = Path(tiff(tmp_path, RGB)).read_bytes()
    for content in (data[: len(data) // 2], data[:50], b"", b"II*\0"):
        publish(join(store, "x.tif"), content)
        reasons = set()
        for _ in range(2):
            with pytest.raises(ImageError, match=r"x\.tif cannot be read: .*(failed|TIFF|not recognized)") as caught:
                read_image(join(store, "x.tif"))
            reasons.add(str(caught.value))
        assert len(reasons) == 1
        assert "vsi" not in reasons.pop()


def test_the_reason_of_a_damaged_file_has_its_name_whatever_that_is(tmp_path):
    path = tmp_path / f"{uuid.UUID(int=7)}.tif"
    path.write_bytes(b"no TIFF")
    with pytest.raises(ImageError, match=rf"{path.name} cannot be read: '.*{path.name}' not recognized"):
        read_image(str(path))


@pytest.mark.parametrize("name", ["x.tif", "x.jp2"])
def test_an_empty_member_is_refused_as_an_empty_file(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"")
    (member,) = CONTAINERS["zip"].members(next(list_files(str(tmp_path / "a.zip"))))
    for read_it in (read_header, read_image):
        with pytest.raises(ImageError, match=rf"{name}.* cannot be read: the file is empty"):
            read_it(member.uri, part=member.part)


@pytest.mark.parametrize("data", [b"x", b"II*\0", b"II*\0" + bytes(100)])
def test_a_damaged_member_is_refused_with_the_same_reason_in_every_run(data):
    reasons = set()
    for _ in range(2):
        with pytest.raises(ImageError, match=r"zip://x\.tif::a\.zip cannot be read: .*the member.* ") as caught:
            rasters.header_of_bytes("zip://x.tif::a.zip", data)
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    assert "vsi" not in reasons.pop()


def test_damaged_rasters_are_read_or_refused_and_never_more(tmp_path):
    uri = tiff(tmp_path, RGB[:20, :20], compress="deflate", crs="EPSG:4326", transform=TRANSFORMS["south up"])
    data, chance, refused = Path(uri).read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 2, 9])):
            damaged[chance.randrange(min(len(damaged), chance.choice([400, 10**6])))] = chance.randrange(256)
        Path(uri).write_bytes(damaged)
        try:
            header = read_header(uri)
            read(uri, Window(0, 0, min(20, header.height), min(20, header.width)))
        except ImageError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize("kept", [0.3, 0.8, 0.9999])
def test_a_jpeg_2000_that_is_cut_off_is_refused(tmp_path, kept):
    """Its driver's own threads would keep the error, and give whatever memory held."""
    sizes = {"width": 280, "height": 300, "count": 1, "blockxsize": 128, "blockysize": 128}
    with rasterio.open(tmp_path / "a.jp2", "w", driver="JP2OpenJPEG", dtype="uint8", **sizes) as target:
        target.write(RNG.integers(0, 256, (1, 300, 280), dtype=np.uint8))
    data = (tmp_path / "a.jp2").read_bytes()
    data = data[: int(kept * len(data))]
    (tmp_path / "a.jp2").write_bytes(data)
    with pytest.raises(ImageError, match="a.jp2 cannot be read: a.jp2, band 1: IReadBlock failed"):
        read_image(str(tmp_path / "a.jp2"))
    with pytest.raises(ImageError, match="a.jp2 cannot be read: the member, band 1: IReadBlock failed"):
        rasters.read_bytes("a.jp2", data, None)


@pytest.mark.parametrize(
    "pixel", [(0.0, 0.0, 0.0, 0.0), (1.0, 2.0, 2.0, 4.0), (math.nan, 0.0, 0.0, -1.0), (1e-200, 0.0, 0.0, 1e-200)]
)
def test_a_transform_that_places_nothing_is_none(tmp_path, pixel):
    a, b, d, e = pixel
    uri = tiff(tmp_path, RGB, crs="EPSG:32633", transform=Affine(a, b, 500000, d, e, 5800000))
    header, raster = read_header(uri), read_image(uri)
    assert (header.transform, header.resolution, raster.transform) == (None, None, None)


def test_a_header_of_more_pixels_than_can_be_planned_is_refused(tmp_path):
    uri = tiff(tmp_path, RGB, **{**TILED, "blockxsize": 8192, "blockysize": 8192})
    data = bytearray(Path(uri).read_bytes())
    for tag in (b"\x00\x01\x03\x00", b"\x01\x01\x03\x00"):  # width and height, as 16 bits: let them be 32
        place = data.index(tag + b"\1\0\0\0")
        data[place + 2], data[place + 8 : place + 12] = 4, (10**8).to_bytes(4, "little")
    Path(uri).write_bytes(data)
    with pytest.raises(ImageError, match="says that it has 100000000 x 100000000 pixels; if its header is not damaged"):
        read_header(uri)


def test_gdal_is_not_asked_about_all_bands_for_each_of_them():
    """Each question takes as long as there are bands: the header of 4,000 took half a minute."""
    asked = []

    class Source:
        indexes, dtypes = range(1, 401), ("uint8",) * 400

        @property
        def colorinterp(self) -> tuple[ColorInterp, ...]:
            asked.append(None)
            return (ColorInterp.gray,) * 400

    assert palette(Source()) is None
    assert len(asked) < 9


def test_a_raster_of_a_store_is_read_alone(tmp_path, s3):
    """By default GDAL lists the folder and tries dozens of files beside each raster, a request each."""
    uri = join(s3, "alone", "x.tif")
    publish(uri, Path(tiff(tmp_path, RGB, **TILED)).read_bytes())
    publish(join(s3, "alone", "x.tif.msk"), Path(tiff(tmp_path, ALPHA)).read_bytes())
    assert read_image(uri).valid.all()


@pytest.mark.parametrize(
    "name", ["a b.{}", "水é.{}", "a#b.{}", "a?b.{}", "a%20b.{}", "a::b.{}", "x.png::y.{}", "a*1.{}"]
)
def test_odd_names_are_images(tmp_path, s3, name):
    raster = Path(tiff(tmp_path, RGB)).read_bytes()
    for folder in (str(tmp_path / "o"), join(s3, "odd")):
        for ending, data in (("png", png(RGB)), ("tif", raster)):
            publish(join(folder, name.format(ending)), data)
            found = [file.uri for file in open_archive(folder).images() if file.uri.endswith(name.format(ending))]
            assert (read_image(found[0]).pixels == RGB.transpose(2, 0, 1)).all()
            assert read_header(found[0]).height == 70


@pytest.mark.parametrize(
    ("pixels", "spec", "explicit", "outcome"),
    [
        (RGB, BYTES, False, (0, 1, 2)),
        (GREY, BYTES, False, (0, 0, 0)),
        (RGB, BYTES.with_overrides(bands=(2, 1, 0)), False, (2, 1, 0)),
        (DEEP, BYTES, False, "--bands 0,0,0"),
        (np.dstack([RGB, GREY]), BYTES, False, "--bands 0,1,2"),
        (np.dstack([RGB, GREY]), BYTES.with_overrides(bands=(3, 1, 0)), True, (3, 1, 0)),
        (RGB[..., :2], BYTES, True, "these 3, or train .* --bands 0,1$"),
        (RGB.astype(np.uint16), BYTES, False, "--scale 1.52"),
        (RGB.astype(np.int16), BYTES, False, "--scale 3.05"),
        (RGB.astype(np.float32), BYTES, False, "--scale 1"),
        (RGB.astype(np.uint16), BYTES.with_overrides(scale=1 / 10000), False, (0, 1, 2)),
        (RGB.astype(np.int16), BYTES.with_overrides(scale=1 / 10000), False, (0, 1, 2)),
        (RGB.astype(np.float32), BYTES.with_overrides(scale=1.0), False, (0, 1, 2)),
        (RGB, BYTES.with_overrides(scale=1 / 10000), False, "--scale 0.0039"),
    ],
)
def test_images_are_taken_for_the_spec_or_refused_with_the_flag(tmp_path, pixels, spec, explicit, outcome):
    uri = tiff(tmp_path, pixels, **FLAT)
    if isinstance(outcome, str):
        with pytest.raises(MismatchError, match=outcome):
            read_for(uri, spec, explicit_bands=explicit)
        return
    taken = read_for(uri, spec, explicit_bands=explicit)
    expected = np.atleast_3d(pixels).transpose(2, 0, 1)[list(outcome)]
    assert taken.pixels.dtype == pixels.dtype
    assert (taken.pixels == expected).all()


def test_bands_can_be_named(tmp_path):
    uri = tiff(tmp_path, RGB)
    with rasterio.open(uri, "r+") as target:
        target.descriptions = ("Red", "green", "B02")
    spec = InputSpec(bands=(0, 1), scale=1 / 255, mean=(0.5,) * 2, std=(0.2,) * 2, band_names=("b02", "RED"))
    raster = read_for(uri, spec, explicit_bands=True)
    assert (raster.pixels == RGB.transpose(2, 0, 1)[[2, 0]]).all()
    assert read_header(uri).names == ("Red", "green", "B02")
    with pytest.raises(MismatchError, match="names its bands Red, green, B02, so --bands nir cannot be found"):
        read_for(uri, replace(spec, band_names=("nir", "red")), explicit_bands=True)
    with pytest.raises(MismatchError, match="names no band"):
        read_for(tiff(tmp_path, RGB), spec, explicit_bands=True)


def test_infrared_that_is_marked_as_alpha_is_data_where_it_is_chosen(tmp_path):
    infrared = np.where(COLUMN < 9, 0, GREY).astype(np.uint8)
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500000, 0, -0.5, 5800000)}
    uri = tiff(tmp_path, np.dstack([RGB, infrared]), **place)
    four = InputSpec(bands=(0, 1, 2, 3), scale=1 / 255, mean=(0.5,) * 4, std=(0.2,) * 4)
    assert (read_header(uri).bands, read_header(uri).alpha) == (3, 1)
    for order in ((0, 1, 2, 3), (3, 1, 0, 3)):
        raster = read_for(uri, replace(four, bands=order), explicit_bands=True)
        assert (raster.pixels == np.dstack([RGB, infrared]).transpose(2, 0, 1)[list(order)]).all()
        assert raster.valid.all()
    assert read_for(uri, four.with_overrides(resolution=1.0), explicit_bands=True).pixels.shape == (4, 35, 45)
    for explicit in (False, True):  # for a model of three bands the fourth is alpha
        raster = read_for(uri, BYTES, explicit_bands=explicit)
        assert (raster.valid == (COLUMN >= 9)).all() and len(raster.pixels) == 3
    with pytest.raises(MismatchError, match=r"3 band\(s\) and band 3, marked as alpha, .* --bands 0,1,2,3$"):
        read_for(uri, four)
    with pytest.raises(MismatchError, match=r"3 band\(s\) and band 3, marked as alpha, .* --bands 0,1,2$"):
        read_for(uri, BYTES.with_overrides(bands=(0, 1, 4)), explicit_bands=True)

    with rasterio.open(uri, "r+") as target:
        target.descriptions = ("red", "green", "blue", "nir")
        target.build_overviews([2])
    named = replace(four, band_names=("nir", "red", "green", "blue"))
    found = read_for(uri, named.with_overrides(resolution=1.0), explicit_bands=True)
    assert (
        found.pixels == read_for(uri, replace(four, bands=(3, 0, 1, 2), resolution=1.0), explicit_bands=True).pixels
    ).all()
    assert (read_for(uri, named, explicit_bands=True).pixels[0] == infrared).all()


def test_bands_that_are_not_read_decide_nothing(tmp_path):
    index = np.full((70, 90), np.nan)
    index[:5] = 0.5
    uri = tiff(tmp_path, np.dstack([RGB, index]).astype(np.float32))
    spec = BYTES.with_overrides(scale=1.0)
    assert read_for(uri, spec, explicit_bands=True).valid.all()
    both = replace(spec, bands=(0, 3, 1))
    assert (read_for(uri, both, explicit_bands=True).valid == np.isfinite(index)).all()

    filled = np.where(np.arange(90) < 9, 0, RGB.transpose(2, 0, 1) | 1).transpose(1, 2, 0).astype(np.uint8)
    uri = tiff(tmp_path, np.dstack([filled, np.full((70, 90), 7, np.uint8)]), nodata=0, **FLAT)
    found = read_for(uri, BYTES, explicit_bands=True)
    assert (found.valid == (COLUMN >= 9)).all()
    assert (found.pixels == filled.transpose(2, 0, 1)).all()


def test_overviews_have_the_names_of_the_bands(tmp_path):
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500000, 0, -0.5, 5800000)}
    uri = tiff(tmp_path, RGB, **place)
    with rasterio.open(uri, "r+") as target:
        target.descriptions = ("red", "green", "blue")
        target.build_overviews([2, 4])
    named = InputSpec(bands=(0, 1), scale=1 / 255, mean=(0.5,) * 2, std=(0.2,) * 2, band_names=("blue", "red"))
    for resolution in (0.5, 0.8, 1.0, 2.0, 3.0):
        found = read_for(uri, named.with_overrides(resolution=resolution), explicit_bands=True)
        assert (found.pixels == read(uri, None, resolution=resolution).pixels[[2, 0]]).all()


@pytest.fixture
def levels(monkeypatch) -> list[int | None]:
    """The levels that are opened: overviews, None for the raster itself."""
    seen, plain = [], rasters.borrow
    monkeypatch.setattr(
        rasters, "borrow", lambda *args, **options: seen.append(options.get("overview")) or plain(*args, **options)
    )
    return seen


def test_the_coarsest_overview_that_is_fine_enough_is_read(tmp_path, levels):
    transform = Affine(0.5, 0, 500000, 0, -0.5, 5800000)
    uri = tiff(tmp_path, RGB, crs="EPSG:32633", transform=transform)
    with rasterio.open(uri, "r+") as target:
        target.build_overviews([2, 4, 8], Resampling.average)
    for resolution, expected in ((0.9, [None]), (1.1, [None, 0]), (2.2, [None, 1]), (5.0, [None, 2])):
        levels.clear()
        assert read(uri, None, resolution=resolution).transform == tuple(transform)[:6]
        assert levels == expected


def half_valid(target: rasterio.io.DatasetWriter, how: str) -> None:
    """Make the left half of an open raster no data."""
    if how == "mask":
        target.write_mask(np.broadcast_to(np.where(COLUMN >= 45, 255, 0).astype(np.uint8), (70, 90)))
    else:
        target.nodata = 0


@pytest.mark.parametrize(
    ("how", "late", "outside"),  # outside: overviews and masks in files of their own
    [("nodata", False, False), ("nodata", False, True), ("nodata", True, False), ("nodata", True, True),
     ("mask", False, False), ("mask", False, True), ("mask", True, True)],
)  # fmt: skip
def test_what_is_valid_does_not_depend_on_when_overviews_were_made(
    tmp_path, monkeypatch, levels, *, how, late, outside
):
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500000, 0, -0.5, 5800000)}
    uri = tiff(tmp_path, np.where(np.arange(90)[:, None] < 45, 0, RGB | 1).astype(np.uint8), **place)
    steps = [lambda target: half_valid(target, how), lambda target: target.build_overviews([2, 4], Resampling.average)]
    for step in reversed(steps) if late else steps:
        with (
            rasterio.Env(TIFF_USE_OVR=outside, GDAL_TIFF_INTERNAL_MASK=not outside),
            rasterio.open(uri, "r+") as target,
        ):
            step(target)
    assert Path(f"{uri}.ovr").exists() == outside
    exact, coarse = read(uri, None), read(uri, None, resolution=1.0)
    assert (exact.valid == (COLUMN >= 45)).all()
    assert coarse.valid[:, 23:].all() and not coarse.valid[:, :22].any()
    assert levels == [None, None, 0]
    asked = []
    scaled = rasters._read_scaled
    monkeypatch.setattr(
        rasters, "_read_scaled", lambda source, *rest: asked.append(source.shape) or scaled(source, *rest)
    )
    read(uri, None, resolution=1.0)
    assert asked == [(70, 90) if late else (35, 45)]


def test_what_is_much_finer_is_read_in_parts_with_the_same_pixels(tmp_path, monkeypatch):
    uri = tiff(tmp_path, RGB, crs="EPSG:32633", transform=Affine(0.5, 0, 500000, 0, -0.5, 5800000))
    whole = read(uri, None, resolution=1.7)
    asked = []
    plain = rasters._read
    monkeypatch.setattr(
        rasters, "_read", lambda source, window, *bands: asked.append(window) or plain(source, window, *bands)
    )
    monkeypatch.setattr(rasters, "SHRUNK_PIXELS", 900)
    for window in (None, Window(3, 2, 14, 20)):
        parts = read(uri, window, resolution=1.7)
        rows, cols = (window or whole.window).rows, (window or whole.window).cols
        assert (parts.pixels == whole.pixels[:, rows, cols]).all()
        assert (parts.valid == whole.valid[rows, cols]).all()
    assert len(asked) > 6
    assert max(window.pixels for window in asked) <= 1000


def test_ground_control_points_are_no_affine(tmp_path):
    uri = tiff(tmp_path, GREY)
    points = [GroundControlPoint(r, c, 13 + c * 1e-4 + r * r * 1e-7, 52 - r * 1e-4) for r in (0, 69) for c in (0, 89)]
    with rasterio.open(uri, "r+") as target:
        target.gcps = (points, rasterio.CRS.from_epsg(4326))
    raster = read_image(uri)
    assert (raster.pixels[0] == GREY).all()
    assert (raster.crs, raster.transform) == (None, None)
    assert read_header(uri).resolution is None


ON_AN_ELLIPSOID = ("EPSG:3395", "EPSG:3994", "+proj=merc +y_0=-9e6 +units=us-ft")


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        ("EPSG:32633", TRANSFORMS["north up"], 0.1),
        ("EPSG:2263", Affine(2.0, 0, 980000, 0, -2.0, 200000), 2 * 1200 / 3937),  # US survey feet
        ("EPSG:4326", Affine(1e-4, 0, 13, 0, -1e-4, 60.0035), 11.132 * 0.5**0.5),
        ("EPSG:4807", Affine(1e-4, 0, 2, 0, -1e-4, 200 / 3 + 0.0035), 0.9 * 11.132 * 0.5**0.5),  # in gradians
        ("EPSG:3857", Affine(10, 0, 0, 0, -10, 8399737.9 + 350), 5.0),  # 60 degrees north
        ("EPSG:3857", Affine(10, 0, 0, 0, -10, 1e12), 0.1745),  # beyond every map: measured as at 89 degrees
        ("EPSG:900913", Affine(10, 0, 0, 0, -10, 8399737.9 + 350), 5.0),
        ("EPSG:3395", Affine(10, 0, 0, 0, -10, 8362698.5 + 350), 5.0),
        ("EPSG:3994", Affine(10, 0, 0, 0, -10, -3767132.0 + 350), 10.0),  # 41 degrees south, where it is true to scale
        ("+proj=merc +y_0=-9e6 +units=us-ft", Affine(10, 0, 0, 0, -10, -2090879.8 + 350), 5 * 1200 / 3937),
    ],
)
def test_metres_a_pixel(tmp_path, crs, transform, metres):
    found = read_header(tiff(tmp_path, GREY, crs=crs, transform=transform)).resolution
    assert found == pytest.approx(metres, rel=6e-3 if crs in ON_AN_ELLIPSOID else 1e-3)  # measured on a sphere
