"""Images at a low resolution, read only where that is cheap."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin

from segray.archives import mosaic, reduced, tars
from segray.archives.reduced import means, read_reduced
from segray.errors import ImageError
from segray.listing import list_files


def write(path, pixels: np.ndarray, **options: object) -> str:
    count, height, width = pixels.shape
    size = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(
        path, "w", driver="GTiff", transform=from_origin(0, 0, 1, 1), tiled=True, blockxsize=64, blockysize=64,
        **size, **options,
    ) as file:  # fmt: skip
        file.write(pixels)
    return str(path)


def gradient(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows % 256, cols % 256, (rows + cols) % 256]).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "scene", "a.2024"])
def test_a_small_image_is_read_and_averaged(tmp_path, name):
    pixels = gradient(240, 200)
    uri = str(tmp_path / name)
    if name != "a.png":
        write(uri, pixels)
    else:
        Image.fromarray(pixels.transpose(1, 2, 0)).save(uri)
    found, valid = read_reduced(uri, longest=60)
    assert found.shape == (3, 60, 50) and found.dtype == np.uint8 and valid.all()
    assert abs(found.astype(int) - means(pixels, 4)).max() <= 1
    whole, _ = read_reduced(uri, longest=1000)
    np.testing.assert_array_equal(whole, pixels)


def test_a_large_raster_is_read_from_its_overviews_only(tmp_path, monkeypatch):
    monkeypatch.setattr(reduced, "RASTER_PIXELS", 100 * 100)
    uri = write(tmp_path / "a.tif", gradient(400, 400))
    assert read_reduced(uri, longest=100) is None
    with rasterio.open(uri, "r+") as file:
        file.build_overviews([4], Resampling.average)
    found, _ = read_reduced(uri, longest=100)
    assert abs(found.astype(int) - means(gradient(400, 400), 4)).max() <= 1
    assert read_reduced(uri, longest=300) is None  # the overview is too coarse


def test_a_large_picture_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(reduced, "WHOLE_PIXELS", 100)
    Image.fromarray(gradient(20, 20).transpose(1, 2, 0)).save(tmp_path / "a.jpg")
    assert read_reduced(str(tmp_path / "a.jpg"), longest=10) is None


def test_validity_palette_and_alpha(tmp_path):
    pixels = gradient(64, 64) | 1
    pixels[:, :32] = 0
    _, valid = read_reduced(write(tmp_path / "nodata.tif", pixels, nodata=0), longest=16)
    assert valid[9:].all() and not valid[:7].any()
    uri = write(tmp_path / "alpha.tif", np.concatenate([pixels, pixels[:1] * 0 + 255]))
    with rasterio.open(uri, "r+") as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    found, valid = read_reduced(uri, longest=16)
    assert found.shape == (3, 16, 16) and valid.all()
    uri = str(tmp_path / "palette.tif")
    write(uri, np.full((1, 64, 64), 7, np.uint8), photometric="palette")
    with rasterio.open(uri, "r+") as file:
        file.write_colormap(1, {7: (10, 200, 30, 255)})
    assert read_reduced(uri, longest=16)[0][:, 3, 5].tolist() == [10, 200, 30]


def test_only_bands_that_are_looked_at_are_read(tmp_path, monkeypatch):
    pixels = np.concatenate([gradient(64, 64), 255 - gradient(64, 64)])
    uri = write(tmp_path / "six.tif", pixels)
    read, asked = rasterio.DatasetReader.read, []

    def spy(source: rasterio.DatasetReader, bands: list[int], **options: object) -> np.ndarray:
        asked.append(bands)
        return read(source, bands, **options)

    monkeypatch.setattr(rasterio.DatasetReader, "read", spy)
    found, _ = read_reduced(uri, longest=64, choose=lambda header: (header.bands - 1, 0))
    np.testing.assert_array_equal(found, pixels[[5, 0]])
    assert asked == [[6, 1]]


def test_means_of_edges_and_types():
    values = np.arange(15, dtype=np.uint16).reshape(1, 3, 5)
    assert means(values, 2).tolist() == [[[3, 5, 6], [10, 12, 14]]]
    assert means(values, 2).dtype == np.uint16
    np.testing.assert_array_equal(means(values, 1), values)


def test_what_cannot_be_read_is_an_image_error(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"no tiff")
    for uri in (tmp_path / "a.tif", tmp_path / "none.tif"):
        with pytest.raises(ImageError, match="cannot be read"):
            read_reduced(str(uri), longest=10)


def test_a_member_and_a_level_of_a_tile_set_are_read(tmp_path):
    pixels = gradient(512, 512)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "x.png")
    for x, y in np.ndindex(2, 2):
        (tmp_path / "tree" / "3" / str(x)).mkdir(parents=True, exist_ok=True)
        tile = pixels[:, y * 256 : y * 256 + 256, x * 256 : x * 256 + 256].transpose(1, 2, 0)
        Image.fromarray(tile).save(tmp_path / "tree" / "3" / str(x) / f"{y}.png")
    (member,) = tars.members(next(list_files(str(tmp_path / "a.tar"))))
    for file in (member, mosaic.level("xyz", str(tmp_path / "tree"))):
        found, valid = read_reduced(file.uri, longest=128, part=file.part)
        np.testing.assert_array_equal(found, means(pixels, 4))
        assert valid.all()
