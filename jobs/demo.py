"""Run all jobs on imagery that the demo generates: train, evaluate, segment and export, with pages to look at.

    python jobs/demo.py
    ray job submit --working-dir . -- python jobs/demo.py --output /shared/segray-demo

A few minutes on two cores. The same command again continues where it stopped; to change the number
of epochs, add --overwrite, which starts afresh. Exit status: 0 done; 1 failed; 2 bad usage or input.
"""

import io
import json
import sys

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from segray.command_line import DONE, run_job
from segray.evaluation import evaluate
from segray.exporting import export
from segray.masks import encode_png
from segray.report.wording import score
from segray.segmentation import segment
from segray.settings import DemoSettings, EvaluateSettings, ExportSettings, SegmentSettings, TrainSettings
from segray.storage import exists, publish
from segray.synthetic import CLASSES, scene
from segray.training import train
from segray.uris import join

SPLITS = {"train": 24, "val": 4, "test": 6}  # scenes of 512 x 512 pixels
ARCHIVE = {"north": (1024, 2048), "south": (1024, 1024)}  # georeferenced scenes, height x width in pixels


def main(settings: DemoSettings) -> int:
    """Make imagery, then run the jobs on it as a user would."""
    data, archive, model = (join(settings.output, name) for name in ("labelled", "archive", "training/model"))
    if not exists(join(data, "classes.json")):
        make_imagery(data, archive)
    options = {"epochs": settings.epochs, "lr": 3e-3, "augment": "none"}  # one sensor, one scale, a few minutes
    afresh = {"overwrite": settings.overwrite}
    train(TrainSettings(data=data, output=join(settings.output, "training"), **options, **afresh))
    metrics = evaluate(EvaluateSettings(model=model, data=data, output=join(settings.output, "evaluation")))
    output = join(settings.output, "segmentation")
    options = {"window": 1024, "format": "parquet,png"}
    summary = segment(SegmentSettings(model=model, archive=archive, output=output, **options, **afresh))
    files = join(settings.output, "export")
    export(ExportSettings(masks=output, output=files, format="cog,polygons,pmtiles", **afresh))
    print(f"mIoU {score(metrics['miou'])} on {metrics['images']} scenes that the training never saw")
    print(f"{summary['pixels']['total'] / 1e6:.1f} Mpx of archive segmented; open these pages in a browser:")
    for name in ("training", "evaluation", "segmentation"):
        print(f"  {join(settings.output, name, 'report.html')}")
    print(f"masks as COG, GeoParquet and PMTiles, for QGIS: {files}")
    return DONE


def make_imagery(data: str, archive: str) -> None:
    """Labelled scenes as a folder of PNGs, and an archive of georeferenced scenes without labels."""
    for offset, (split, count) in enumerate(SPLITS.items()):
        for number in range(count):
            image, mask = scene(1000 * offset + number, 512, 512)
            publish(join(data, split, "images", f"{number:03d}.png"), png(image))
            publish(join(data, split, "masks", f"{number:03d}.png"), encode_png(mask, CLASSES))
    for number, (name, (height, width)) in enumerate(ARCHIVE.items()):
        image, _ = scene(9000 + number, height, width)
        publish(join(archive, f"{name}.tif"), geotiff(image, west=500_000 + 1_100 * number))
    publish(join(data, "classes.json"), json.dumps({"classes": CLASSES.to_json(), "ignore_index": 255}).encode())


def png(image: np.ndarray) -> bytes:
    """The bytes of a PNG of an (H, W, 3) uint8 image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def geotiff(image: np.ndarray, west: float) -> bytes:
    """The bytes of a tiled GeoTIFF of an (H, W, 3) uint8 image, 0.5 m a pixel in UTM zone 33 north."""
    height, width, bands = image.shape
    options = {"height": height, "width": width, "count": bands, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    place = {"crs": "EPSG:32633", "transform": from_origin(west, 5_800_000, 0.5, 0.5)}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **options, **place) as file:
            file.write(image.transpose(2, 0, 1))
        return memory.read()


if __name__ == "__main__":
    sys.exit(run_job(main, DemoSettings))
