"""What every export must do, and what each format promises."""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from mask_shards import CLASSES, UTM, Image, confidences_of, ids, scenes_of, write_masks
from PIL import Image as Picture
from rio_cogeo.cogeo import cog_validate

from segray.errors import ImageError
from segray.export_tasks import Exporter
from segray.exports import EXPORTS, png, stac
from segray.masks import Classes
from segray.scenes import Masks, Scene, open_masks
from segray.settings import EXPORT_FORMATS, ExportSettings

ROTATED = (0.3, 0.1, 389000.1, 0.1, -0.3, 5820000.7)
OPTIONS = ExportSettings(masks="/m", output="/o")
EQUATOR_M = 2 * math.pi * 6378137.0
GEO = Image(uri="/a/d/geo.tif", mask=ids(300, 420), crs="EPSG:32633", transform=UTM)


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def segmented(folder: Path, *images: Image, archive: str = "/a", window: int = 100) -> tuple[Masks, list[Scene]]:
    """The masks of those images, with confidences, and their scenes."""
    where = {"archive": archive, "window": window, "confidence": True}
    masks = open_masks(write_masks(str(folder / "masks"), list(images), **where))
    return masks, scenes_of(masks)


def written(folder: Path, fmt: str, image: Image, **where: object) -> tuple[Path, dict]:
    """(the file of an image in an output of its own, what the format says of it)."""
    masks, (scene,) = segmented(folder, image, **where)
    module = EXPORTS[fmt]
    path = folder / "out" / module.name(scene, masks.archive)
    path.parent.mkdir(parents=True)
    return path, module.write(masks, scene, str(path), OPTIONS)


def test_the_formats_are_those_of_the_settings():
    assert set(EXPORTS) == set(EXPORT_FORMATS)


@pytest.mark.parametrize("fmt", EXPORTS)
def test_every_export_names_and_writes_a_georeferenced_scene(tmp_path, fmt):
    module = EXPORTS[fmt]
    masks, scenes = segmented(tmp_path, GEO, Image(uri="/a/e.tif", mask=ids(90, 80), crs=GEO.crs, transform=UTM))
    names = [module.name(scene, masks.archive) for scene in scenes]
    assert all(names)
    assert len(set(names)) == (2 if module.PER_SCENE else 1)
    assert "/" in module.MEDIA_TYPE
    contents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = str(folder / names[0].rsplit("/", 1)[-1])
        facts = (
            module.write(masks, scenes[0], path, OPTIONS)
            if module.PER_SCENE
            else module.write_all(masks, scenes, path, OPTIONS)
        )
        assert all(isinstance(value, int | float) for value in facts.values())
        contents.append({file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()})
        assert Path(path).name in contents[-1]
        assert {str(folder / name) for name in contents[-1]} <= {path, *module.beside(path)}
    assert contents[0] == contents[1]


@pytest.mark.parametrize("transform", [UTM, ROTATED, (0.1, 0.0, 5.1, 0.0, 0.3, -7.7), None])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", None])
@pytest.mark.parametrize("size", [(1, 1), (300, 420), (1100, 530)])
def test_a_cog_is_the_scene_to_the_last_digit(tmp_path, size, crs, transform):
    image = Image(uri="/a/x.png", mask=ids(*size), crs=crs, transform=transform)
    path, facts = written(tmp_path, "cog", image)
    with rasterio.open(path) as file:
        assert (file.read(1) == image.mask).all()
        assert (file.count, file.dtypes[0], file.nodata) == (1, "uint8", 255)
        assert (file.crs.to_string() if file.crs else None) == crs
        assert tuple(file.transform)[:6] == (transform or (1, 0, 0, 0, 1, 0))
        assert [file.colormap(1)[k][:3] for k in range(3)] == list(CLASSES.colors)
        assert file.colormap(1)[255][3] == 0
        assert file.block_shapes == [(512, 512)]
        assert file.tags(1) == {f"CLASS_{k}": name for k, name in enumerate(CLASSES.names)}
    assert cog_validate(path, strict=True, quiet=True)[0]
    assert facts == {"pixels": image.mask.size}


