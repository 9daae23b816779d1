"""The plain loop gives the masks that segray gives, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from models import write_model
from scene_sets import raster

from segray import peers, walk
from segray.errors import SegrayError
from segray.grid import Window
from segray.masks import IGNORE
from segray.model_dir import load_network, read_description
from segray.plan import Item
from segray.segmenter import Segmenter
from segray.shards import write_shard
from segray.synthetic import scene


def scene_of(path: Path, height: int, width: int) -> str:
    """A GeoTIFF with a corner without data."""
    image = np.maximum(scene(height, height, width)[0], 1)
    image[: height // 3, : width // 3] = 0
    path.write_bytes(raster(image.transpose(2, 0, 1), nodata=0))
    return str(path)


@pytest.mark.parametrize("blend", ["taper", "crop"])
@pytest.mark.parametrize(("height", "width"), [(100, 130), (32, 200), (20, 7), (33, 57)])
def test_same_masks_as_segray(tmp_path, *, height, width, blend):
    image, target = scene_of(tmp_path / "a.tif", height, width), str(tmp_path / "masks" / "a.tif")
    model = write_model(str(tmp_path / "model"))
    description = read_description(model)
    found = peers.plain_loop([image], [target], model=model, spec=description.spec, blend=blend)
    assert found["seconds"] > 0 and found["peak_memory"] > 0

    segmenter = Segmenter(load_network(description), description.spec, num_classes=3, blend=blend)
    readings = walk.read_items(
        [Item(image=image, etag="")], description.spec, blend=blend, window=64, explicit_bands=False
    )
    rows = list(walk.rows(walk.segment(readings, segmenter), description.classes))
    write_shard(str(tmp_path), 0, rows=rows, formats=["parquet"], metadata={})
    assert peers.agreement(str(tmp_path), 1, fmt="parquet", masks={image: target}) > 0.9999
    with rasterio.open(target) as file:
        mask = file.read(1)
    assert (mask[: height // 3, : width // 3] == IGNORE).all()
    assert (mask == IGNORE).sum() == (height // 3) * (width // 3)
    with rasterio.open(target, "r+") as file:
        mask[-1, -1] = 100
        file.write(mask, 1)
    whole = Window(0, 0, height, width).pixels
    assert peers.agreement(str(tmp_path), 1, fmt="parquet", masks={image: target}) <= 1 - 1 / whole


def test_only_local_files(tmp_path):
    peers.check_local(str(tmp_path), "/a")
    with pytest.raises(SegrayError, match=r"but s3://b/a.tif is on a store"):
        peers.check_local(str(tmp_path), "s3://b/a.tif")
