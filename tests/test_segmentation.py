"""The segmentation job on Ray: the same masks however it was cut, whatever the files (R1, R4)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from models import write_model
from PIL import Image
from rasterio.transform import from_origin
from running import contents, small_ray
from tiles import encoded

from segray import walk
from segray.archives import open_archive
from segray.archives.images import is_picture, read_for, read_header
from segray.errors import SegrayError
from segray.grid import Window
from segray.masks import IGNORE, decode_png
from segray.model_dir import load_network, read_description
from segray.plan import cut, whole, write_files
from segray.regions import WindowMask, whole_image
from segray.scenes import SceneReader, open_masks, pieces_of
from segray.scenes import whole as joined
from segray.segmentation import _pictures_of, _run, segment, segment_work
from segray.segmenter import Segmenter
from segray.settings import SegmentSettings
from segray.shards import CONFIDENCE, Place, mask_row, write_shard
from segray.storage import File
from segray.synthetic import scene
from segray.uris import join


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of two cores in this process, with the resource that keeps the stages of a GPU cluster apart."""
    with small_ray(resources={"segray_stages": 1}):
        yield


@pytest.mark.parametrize(("missing", "actors"), [(100, (8, 8)), (3, (3, 3))])
def test_a_continued_job_computes_with_as_many_threads_as_an_undisturbed_one(monkeypatch, model, missing, actors):
    settings = SegmentSettings(model=model, archive="a", output="o")
    seen = []
    monkeypatch.setattr("segray.cluster.slots", lambda **options: 8)
    monkeypatch.setattr("segray.cluster.nodes", lambda: [{"CPU": 8.0}])
    monkeypatch.setattr("segray.pipeline.run", lambda work, numbers, **options: seen.append((work, options)))
    _run(settings, segment_work(settings, read_description(model)), list(range(missing)), shards=100)
    [(work, options)] = seen
    assert work.threads == 1
    assert options["actors"] == actors
    assert options["fresh"] is (missing == 100)


def test_what_a_run_imports_is_part_of_its_start(monkeypatch):
    import segray.pipeline

    def slow(name: str) -> object:
        time.sleep(0.05)
        return sys.modules[f"segray.{name}"]

    monkeypatch.delattr(segray, "pipeline")
    monkeypatch.setattr(segray, "__getattr__", slow, raising=False)
    assert _run(None, None, [], shards=0)[1] >= 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model whose mask shows every misplaced tile."""
    return write_model(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A georeferenced scene with nodata, small tiles, a folder deep, and a text file."""
    folder = tmp_path_factory.mktemp("archive")
    image, _ = scene(1, 230, 190)
    image = np.maximum(image, 1)
    image[60:130, :70] = 0
    options = {"driver": "GTiff", "height": 230, "width": 190, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        folder / "scene.tif", "w", crs="EPSG:32618", transform=from_origin(101985.25, 2826915.75, 0.3, 0.3), **options
    ) as file:
        file.write(image.transpose(2, 0, 1))
    (folder / "tiles").mkdir()
    for number in range(12):
        Image.fromarray(scene(number, 40 + number, 64)[0]).save(folder / "tiles" / f"t{number:02d}.png")
    (folder / "readme.txt").write_text("no image")
    return folder