def test_overviews_of_a_cog_hold_the_most_frequent_class_and_no_other(tmp_path):
    mask = ids(1200, 1200)
    mask[:600, :600] = np.tile(np.array([[0, 2], [2, 2]], np.uint8), (300, 300))  # a mean would be 1.5
    path, _ = written(tmp_path, "cog", Image(uri="/a/x.tif", mask=mask), window=500)
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4]
    with rasterio.open(path, overview_level=0) as file:
        small = file.read(1)
    assert (small[:300, :300] == 2).all()
    assert set(np.unique(small)) <= {0, 1, 2, 255}


@pytest.mark.parametrize("transform", [UTM, None])
def test_confidences_are_percent_on_the_grid_of_the_scene(tmp_path, transform):
    image = Image(uri="/a/x.tif", mask=ids(1100, 530), crs="EPSG:32633" if transform else None, transform=transform)
    path, facts = written(tmp_path, "confidence", image)
    assert (path.name, facts) == ("x.confidence.tif", {"pixels": 1100 * 530})
    expected = np.rint(confidences_of(image.mask) / 655.35).astype(np.uint8)
    expected[image.mask == 255] = 255
    with rasterio.open(path) as file:
        assert (file.read(1) == expected).all()
        assert (file.nodata, file.descriptions, file.units) == (255, ("confidence",), ("percent",))
        assert transform is None or (file.crs.to_epsg(), tuple(file.transform)[:6]) == (32633, transform)
        assert file.overviews(1)
        with rasterio.open(path, overview_level=0) as smaller:
            means = smaller.read(1, masked=True)
    known = np.ma.masked_equal(expected[:1100, :530].reshape(550, 2, 265, 2), 255).mean(axis=(1, 3))
    assert np.abs(means.astype(float) - known).max() <= 1
    assert cog_validate(path)[0]


def test_no_other_scene_has_the_name_of_a_scene_s_confidences(tmp_path):
    scenes = [Image(uri=f"/a/{name}", mask=ids(20, 30)) for name in ("x.tif", "x.confidence.tif", "x.confidence.png")]
    masks, found = segmented(tmp_path, *scenes)
    settings = ExportSettings(masks="/m", output="/o", format="cog,confidence")
    exporter = Exporter(masks=masks, settings=settings, usual=".tif")
    names = [path for scene in found for path in exporter.paths(scene).values()]
    assert len(set(names)) == 6 and {"x.tif", "x.confidence.tif"} <= set(names)


def test_gdalinfo_names_the_classes_of_a_cog(tmp_path):
    path, _ = written(tmp_path, "cog", GEO)
    report = gdalinfo(path)
    assert "Categories:\n      0: water\n      1: main road\n      2: field & <co>\n" in report
    assert "CLASS_1=main road" in report
    assert "<F>field &amp; &lt;co&gt;</F>" in report
    path.with_name(path.name + ".aux.xml").unlink()
    assert "CLASS_2=field & <co>" in gdalinfo(path)


@pytest.mark.parametrize(
    "words",
    [
        "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180",
        "+proj=tpers +h=5000000 +lat_0=10",
    ],
)
def test_a_cog_keeps_a_crs_that_geotiff_has_no_keys_for(tmp_path, words):
    crs = rasterio.crs.CRS.from_string(words)
    image = Image(uri="/a/x.tif", mask=ids(90, 80), crs=crs.to_wkt(version="WKT2_2019"), transform=UTM)
    path, _ = written(tmp_path, "cog", image)
    with rasterio.open(path) as file:
        assert file.crs == crs
    assert "Categories:\n      0: water\n      1: main road\n      2: field & <co>\n" in gdalinfo(path)


def gdalinfo(path: Path) -> str:
    """What gdalinfo prints of a file, by the GDAL that rasterio brings."""
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgdal" in line}
    gdal = ctypes.CDLL(libraries.pop())
    gdal.GDALOpen.restype = gdal.GDALInfo.restype = ctypes.c_void_p
    gdal.GDALOpen.argtypes, gdal.GDALInfo.argtypes = [ctypes.c_char_p, ctypes.c_int], [ctypes.c_void_p] * 2
    gdal.GDALClose.argtypes = gdal.VSIFree.argtypes = [ctypes.c_void_p]
    dataset = gdal.GDALOpen(str(path).encode(), 0)
    text = gdal.GDALInfo(dataset, None)
    report = ctypes.string_at(text).decode()
    gdal.VSIFree(text)
    gdal.GDALClose(dataset)
    return report


