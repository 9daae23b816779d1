"""Every odd picture is read as viewers show it, or refused in one sentence; the contract of every archive format."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from tiles import encoded
from web import served

from segray.archives import open_archive
from segray.archives.images import is_image, read_header, read_image
from segray.archives.options import ArchiveOptions
from segray.errors import ImageError, SegrayError
from segray.grid import Window
from segray.storage import publish
from segray.uris import join

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.stack(np.meshgrid(np.arange(40) * 4, np.arange(24) * 4), axis=-1).astype(np.uint8).repeat(2, -1)[..., :3]
DEEP = RNG.integers(0, 65536, (24, 40), dtype=np.uint16)
ALPHA = np.where(np.arange(40) < 7, 0, 255).astype(np.uint8) * np.ones((24, 1), np.uint8)


def put(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width: int, height: int, depth: int, kind: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def deep_png(bands: int) -> bytes:
    """A 16-bit PNG of grey, grey and alpha, RGB or RGBA, all bands alike."""
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(driver="PNG", count=bands, height=24, width=40, dtype="uint16") as target:
            target.write(np.stack([DEEP] * bands))
        return file.read()


def packed_png(values: np.ndarray, *, clear: int) -> bytes:
    """A 4-bit grey PNG, of which one value is transparent."""
    rows = b"".join(b"\0" + (row[::2] << 4 | row[1::2]).tobytes() for row in values)
    chunks = chunk(b"tRNS", struct.pack(">H", clear)), chunk(b"IDAT", zlib.compress(rows))
    return raw_png(values.shape[1], values.shape[0], 4, 0, *chunks)


PALETTE = Image.fromarray(RGB).quantize(16, dither=Image.Dither.NONE)
SEEN_PALETTE = np.asarray(PALETTE.convert("RGB"))
CMYK = Image.fromarray(SMOOTH).convert("CMYK")
CHANNELS_LAST = {  # name -> (bytes, the (H, W) or (H, W, C) pixels that viewers show, (H, W) validity or None)
    "rgb.png": (encoded(RGB), RGB, None),
    "one.png": (encoded(RGB[:1, :1]), RGB[:1, :1], None),
    "grey.png": (encoded(GREY), GREY, None),
    "deep.png": (encoded(DEEP), DEEP, None),
    "deep of GDAL.png": (deep_png(1), DEEP, None),
    "bits.png": (encoded(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0).astype(np.uint8), None),
    "palette.png": (encoded(PALETTE), SEEN_PALETTE, None),
    "trns.png": (encoded(PALETTE, transparency=3), SEEN_PALETTE, np.asarray(PALETTE) != 3),
    "key.png": (encoded(GREY, transparency=int(GREY[0, 0])), GREY, GREY[0, 0] != GREY),
    "deep_key.png": (encoded(DEEP, transparency=int(DEEP[0, 0])), DEEP, DEEP[0, 0] != DEEP),
    "packed_key.png": (packed_png(GREY // 16, clear=2), GREY // 16 * 17, GREY // 16 != 2),
    "rgba.png": (encoded(np.dstack([RGB, ALPHA])), RGB, ALPHA > 0),
    "la.png": (encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])), GREY, ALPHA > 0),
    "baseline.jpg": (encoded(SMOOTH, "JPEG", quality=95), SMOOTH, None),
    "progressive.jpg": (encoded(SMOOTH, "JPEG", quality=95, progressive=True), SMOOTH, None),
    "grey.JPEG": (encoded(SMOOTH[..., 0], "JPEG", quality=95), SMOOTH[..., 0], None),
    "cmyk.jpg": (encoded(CMYK, "JPEG", quality=95), SMOOTH, None),
    "lossless.webp": (encoded(RGB, "WEBP", lossless=True), RGB, None),
    "rgb.bmp": (encoded(RGB, "BMP"), RGB, None),
    "palette.bmp": (encoded(PALETTE, "BMP"), SEEN_PALETTE, None),
    "a jpeg called.png": (encoded(SMOOTH, "JPEG", quality=95), SMOOTH, None),
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_pictures_are_read_as_viewers_show_them(tmp_path, name):
    data, shown, valid = CHANNELS_LAST[name]
    uri = put(tmp_path, name, data)
    raster, header = read_image(uri), read_header(uri)
    pixels = raster.pixels.transpose(1, 2, 0) if shown.ndim == 3 else raster.pixels[0]
    lossy = b"JFIF" in data or name == "cmyk.jpg"
    assert (pixels.shape, pixels.dtype) == (shown.shape, shown.dtype)
    assert np.abs(pixels.astype(int) - shown)[raster.valid].max() <= (12 if lossy else 0)
    assert (raster.valid == (True if valid is None else valid)).all()
    assert (header.height, header.width, header.bands) == (*raster.valid.shape, raster.pixels.shape[0])
    assert header.dtype == raster.pixels.dtype
    assert raster.window == Window(0, 0, raster.height, raster.width)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, orientation, kind):
    turn = {  # how a camera stores the upright picture, for each of EXIF's orientations
        1: SMOOTH, 2: SMOOTH[:, ::-1], 3: SMOOTH[::-1, ::-1], 4: SMOOTH[::-1], 5: SMOOTH.transpose(1, 0, 2),
        6: np.rot90(SMOOTH, 1), 7: SMOOTH.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(SMOOTH, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turn[orientation])
    uri = put(tmp_path, f"x.{kind.lower()}", encoded(stored, kind, exif=exif, quality=95))
    raster, header = read_image(uri), read_header(uri)
    assert raster.pixels.shape == (3, 24, 40)
    assert np.abs(raster.pixels.transpose(1, 2, 0).astype(int) - SMOOTH).max() <= 12
    assert (header.height, header.width) == (24, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_needs_no_more_than_the_first_bytes(tmp_path, kind):
    data = encoded(RNG.integers(0, 256, (400, 300, 3), dtype=np.uint8), kind)
    header = read_header(put(tmp_path, f"x.{kind.lower()}", data[: len(data) // 4]))
    assert (header.height, header.width, header.bands) == (400, 300, 3)


BOMB = raw_png(60000, 60000, 8, 2, chunk(b"IDAT", zlib.compress(bytes(10**6), 9)))
TEXT_BOMB = raw_png(1, 1, 8, 0, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8), 9)), chunk(b"IDAT", b"x"))
BROKEN = {  # name -> (bytes, the reason)
    "cut.jpg": (encoded(RGB, "JPEG")[:-200], "truncated"),
    "cut.png": (encoded(RGB)[:-300], "truncated"),
    "cut.webp": (encoded(RGB, "WEBP")[:100], "decoder"),
    "cut.bmp": (encoded(RGB, "BMP")[:500], "truncated"),
    "empty.png": (b"", "empty"),
    "text.png": (b"this is no picture at all\n" * 9, "no PNG, JPEG, WebP or BMP"),
    "a gif.png": (encoded(GREY, "GIF"), "no PNG, JPEG, WebP or BMP"),
    "bomb.png": (BOMB, "tiled GeoTIFF"),
    "text_bomb.png": (TEXT_BOMB, "too large"),
    "deep_alpha.png": (deep_png(2), "16-bit .*; store it as GeoTIFF"),
    "deep_rgb.png": (deep_png(3), "16-bit .*; store it as GeoTIFF"),
    "deep_rgba.png": (deep_png(4), "16-bit .*; store it as GeoTIFF"),
    "empty.tif": (b"", "not recognized"),
    "text.tif": (b"this is no raster at all\n" * 9, "not recognized"),
    "a png.tif": (encoded(RGB), "not recognized"),
    "header.tif": (b"II*\0", "TIFF"),
    "empty.jp2": (b"", "not recognized"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_a_reason(tmp_path, name):
    data, reason = BROKEN[name]
    uri = put(tmp_path, name, data)
    with pytest.raises(ImageError, match="(?s)cannot be read: .*" + reason) as caught:
        read_image(uri)
    assert str(caught.value).startswith(uri)
    assert "\n" not in str(caught.value)
    if name.startswith(("bomb", "text", "a ", "empty", "deep")):
        with pytest.raises(ImageError, match="cannot be read"):
            read_header(uri)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jp2"])
def test_missing_images(store, name):
    for read in (read_header, read_image):
        with pytest.raises(ImageError, match="it does not exist"):
            read(join(store, name))


@pytest.mark.parametrize("name", ["rgb.png", "trns.png", "progressive.jpg", "lossless.webp", "palette.bmp"])
def test_damaged_bytes_are_read_or_refused_and_never_more(tmp_path, name):
    data = CHANNELS_LAST[name][0]
    chance = random.Random(name)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 2, 9])):
            damaged[chance.randrange(min(len(damaged), chance.choice([120, 10**6])))] = chance.randrange(256)
        uri = put(tmp_path, f"damaged{name[-5:]}", bytes(damaged))
        for read in (read_image, read_header):
            try:
                raster = read(uri)
                assert raster.height * raster.width <= 2**28
            except ImageError as error:
                assert "cannot be read" in str(error)
                refused += 1
    assert refused


def test_files_that_can_never_be_images_are_skipped_and_counted(store):
    for name in ("a.png", "b/c.JPG", "b/d.tiff", "readme.txt", "b/e.tif.aux.xml", "noending", "x.gif", "y.vrt"):
        publish(join(store, name), encoded(GREY))
    archive = open_archive(store)
    for _ in range(2):  # counted anew each time
        uris = [file.uri.rsplit("/", 1)[-1] for file in archive.images()]
        assert (uris, archive.skipped) == (["a.png", "c.JPG", "d.tiff"], 5)
    assert all(is_image(file.uri) for file in archive.images())


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_web_server_need_not_say_how_large_an_image_is(tmp_path, name):
    put(tmp_path, name, encoded(RGB, "TIFF" if name == "a.tif" else "PNG"))
    with served(tmp_path, sized=False) as address:
        (file,) = open_archive(f"{address}/{name}?sig=1").images()
        assert (file.uri, file.size) == (f"{address}/{name}?sig=1", 0)
        assert np.array_equal(np.moveaxis(read_image(file.uri).pixels, 0, -1), RGB)


@pytest.mark.parametrize(("content", "sentence"), [({}, "holds no file"), ({"a.txt": b""}, "none whose ending")])
def test_archives_without_images_are_refused(store, content, sentence):
    for name, data in content.items():
        publish(join(store, name), data)
    with pytest.raises(SegrayError, match=sentence):
        list(open_archive(store).images())


def test_an_asset_of_what_are_no_items_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(GREY))
    with pytest.raises(SegrayError, match="--asset visual has no effect: .* holds no STAC items; leave it out"):
        open_archive(str(tmp_path), ArchiveOptions(asset="visual"))


def test_names_that_no_table_can_hold_are_refused(tmp_path):
    (tmp_path / b"\xff.png".decode(errors="surrogateescape")).write_bytes(encoded(GREY))
    with pytest.raises(SegrayError, match="not UTF-8"):
        list(open_archive(str(tmp_path)).images())
