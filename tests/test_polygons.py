"""Regions as GeoParquet: every pixel once, whatever the windows; valid, georeferenced, readable by others."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_shards import scenes_of
from rasterio.features import shapes
from rasterio.transform import Affine
from traced import MASKS

from segray.errors import SegrayError
from segray.exports import features, polygons
from segray.footprints import window_transform
from segray.grid import Window
from segray.masks import Classes, encode_png
from segray.scenes import Masks, Scene
from segray.settings import ExportSettings
from segray.shards import FAILED, NODATA, OK, MaskRow, write_shard

CLASSES = Classes(names=("ground", "house", "road"), colors=((0, 0, 0), (255, 0, 0), (9, 9, 9)))
METADATA = {"classes": CLASSES.to_json(), "model": "abc"}
UTM = (0.5, 0.0, 389000.0, 0.0, -0.5, 5820000.0)
TURNED = (0.3, 0.4, 389000.0, 0.4, -0.3, 5820000.0)
LONLAT = (0.0001, 0.0, 13.0, 0.0, -0.0001, 52.0)


def row_of(mask: np.ndarray, window: Window, *, crs: str | None, transform: tuple | None, status: str) -> MaskRow:
    """The row of a window of a mask."""
    part = mask[window.rows, window.cols]
    return MaskRow(
        image="s3://bucket/scene.tif", etag="e", row_off=window.row_off, col_off=window.col_off,
        height=window.height, width=window.width, image_height=mask.shape[0], image_width=mask.shape[1],
        mask=encode_png(part, CLASSES) if status == OK else None, status=status, crs=crs,
        transform=list(window_transform(transform, window)) if transform else None,
    )  # fmt: skip


def scene_of(
    folder: Path, mask: np.ndarray, *, cuts: tuple = ((), ()), crs: str | None = "EPSG:32633",
    transform: tuple | None = UTM, lost: tuple[str, ...] = (),
) -> tuple[Masks, Scene]:  # fmt: skip
    """Shards of a mask cut at (rows, columns), two windows each; the first windows are lost with the given status."""
    tops, lefts = ([0, *sorted({c for c in cut if 0 < c < n}), n] for cut, n in zip(cuts, mask.shape))
    windows = [Window(a, c, b - a, d - c) for a, b in zip(tops, tops[1:]) for c, d in zip(lefts, lefts[1:])]
    statuses = [*lost, *[OK] * len(windows)]
    rows = [row_of(mask, w, crs=crs, transform=transform, status=s) for w, s in zip(windows, statuses)]
    shards = [rows[k : k + 2] for k in range(0, len(rows), 2)]
    for number, shard in enumerate(shards):
        write_shard(str(folder), number, rows=shard, formats=("parquet",), metadata=METADATA)
    masks = Masks(
        output=str(folder), fmt="parquet", shards=len(shards), archive="s3://bucket", classes=CLASSES, metadata=METADATA
    )
    (scene,) = scenes_of(masks)
    return masks, scene


def export(
    folder: Path, mask: np.ndarray, *, min_area: float | None = None, simplify: float | None = None, **how: object
) -> geopandas.GeoDataFrame:
    """The features of a mask, read as others read them."""
    path = folder / "regions.parquet"
    options = ExportSettings(masks="m", output="o", format="polygons", min_area=min_area, simplify=simplify)
    counts = polygons.write(*scene_of(folder, mask, **how), str(path), options)
    frame = geopandas.read_parquet(path)
    assert counts["features"] == len(frame)
    frame.attrs["left_out"] = counts["features_left_out"]
    return frame


def blobs(height: int, width: int, *, seed: int = 0, none: bool = True) -> np.ndarray:
    """A mask of large patches with ragged borders, every fourth patch without data."""
    rng = np.random.default_rng(seed)
    patches = rng.choice(np.array([0, 1, 2, 255 if none else 0], np.uint8), (height // 8 + 1, width // 8 + 1))
    mask = patches.repeat(8, 0).repeat(8, 1)[:height, :width]
    shifted = np.roll(mask, (1, 1), (0, 1))
    return np.where(rng.random(mask.shape) < 0.3, shifted, mask)


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, rows=st.lists(st.integers(1, 11)), columns=st.lists(st.integers(1, 11)))
def test_features_are_those_of_gdal_on_the_whole_mask(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, rows: list[int], columns: list[int]
) -> None:
    frame = export(tmp_path_factory.mktemp("a"), mask, cuts=(rows, columns))
    expected = shapes(mask, mask=mask != 255, connectivity=4, transform=Affine(*UTM))
    key = [(int(value), shapely.normalize(shapely.geometry.shape(geometry)).wkt) for geometry, value in expected]
    assert sorted(zip(frame.class_id, shapely.to_wkt(shapely.normalize(frame.geometry.values)))) == sorted(
        (value, shapely.to_wkt(shapely.from_wkt(text))) for value, text in key
    )


@pytest.mark.parametrize("transform", [UTM, TURNED, (0.5, 0.0, 389000.0, 0.0, 0.5, 5820000.0)])
def test_areas_per_class_are_those_of_the_pixels(tmp_path: Path, transform: tuple) -> None:
    mask = blobs(211, 307)
    frame = export(tmp_path, mask, cuts=((64, 129), (100, 201)), transform=transform)
    assert frame.is_valid.all()
    assert all(polygon.exterior.is_ccw for polygon in frame.geometry)
    for class_id, name in enumerate(CLASSES.names):
        mine, pixels = frame[frame.class_id == class_id], int((mask == class_id).sum())
        assert (set(mine.class_name), mine.pixels.sum()) == ({name}, pixels)
        assert mine.area.sum() == pytest.approx(0.25 * pixels, rel=1e-9)
        assert mine.area_m2.sum() == pytest.approx(0.25 * pixels, rel=1e-12)


def test_windows_and_strips_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, files = blobs(97, 120), []
    for number, (cuts, strip) in enumerate([(((), ()), 512), (((13, 50), (7, 99)), 512), (((64,), (64,)), 7)]):
        monkeypatch.setattr(polygons, "STRIP_ROWS", strip)
        folder = tmp_path / str(number)
        export(folder, mask, cuts=cuts)
        files.append((folder / "regions.parquet").read_bytes())
    assert files[0] == files[1] == files[2]


def test_windows_without_a_mask_are_no_region(tmp_path: Path) -> None:
    mask = blobs(60, 90, none=False)
    frame = export(tmp_path, mask, cuts=((20, 41), (33, 70)), lost=(OK, NODATA, FAILED, OK, FAILED))
    known = mask.copy()
    known[:20, 33:] = known[20:41, 33:70] = 255
    assert frame.pixels.sum() == (known != 255).sum()
    lost = shapely.union_all(
        [shapely.box(389016.5, 5819990, 389045, 5820000), shapely.box(389016.5, 5819979.5, 389035, 5819990)]
    )
    assert shapely.area(shapely.intersection(shapely.union_all(frame.geometry.values), lost)) == 0


def test_an_image_without_any_mask_has_no_features(tmp_path: Path) -> None:
    frame = export(tmp_path, np.zeros((5, 5), np.uint8), lost=(FAILED,))
    assert len(frame) == 0
    assert frame.crs is not None


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "OGC:CRS84", pyproj.CRS("EPSG:3035").to_wkt()])
def test_the_crs_is_that_of_the_image(tmp_path: Path, crs: str) -> None:
    frame = export(tmp_path, blobs(20, 20), crs=crs)
    assert frame.crs.equals(pyproj.CRS.from_user_input(crs), ignore_axis_order=False)


def test_areas_of_degrees_are_those_of_the_ellipsoid(tmp_path: Path) -> None:
    frame = export(tmp_path, blobs(40, 50), crs="EPSG:4326", transform=LONLAT)
    geod = pyproj.Geod(ellps="WGS84")
    expected = [geod.geometry_area_perimeter(polygon)[0] for polygon in frame.geometry]
    assert frame.area_m2.tolist() == pytest.approx(expected, rel=1e-5)  # geodesics differ slightly from parallels


@pytest.mark.parametrize("crs", [None, "EPSG:32633"])
def test_without_georeference_coordinates_are_pixels(tmp_path: Path, crs: str | None) -> None:
    frame = export(tmp_path, np.array([[0, 1], [0, 1], [1, 1]], np.uint8), crs=crs, transform=None)
    assert frame.crs is None
    assert frame.area_m2.isna().all()
    assert frame.geometry[0].equals(shapely.box(0, 0, 1, 2))
    assert frame.pixels.tolist() == [2, 4]


def test_a_transform_without_a_crs_is_used(tmp_path: Path) -> None:
    frame = export(tmp_path, np.zeros((4, 6), np.uint8), crs=None)
    assert frame.crs is None
    assert frame.total_bounds.tolist() == [389000, 5819998, 389003, 5820000]


def test_the_file_says_what_geoparquet_asks_for(tmp_path: Path) -> None:
    frame = export(tmp_path, blobs(40, 60))
    file = pq.ParquetFile(tmp_path / "regions.parquet")
    assert file.schema_arrow.equals(features.SCHEMA)
    metadata = file.schema_arrow.metadata
    assert json.loads(metadata[b"segray"]) == METADATA
    geo = json.loads(metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["orientation"] == "counterclockwise"
    assert column["bbox"] == frame.total_bounds.tolist()
    assert column["covering"]["bbox"] == {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    boxes = [tuple(box.values()) for box in file.read(["bbox"])["bbox"].to_pylist()]
    assert boxes == [polygon.bounds for polygon in frame.geometry]
    assert set(frame.image) == {"s3://bucket/scene.tif"}


def test_a_box_finds_its_features_alone(tmp_path: Path) -> None:
    frame = export(tmp_path, blobs(40, 60))
    box = (389005.0, 5819985.0, 389010.0, 5819990.0)
    found = geopandas.read_parquet(tmp_path / "regions.parquet", bbox=box)
    boxes = shapely.box(*frame.bounds.values.T)
    assert len(found) == shapely.intersects(boxes, shapely.box(*box)).sum() < len(frame)


def test_row_groups_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    whole_file = export(tmp_path / "a", mask)
    monkeypatch.setattr(features, "ROW_GROUP", 100)
    monkeypatch.setattr(features, "ROW_GROUP_BYTES", 5000)
    assert export(tmp_path / "b", mask).equals(whole_file)
    metadata = pq.read_metadata(tmp_path / "b" / "regions.parquet")
    rows = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    assert len(rows) > 10
    assert max(rows) <= 100


@pytest.mark.parametrize(("crs", "min_area"), [("EPSG:32633", 5.0), (None, 20.0)])
def test_small_regions_are_left_out(tmp_path: Path, crs: str | None, min_area: float) -> None:
    mask = blobs(100, 120)
    everything = export(tmp_path / "a", mask, crs=crs)
    large = export(tmp_path / "b", mask, min_area=min_area, crs=crs)  # 20 pixels, in either unit
    kept = everything[everything.pixels >= 20].reset_index(drop=True)
    assert 0 < len(kept) < len(everything)
    assert large.equals(kept)
    assert large.attrs["left_out"] == len(everything) - len(kept)


@pytest.mark.parametrize("tolerance", [0.4, 1.0, 3.0, 100.0])
def test_simplified_regions_share_their_borders(tmp_path: Path, tolerance: float) -> None:
    mask = blobs(120, 150, none=False)
    exact = export(tmp_path / "a", mask)
    simple = export(tmp_path / "b", mask, simplify=tolerance, cuts=((50,), (70,)))
    assert simple.is_valid.all()
    assert simple[["class_id", "pixels", "area_m2"]].equals(exact[["class_id", "pixels", "area_m2"]])
    assert shapely.coverage_is_valid(simple.geometry.values)
    assert shapely.union_all(simple.geometry.values).equals(shapely.box(*exact.total_bounds))  # no gap, corners kept
    assert simple.area.sum() == pytest.approx(exact.area.sum(), rel=1e-9)
    assert all(polygon.exterior.is_ccw for polygon in simple.geometry)
    if tolerance >= 1:
        assert shapely.get_num_coordinates(simple.geometry.values).sum() < (
            0.7 * shapely.get_num_coordinates(exact.geometry.values).sum()
        )


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, tolerance=st.sampled_from([0.3, 0.6, 1.0, 5.0]), min_area=st.sampled_from([None, 0.5, 1.0]))
def test_whatever_is_simplified_stays_valid(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, tolerance: float, min_area: float | None
) -> None:
    frame = export(tmp_path_factory.mktemp("a"), mask, simplify=tolerance, min_area=min_area)
    assert frame.is_valid.all()
    assert (frame.area > 0).all()
    assert not len(frame) or shapely.coverage_is_valid(frame.geometry.values)


def test_straight_stairs_become_straight(tmp_path: Path) -> None:
    rows, columns = np.indices((100, 200))
    mask = (columns > 50 + rows // 2).astype(np.uint8)
    frame = export(tmp_path, mask, simplify=1.0)
    assert shapely.get_num_coordinates(frame.geometry.values).max() < 12
    assert (abs(frame.area - frame.area_m2) < 0.02 * frame.area_m2).all()


def test_more_than_can_be_simplified_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "MAX_SIMPLIFIED", 50)
    with pytest.raises(SegrayError, match=r"scene\.tif has more than 50 vertices .* --min_area"):
        export(tmp_path, blobs(50, 50), simplify=1.0)


def test_a_region_too_large_for_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MAX_GEOMETRY", 100)
    with pytest.raises(SegrayError, match=r"scene\.tif has a region with more vertices"):
        export(tmp_path, blobs(50, 50))


def test_an_id_beyond_the_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegrayError, match="holds the id 7, but there are 3 classes"):
        export(tmp_path, np.full((3, 3), 7, np.uint8))