def test_a_scene_that_failed_in_part_has_no_data_there(tmp_path):
    image = Image(uri="/a/x.tif", mask=np.ones((200, 200), np.uint8), failed=(0,))
    path, _ = written(tmp_path, "cog", image)
    with rasterio.open(path) as file:
        found = file.read(1)
    assert (found[:100, :100] == 255).all()
    assert (found == 255).sum() == 100 * 100


LARGE = """
import sys
from segray.exports import cog
from segray.scenes import open_masks, pieces_of, whole
from segray.settings import ExportSettings
masks = open_masks(sys.argv[1])
(scene,) = whole(part for shard in range(masks.shards) for part in pieces_of(masks, shard))
cog.write(masks, scene, sys.argv[2], ExportSettings(masks="m", output="o"))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage counts the parent's too
print(scene.height * scene.width, int(peak.split()[1]) * 1024)
"""


def test_the_memory_of_a_cog_does_not_grow_with_the_scene(tmp_path):
    mask = np.zeros((20_000, 20_000), np.uint8)  # takes memory only where it is touched
    mask[6000:9000, 9000:14_000] = ids(3000, 5000)
    there = {row * 10 + col for row in (3, 4) for col in (4, 5, 6)}
    image = Image(uri="/a/x.tif", mask=mask, crs="EPSG:32633", transform=UTM, failed=tuple({*range(100)} - there))
    uri = write_masks(str(tmp_path / "masks"), [image], archive="/a", window=2000, rows_a_shard=8)
    path = str(tmp_path / "x.tif")
    done = subprocess.run([sys.executable, "-c", LARGE, uri, path], capture_output=True, text=True, check=True)
    pixels, peak = map(int, done.stdout.split())
    assert pixels == 400_000_000
    assert peak < 600e6
    with rasterio.open(path) as file:
        part = rasterio.windows.Window(9000, 6000, 5000, 3000)
        assert (file.read(1, window=part) == mask[6000:9000, 9000:14_000]).all()
        assert (file.read(1, window=rasterio.windows.Window(0, 0, 8000, 6000)) == 255).all()


def test_a_png_is_the_mask_in_the_colours_of_the_classes(tmp_path):
    path, _ = written(tmp_path, "png", GEO)
    assert path.name == "geo.png"
    with Picture.open(path) as picture:
        assert picture.mode == "P"
        assert (np.array(picture) == GEO.mask).all()
        assert (np.array(picture.convert("RGBA"))[GEO.mask == 1] == (90, 90, 90, 255)).all()
        assert (np.array(picture.convert("RGBA"))[GEO.mask == 255][:, 3] == 0).all()


def test_a_scene_too_large_for_a_png_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(png, "MAX_PIXELS", 300 * 420 - 1)
    with pytest.raises(ImageError, match=r"geo\.tif has 300 x 420 pixels.*--format cog"):
        written(tmp_path, "png", GEO)


def tile_set(uri: str, zoom: int, *, x: int, y: int, mask: np.ndarray) -> Image:
    """A zoom level of tiles of 256 pixels whose first tile is x, y."""
    size = EQUATOR_M / 256 / 2**zoom
    left, top = x * 256 * size - EQUATOR_M / 2, EQUATOR_M / 2 - y * 256 * size
    return Image(uri=uri, mask=mask, crs="EPSG:3857", transform=(size, 0.0, left, 0.0, -size, top))


@pytest.mark.parametrize(
    ("uri", "archive", "name"),
    [
        ("xyz://17::s3://b/tiles", "s3://b/tiles", "17/tiles.json"),
        ("mbtiles://17::s3://b/in/x.mbtiles", "s3://b/in", "x.mbtiles/17/tiles.json"),
    ],
)
@pytest.mark.parametrize("first", [(70_401, 43_003), (8, 0)])
def test_a_tile_set_becomes_a_tile_tree_again(tmp_path, uri, archive, name, *, first):
    x, y = first
    mask = np.full((5 * 256, 11 * 256), 255, np.uint8)
    mask[300:700, 200:900] = ids(400, 700)
    mask[-1, -1] = 2
    image = tile_set(uri, 17, x=x, y=y, mask=mask)
    path, facts = written(tmp_path, "png", image, archive=archive, window=700)
    assert path == tmp_path / "out" / name
    tiles = sorted(file for file in path.parent.rglob("*.png"))
    expected = {
        (x + col, y + row): part
        for row in range(5)
        for col in range(11)
        if ((part := mask[row * 256 : row * 256 + 256, col * 256 : col * 256 + 256]) != 255).any()
    }
    assert {(int(file.parent.name), int(file.stem)) for file in tiles} == set(expected)
    for file in tiles:
        with Picture.open(file) as picture:
            assert (np.array(picture) == expected[int(file.parent.name), int(file.stem)]).all()
    document = json.loads(path.read_text())
    assert (document["tilejson"], document["minzoom"], document["maxzoom"]) == ("3.0.0", 17, 17)
    assert facts == {"pixels": mask.size, "tiles": len(expected)}