def masks_of(output: Path) -> dict[str, np.ndarray]:
    """Image name -> its whole mask, put together from the windows; every pixel written exactly once."""
    joined, written = {}, {}
    for shard in sorted((output / "masks").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            name, size = row["image"], (row["image_height"], row["image_width"])
            mask = joined.setdefault(name, np.full(size, IGNORE, np.uint8))
            window = Window(*(row[name] for name in ("row_off", "col_off", "height", "width")))
            part = (window.rows, window.cols)
            written.setdefault(name, np.zeros(size, int))[part] += 1
            if row["mask"]:
                mask[part] = decode_png(row["mask"])
    assert all((count == 1).all() for count in written.values())
    return joined


def plain_loop(model: str, archive: Path) -> dict[str, np.ndarray]:
    """The masks without Ray, plan or shards: one process, one image after the other."""
    description = read_description(model)
    segmenter = Segmenter(load_network(description), description.spec, num_classes=3, precision="bf16")
    masks = {}
    for file in open_archive(str(archive)).images():
        if is_picture(file.uri):
            items = [whole(file)]
        else:
            header = read_header(file.uri)
            lattice, size = description.spec.lattice("crop"), {"height": header.height, "width": header.width}
            items = cut(file, **size, lattice=lattice, shard_pixels=10**12)
        readings = walk.read_items(items, description.spec, blend="crop", window=10**6, explicit_bands=False)
        for result in walk.segment(readings, segmenter):
            masks[file.uri] = result.masks[0].mask
    return masks


@pytest.mark.parametrize(
    ("window", "shard_mpx", "actors"),
    [(2048, 32, "1"), (37, 0.002, "2"), (32, 0.01, "1:2")],
)
@pytest.mark.usefixtures("local_ray")
def test_same_masks_however_the_job_is_cut(model, archive, tmp_path, caplog, *, window, shard_mpx, actors):
    caplog.set_level("INFO", logger="segray")
    summary = segment(SegmentSettings(
        model=model, archive=str(archive), output=str(tmp_path), window=window, shard_mpx=shard_mpx, actors=actors,
        precision="bf16", format="parquet,png",
    ))  # fmt: skip
    assert "; files passed over, as their endings are no image format's: 1; " in caplog.text
    assert summary["images"] == {"ok": 13, "nodata": 0, "failed": 0}
    assert summary["skipped_files"] == 1
    expected, found = plain_loop(model, archive), masks_of(tmp_path)
    assert expected.keys() == found.keys()
    for name, mask in expected.items():
        assert (found[name] == mask).all(), name
    check_georeference(archive / "scene.tif", tmp_path)
    assert len(list((tmp_path / "masks").glob("*.tar"))) == len(list((tmp_path / "masks").glob("*.parquet")))
    again = segment(SegmentSettings(
        model=model, archive=str(archive), output=str(tmp_path), window=window, shard_mpx=shard_mpx,
        precision="bf16", format="png,parquet",
    ))  # fmt: skip
    assert again == summary


@pytest.mark.usefixtures("local_ray")
def test_confidences_are_those_of_the_pixels_however_the_job_is_cut(model, archive, tmp_path):
    description = read_description(model)
    segmenter = Segmenter(load_network(description), description.spec, num_classes=3, precision="fp32", detailed=True)
    for number, (window, shard_mpx) in enumerate([(2048, 32), (37, 0.002)]):
        output = tmp_path / str(number)
        segment(SegmentSettings(
            model=model, archive=str(archive), output=str(output), window=window, shard_mpx=shard_mpx, actors="2",
            precision="fp32", confidence=True,
        ))  # fmt: skip
        masks, seen = open_masks(str(output)), 0
        for one in joined(part for shard in range(masks.shards) for part in pieces_of(masks, shard)):
            raster = read_for(one.image, description.spec)
            (found,) = next(segmenter.segment([whole_image(raster.pixels, raster.valid)]))
            percent = SceneReader(masks, one, CONFIDENCE).read(Window(0, 0, one.height, one.width))
            assert ((percent == IGNORE) == (found.mask == IGNORE)).all()
            assert (percent == np.where(found.mask == IGNORE, IGNORE, np.rint(found.confidences / 655.35))).all()
            seen += 1
        assert seen == 13
    with pytest.raises(SegrayError, match="--confidence was True and is now not given"):
        segment(SegmentSettings(
            model=model, archive=str(archive), output=str(output), window=37, shard_mpx=0.002, precision="fp32",
        ))  # fmt: skip


def check_georeference(scene: Path, output: Path) -> None:
    """Windows lie where the scene has them to the last digit, and the area is that of its pixels with data (R9)."""
    valid_pixels = 0
    with rasterio.open(scene) as source:
        a, b, c, d, e, f, *_ = source.transform
        for shard in sorted((output / "masks").glob("*.parquet")):
            table = pq.read_table(shard)
            rows = [row for row in table.to_pylist() if row["image"] == str(scene)]
            for row in rows:
                down, right = row["row_off"], row["col_off"]
                assert row["crs"] == source.crs.to_string() == "EPSG:32618"
                assert row["transform"] == [a, b, c + a * right + b * down, d, e, f + d * right + e * down]
            assert not rows or json.loads(table.schema.metadata[b"geo"])["version"] == "1.1.0"
            valid_pixels += sum(row["valid_pixels"] for row in rows)
        assert valid_pixels == (source.dataset_mask() > 0).sum()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["km2"] == pytest.approx(valid_pixels * 0.09 / 1e6, rel=0.01)


def test_another_job_on_the_same_output_is_refused(local_ray, small_model, archive, tmp_path):
    settings = {"model": small_model, "archive": str(archive / "tiles"), "output": str(tmp_path)}
    segment(SegmentSettings(**settings))
    before = contents(tmp_path)
    with pytest.raises(SegrayError, match="--window was 2048 and is now 512.*--overwrite"):
        segment(SegmentSettings(**settings, window=512))
    with pytest.raises(SegrayError, match="--format was parquet and is now png"):
        segment(SegmentSettings(**settings, format="png"))
    with pytest.raises(SegrayError, match="--tta was not given and is now d4"):
        segment(SegmentSettings(**settings, tta="d4"))
    assert contents(tmp_path) == before
    segment(SegmentSettings(**settings, blend="taper", overwrite=True))
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["blend"] == "taper"


def test_overwriting_removes_nothing_before_the_archive_is_there_and_nothing_of_others(
    local_ray, small_model, tmp_path
):
    labels = tmp_path / "masks" / "label.png"
    labels.parent.mkdir()
    labels.write_bytes(b"mine")
    settings = {"model": small_model, "output": str(tmp_path), "overwrite": True}
    (tmp_path / "images").mkdir()
    Image.fromarray(scene(1, 40, 40)[0]).save(tmp_path / "images" / "a.png")
    with pytest.raises(SegrayError, match=r"label\.png is no mask shard"):
        segment(SegmentSettings(**settings, archive=str(tmp_path / "images")))
    labels.unlink()
    segment(SegmentSettings(**settings, archive=str(tmp_path / "images")))
    before = contents(tmp_path)
    with pytest.raises(SegrayError, match="does not exist"):
        segment(SegmentSettings(**settings, archive=str(tmp_path / "imagse")))
    assert contents(tmp_path) == before
    Image.fromarray(scene(2, 40, 40)[0]).save(tmp_path / "images" / "b.png")
    with pytest.raises(SegrayError, match="held 1 images and now holds 2"):
        segment(SegmentSettings(**{**settings, "overwrite": False}, archive=str(tmp_path / "images")))


def write_odd_files(folder: Path) -> None:
    """Write the odd files that archives hold in practice."""
    image = Image.fromarray(scene(3, 64, 80)[0])
    (folder / "truncated.jpg").write_bytes(encoded(image, "JPEG")[:-400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    image.crop((0, 0, 1, 1)).save(folder / "one.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(64 * 80, dtype=np.uint16).reshape(64, 80)).save(folder / "sixteen.png")
    image.quantize(16).save(folder / "palette.png")
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.where(np.arange(80) < 30, 0, 255).astype(np.uint8)[None].repeat(64, 0)))
    alpha.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "rotated.jpg", exif=exif)


def test_odd_files_are_segmented_or_rows_with_a_reason(local_ray, small_model, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    write_odd_files(images)
    summary = segment(SegmentSettings(model=small_model, archive=str(images), output=str(tmp_path / "out")))
    rows = {Path(row["image"]).name: row for row in pq.read_table(tmp_path / "out" / "masks").to_pylist()}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == {
        "one.png", "cmyk.jpg", "palette.png", "alpha.png", "rotated.jpg",
    }  # fmt: skip
    reasons = {name: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    expected = {"truncated.jpg": "truncated", "empty.png": "empty", "text.png": "no PNG", "sixteen.png": "--bands"}
    assert reasons.keys() == expected.keys()
    assert all(reason in reasons[name] for name, reason in expected.items())
    assert (rows["rotated.jpg"]["height"], rows["rotated.jpg"]["width"]) == (80, 64)
    assert rows["alpha.png"]["valid_pixels"] == 64 * 50
    assert rows["text.png"]["mask"] is None
    assert summary["images"] == {"ok": 5, "nodata": 0, "failed": 4}
    assert len(summary["failures"]) == 4


def test_an_archive_that_does_not_fit_the_model_is_refused_before_any_mask(local_ray, small_model, tmp_path):
    options = {"driver": "GTiff", "height": 20, "width": 20, "count": 4, "dtype": "uint8", "photometric": "minisblack"}
    (tmp_path / "images").mkdir()
    with rasterio.open(tmp_path / "images" / "four.tif", "w", **options) as file:
        file.write(np.ones((4, 20, 20), np.uint8))
    settings = {"model": small_model, "archive": str(tmp_path / "images"), "output": str(tmp_path / "out")}
    with pytest.raises(SegrayError, match=r"four\.tif has 4 bands.*--bands 0,1,2"):
        segment(SegmentSettings(**settings))
    assert not (tmp_path / "out" / "masks").exists()
    summary = segment(SegmentSettings(**settings, bands=(3, 2, 1)))
    assert summary["images"]["ok"] == 1
    with pytest.raises(SegrayError, match="--bands names 2"):
        segment(SegmentSettings(**settings, bands=(3, 2), overwrite=True))


def test_a_picture_that_fails_or_changed_is_left_out_of_the_page(model, tmp_path, no_credentials):
    description, output = read_description(model), str(tmp_path)
    there = tmp_path / "there.png"
    Image.fromarray(scene(0, 48, 48)[0]).save(there)
    images = [File(uri, 1, "") for uri in ("s3://bucket/a.png", str(there))]
    write_files(join(output, "plan"), [[whole(file) for file in images]])
    settings = SegmentSettings(model=model, archive=output, output=output)
    work = segment_work(settings, description)
    counts = np.bincount(np.zeros(48 * 48, np.int64), minlength=len(description.classes))
    known = {"valid_pixels": 48 * 48, "confidence": 0.9, "seam_disagreement": 0.0}
    mask = np.zeros((48, 48), np.uint8)
    result = WindowMask(window=Window(0, 0, 48, 48), mask=mask, pixel_counts=counts, **known)
    places = [Place(image=file.uri, etag="", height=48, width=48) for file in images]
    rows = [mask_row(place, result, description.classes) for place in places]
    write_shard(output, 0, rows=rows, formats=work.formats, metadata={})
    assert [picture.title for picture in _pictures_of(work, 0, count=2)] == [str(there)]
    Image.fromarray(scene(0, 40, 48)[0]).save(there)  # it has another size by now
    assert _pictures_of(work, 0, count=2) == []
