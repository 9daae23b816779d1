"""Made-up archives and models: the size asked for, written once, the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import rasterio

from segray.archives import open_archive
from segray.archives.images import read_header, read_image
from segray.errors import SegrayError
from segray.made_up import archive_of, make_model, make_raster, make_tiles, model_of
from segray.model_dir import load_network, read_description
from segray.settings import BenchmarkSettings


@pytest.mark.parametrize("flat", [False, True])
def test_raster(tmp_path, *, flat):
    uri = make_raster(str(tmp_path / "deep" / "r.tif"), 1300, flat=flat)
    with rasterio.open(uri) as source:
        assert (source.width, source.height, source.count, source.crs.to_epsg()) == (1300, 1300, 3, 32633)
        assert source.block_shapes == [(512, 512)] * 3
        pixels = source.read()
    assert len(np.unique(pixels)) > 20
    assert (np.diff(pixels.astype(int), axis=2) == 0).mean() > (0.9 if flat else 0)
    assert Path(uri).stat().st_size < pixels.size * (0.02 if flat else 1)
    if not flat:
        assert np.array_equal(pixels[:, :, 1023], pixels[:, :, 1024])  # mirrored: no seam
    before = Path(uri).stat().st_mtime_ns
    assert make_raster(uri, 1300) == uri
    assert Path(uri).stat().st_mtime_ns == before


def test_raster_on_a_store():
    header = read_header(make_raster("memory://made-up/r.tif", 600))
    assert (header.height, header.width, header.bands) == (600, 600, 3)


def test_a_raster_that_could_not_be_written_whole_is_not_there(tmp_path, monkeypatch):
    def fill(source: object, target: BinaryIO, size: int) -> None:
        target.write(b"II*")
        raise OSError("No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fill)
    with pytest.raises(OSError, match="No space left"):
        make_raster(str(tmp_path / "r.tif"), 600)
    assert not list(tmp_path.iterdir())


def test_tiles(tmp_path):
    uri = make_tiles(str(tmp_path / "tiles"), 5)
    images = [read_image(file.uri) for file in open_archive(uri).images()]
    assert [image.pixels.shape for image in images] == [(3, 512, 512)] * 5
    assert len({image.pixels.tobytes() for image in images}) == 5


def test_model(tmp_path):
    networks = []
    for name in ("a", "b"):
        uri = make_model(str(tmp_path / name), "encoder_decoder?width=4")
        description = read_description(uri)
        networks.append(load_network(description).state_dict())
        assert len(description.classes) == 5
    assert all(bool((networks[0][name] == networks[1][name]).all()) for name in networks[0])
    assert make_model(str(tmp_path / "a"), "no such network") == str(tmp_path / "a")
    with pytest.raises(SegrayError, match="there is no network 'nosuch'; known: "):
        make_model(str(tmp_path / "c"), "nosuch")


def test_what_is_given_is_taken(tmp_path):
    settings = BenchmarkSettings(archive="/a", model="/m", output=str(tmp_path))
    assert archive_of(settings, side=10) == "/a"
    assert model_of(settings, "unet") == "/m"
    assert not list(tmp_path.iterdir())


def test_what_is_not_given_is_made_up(tmp_path):
    settings = BenchmarkSettings(image="tiles", count=2, output=str(tmp_path))
    assert len(list(open_archive(archive_of(settings, side=10, times=2)).images())) == 4
    cog = BenchmarkSettings(output=str(tmp_path))
    sizes = [read_header(archive_of(cog, side=side, flat=flat)).width for side, flat in ((40, False), (50, True))]
    assert sizes == [40, 50]
    assert read_description(model_of(cog, "encoder_decoder?width=4")).network["options"] == {"width": 4}