def test_tiles_of_512_pixels_are_written_a_level_deeper(tmp_path):
    image = tile_set("xyz://16::/t", 17, x=4, y=6, mask=ids(512, 512))  # level 16 has the pixels of 256-pixel level 17
    _, (scene,) = segmented(tmp_path, image, archive="/t")
    assert png.name(scene, "/t") == "17/tiles.json"


@pytest.mark.parametrize("transform", [None, UTM, ROTATED])
def test_a_tile_set_without_the_pixels_of_a_zoom_level_is_refused(tmp_path, transform):
    _, (scene,) = segmented(tmp_path, Image(uri="xyz://16::/t", mask=ids(64, 64), transform=transform))
    with pytest.raises(ImageError, match="does not have the pixels of a zoom level; export it with --format cog"):
        png.name(scene, "/a")


def test_tile_sets_whose_addresses_differ_in_their_key_have_trees_of_their_own(tmp_path):
    uris = [f"xyz://17::https://h/tiles{query}" for query in ("", "?key=a", "?key=b")]
    _, scenes = segmented(tmp_path, *(tile_set(uri, 17, x=4, y=6, mask=ids(256, 256)) for uri in uris))
    folders = [png.name(scene, "/a").removesuffix("/17/tiles.json") for scene in scenes]
    assert folders[0] == "https/h/tiles"
    assert len(set(folders)) == 3 and not any("key" in folder for folder in folders)


def test_a_path_too_long_for_the_file_system_is_wrong_with_one_scene(tmp_path):
    masks, scenes = segmented(tmp_path, GEO, Image(uri="/a/e.png", mask=ids(9, 8)))
    output = str(tmp_path / ("y" * 300))
    settings = ExportSettings(masks=masks.output, output=output, format="cog,png")
    outcomes = list(Exporter(masks=masks, settings=settings, usual=".tif").outcomes(scenes))
    assert [outcome.image for outcome in outcomes if "too long a path; give a shorter" in outcome.error] == [
        "/a/d/geo.tif", "/a/e.png",
    ]  # fmt: skip


def item_of(folder: Path, image: Image) -> dict:
    """The STAC item of an image as a COG, and as one of its confidences, as its JSON says."""
    masks, (scene,) = segmented(folder, image)
    modules = {name: EXPORTS[name] for name in ("cog", "confidence")}
    assets = {name: (it.name(scene, "/a"), it.MEDIA_TYPE, it.LAYER) for name, it in modules.items()}
    return json.loads(json.dumps(stac.item(masks, scene, "scene", assets)))


def test_an_item_says_where_the_scene_lies_and_what_its_classes_are(tmp_path):
    found = pystac.Item.from_dict(item_of(tmp_path, GEO))
    assert found.id == "scene"
    assert found.datetime is None
    assert found.properties["proj:code"] == "EPSG:32633"
    assert found.properties["proj:shape"] == [300, 420]
    assert tuple(found.properties["proj:transform"]) == UTM
    percent = found.assets["confidence"].extra_fields["bands"]
    assert percent == [{"name": "confidence", "data_type": "uint8", "nodata": 255, "unit": "percent"}]
    asset = found.assets["cog"]
    assert (asset.href, asset.roles, asset.media_type) == ("./d/geo.tif", ["data"], pystac.MediaType.COG)
    band = asset.extra_fields["bands"][0]
    assert (band["nodata"], band["data_type"]) == (255, "uint8")
    classes = band["classification:classes"]
    assert [(c["value"], c["name"]) for c in classes] == [
        (0, "water"), (1, "main_road"), (2, "field_co_"), (255, "nodata"),
    ]  # fmt: skip
    assert classes[2]["description"] == "field & <co>"
    assert classes[2]["color_hint"] == "C8C83C"
    with rasterio.io.MemoryFile() as memory, memory.open(
        driver="GTiff", width=420, height=300, count=1, dtype="uint8", crs=GEO.crs, transform=rasterio.Affine(*UTM)
    ) as file:  # fmt: skip
        bounds = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    assert found.bbox == pytest.approx(bounds, abs=1e-6)
    (ring,) = found.geometry["coordinates"]
    assert ring[0] == ring[-1]
    assert sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:])) > 0  # counterclockwise


def test_classes_whose_names_are_not_allowed_in_an_item_have_names_of_their_own():
    names = ("вода", "дорога", "low field", "low_field", "nodata", "Straße", "")
    found = stac.classes(Classes(names=names, colors=((1, 2, 3),) * len(names)))
    short = ["class_0", "class_1", "low_field", "class_3", "class_4", "Stra_e", "class_6", "nodata"]
    assert [entry["name"] for entry in found] == short
    assert tuple(entry["description"] for entry in found[:-1]) == names


@pytest.mark.parametrize(("crs", "transform"), [(None, None), (None, UTM), ("EPSG:32633", None)])
def test_a_scene_that_lies_nowhere_has_no_geometry(tmp_path, crs, transform):
    found = item_of(tmp_path, Image(uri="/a/x y#.png", mask=ids(20, 30), crs=crs, transform=transform))
    assert found["geometry"] is None
    assert "bbox" not in found
    assert ("proj:code" in found["properties"]) == (crs is not None)
    assert pystac.Item.from_dict(found).assets["cog"].href == "./x%20y%23.tif"


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", (0.01, 0.0, 179.5, 0.0, -0.01, 10.0)),
        ("EPSG:32601", (100.0, 0.0, 165000.0, 0.0, -100.0, 1110000.0)),
    ],
)
def test_a_scene_on_the_antimeridian_is_in_two_parts(tmp_path, crs, transform):
    found = item_of(tmp_path, Image(uri="/a/x.tif", mask=ids(100, 100), crs=crs, transform=transform))
    assert found["geometry"]["type"] == "MultiPolygon"
    west, south, east, north = found["bbox"]
    assert 179 < west < 180
    assert -180 < east < -179
    assert south < 10 < north + 0.1
    for (ring,) in found["geometry"]["coordinates"]:
        assert all(abs(x) <= 180 for x, _ in ring)


@pytest.mark.parametrize(
    ("projection", "x", "longitude"),
    [("+proj=laea +lat_0=10 +lon_0=20", 0.0, 20), ("+proj=tmerc +lon_0=9 +x_0=3500000 +ellps=bessel", 3.5e6, 9)],
)
def test_a_crs_of_no_authority_is_given_in_words(tmp_path, projection, x, longitude):
    wkt = rasterio.crs.CRS.from_proj4(f"{projection} +units=m").to_wkt()
    found = item_of(tmp_path, Image(uri="/a/x.tif", mask=ids(20, 30), crs=wkt, transform=(9.0, 0, x, 0, -9.0, 0)))
    assert found["properties"]["proj:code"] is None
    assert found["properties"]["proj:wkt2"].startswith("PROJCRS")
    assert found["bbox"][0] == pytest.approx(longitude, abs=1e-6)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_temporary_folder_without_room_is_named(tmp_path, monkeypatch):
    def write(masks: Masks, scene: Scene, path: str, settings: ExportSettings) -> dict:
        Path("/dev/full").write_bytes(b"x" * 10_000)

    monkeypatch.setattr(png, "write", write)
    masks, scenes = segmented(tmp_path, GEO)
    settings = ExportSettings(masks="/m", output=str(tmp_path / "out"), format="png")
    with pytest.raises(OSError, match="No space left") as caught:
        list(Exporter(masks=masks, settings=settings, usual=".tif").outcomes(scenes))
    assert caught.value.filename.startswith(f"{tempfile.gettempdir()}/segray-")


def test_gdal_without_room_ends_the_export_and_fails_no_scene(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=777", "none", disk], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    try:
        masks, scenes = segmented(
            tmp_path, Image(uri="/a/x.tif", mask=ids(3000, 3000), crs=GEO.crs, transform=UTM), window=3000
        )
        settings = ExportSettings(masks="/m", output=str(tmp_path / "out"), format="cog")
        with pytest.raises(OSError, match="No space left") as caught:
            list(Exporter(masks=masks, settings=settings, usual=".tif").outcomes(scenes))
        assert caught.value.filename.startswith(f"{disk}/segray-")
    finally:
        subprocess.run(["umount", disk], check=True)
