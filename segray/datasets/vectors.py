"""Vector labels: features with a class, burnt into the pixels of a window of an image whose centres they cover.

A file is read whole, by geopandas, and kept with an index of where its features lie.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import shapely
from rasterio import Affine
from rasterio.features import rasterize

from segray.archives.kept import Kept
from segray.archives.raster import Header
from segray.datasets.regrid import half_turn_of, same_crs, transformed
from segray.errors import ImageError, LabelError, SegrayError
from segray.footprints import coordinates, inverse
from segray.grid import Window
from segray.listing import files_if_any
from segray.storage import describe, ending, read_bytes

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import Series
    from pyproj import CRS

ATTRIBUTES = ("class", "class_id", "class_name")  # tried in this order, where the legend names none
POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
MOST = 32  # files kept in a process
LOOKS = 33  # points along each side of the grid that gives a window's bounds in the CRS of the features
EDGES = 128  # in another CRS, an edge as long as the image's longer side is split into at least this many


@dataclass(frozen=True, kw_only=True)
class VectorFile:
    """A file of features and what their classes mean. tag: of its version. attribute: holds the class, None to find it.

    ids: (what the attribute may hold, id of the mask), names and numbers alike; 255 is "no label".
    """

    uri: str
    tag: str
    attribute: str | None
    ids: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Features:
    """crs: WKT. geometries: (n,) polygons in file order. ids: (n,) uint8. tree: finds geometries by their bounds."""

    crs: str
    geometries: np.ndarray
    ids: np.ndarray
    tree: shapely.STRtree


def burn(file: VectorFile, image: Header, window: Window, *, background: int) -> np.ndarray:
    """(h, w) uint8 ids of the features that cover the centres of a window's pixels, later ones over earlier ones.

    background: the id where there is no feature. image: with CRS and transform. LabelError, naming the file, on a class
    that the legend does not have or a feature that has no place in the image's CRS; ImageError when it cannot be read.
    """
    features = _kept.get(file)
    found, shapes = _covering(file, features, image, window)
    there = ~shapely.is_empty(shapes)
    if not there.any():
        return np.full((window.height, window.width), background, np.uint8)
    return rasterize(
        zip(shapes[there], features.ids[found[there]].tolist()),
        out_shape=(window.height, window.width),
        fill=background,
        # shapes are in pixels of the image; moving them by whole pixels to the window is exact
        transform=Affine.translation(window.col_off, window.row_off),
        dtype=np.uint8,
    )


def _covering(file: VectorFile, features: Features, image: Header, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(ascending numbers of the features that may cover pixels of a window; their shapes in the image's pixels).

    If the image reaches beyond 180 degrees, a feature may be there twice.
    """
    found, shapes = [], []
    for place in _places(image):
        found.append(_near(features, place, window))
        shapes.append(_on_pixels(file, features, place, found[-1]))
    order = np.argsort(np.concatenate(found), kind="stable")
    return np.concatenate(found)[order], np.concatenate(shapes)[order]


def _places(image: Header) -> Iterator[Header]:
    """The image and, if it reaches beyond 180 degrees, where features are cut, itself moved by a turn of the earth."""
    yield image
    half = half_turn_of(image.crs)
    if half is None:
        return
    corners = np.array([(0, 0), (image.width, 0), (0, image.height), (image.width, image.height)])
    x = coordinates(image.transform, corners)[:, 0]
    a, b, c, *rest = image.transform
    for turn, beyond in ((-2 * half, x.max() > half), (2 * half, x.min() < -half)):
        if beyond:
            yield replace(image, transform=(a, b, c + turn, *rest))


def _near(features: Features, image: Header, window: Window) -> np.ndarray:
    """The features, in file order, whose bounds meet the window, and some around it."""
    bounds = _bounds(features.crs, image, window)
    return np.zeros(0, np.int64) if bounds is None else np.sort(features.tree.query(shapely.box(*bounds)))


def _bounds(crs: str, image: Header, window: Window) -> tuple[float, ...] | None:
    """(min x, min y, max x, max y) of a window in a CRS, with a margin; None where it has no place there."""
    cols = np.linspace(window.col_off, window.col_off + window.width, LOOKS)
    rows = np.linspace(window.row_off, window.row_off + window.height, LOOKS)
    pixels = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2)
    points = transformed(image.crs, crs, coordinates(image.transform, pixels))
    points = points[np.isfinite(points[:, 0])]
    if not len(points):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    margin = (high - low) / LOOKS  # borders bend between the points
    return *(low - margin), *(high + margin)


def _on_pixels(file: VectorFile, features: Features, image: Header, found: np.ndarray) -> np.ndarray:
    """The geometries numbered `found`, in columns and rows of the image; empty where clipping leaves nothing."""
    shapes = features.geometries[found].copy()
    other = not same_crs(features.crs, image.crs)
    if len(found) and other:
        shapes = _bendable(shapes, _bounds(features.crs, image, Window(0, 0, image.height, image.width)))
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    if len(points) and other:
        points = transformed(features.crs, image.crs, points)
    if np.isnan(points).any():
        number = found[owner[np.isnan(points[:, 0])][0]]
        raise LabelError(
            f"{file.uri} holds a feature (number {number}, from 0) that reaches beyond the area of the image's CRS "
            f"{image.crs[:60]}; clip it to the image's surroundings"
        )
    return shapely.set_coordinates(shapes, coordinates(inverse(image.transform), points))


def _bendable(shapes: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
    """The shapes, cut at the bounds of the image, with points on long edges.

    Straight edges bend in another CRS, and points far from the image may land anywhere in it. The result depends on the
    image, not on a window of it.
    """
    low, high = shapely.bounds(shapes)[:, :2], shapely.bounds(shapes)[:, 2:]
    beyond = (low < bounds[:2]).any(axis=1) | (high > bounds[2:]).any(axis=1)
    cut = beyond | ~shapely.is_valid(shapes)  # of polygons that cross themselves, `segmentize` may drop a part
    shapes[cut] = _clipped(shapes[cut], bounds)
    return shapely.segmentize(shapes, max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / EDGES)


def _clipped(shapes: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
    """The areas of the shapes within the bounds, as multipolygons of parts that may overlap.

    Polygons that cross themselves are first made valid, with the area that `rasterize` fills: shapely clips valid ones
    only.
    """
    parts, owner = shapely.get_parts(shapes, return_index=True)
    invalid = ~shapely.is_valid(parts)
    parts[invalid] = shapely.make_valid(parts[invalid], method="linework")
    pieces, part = shapely.get_parts(shapely.clip_by_rect(parts, *bounds), return_index=True)
    areas = shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON  # clipping may leave lines and points too
    nothing = np.full(len(shapes), shapely.MultiPolygon())
    shapely.multipolygons(pieces[areas], indices=owner[part[areas]], out=nothing)
    return nothing


def _cut_at_turns(shapes: np.ndarray, half: float | None) -> np.ndarray:
    """The shapes between -180 and 180 degrees: those that go on beyond are cut there, and the rest is brought back."""
    low, _, high, _ = shapely.bounds(shapes).T
    beyond = np.flatnonzero((low < -half) | (high > half)) if half else ()
    if not len(beyond):
        return shapes
    _, bottom, _, top = shapely.total_bounds(shapes[beyond])
    strips = []
    for turn in (-2 * half, 0.0, 2 * half):
        strip = _clipped(shapes[beyond], (turn - half, bottom, turn + half, top))
        strips.append(shapely.transform(strip, lambda points, turn=turn: points - (turn, 0.0)))
    pieces, owner = shapely.get_parts(np.stack(strips, axis=1).ravel(), return_index=True)
    whole = np.full(len(beyond), shapely.MultiPolygon())
    shapely.multipolygons(pieces, indices=owner // len(strips), out=whole)
    shapes = shapes.copy()
    shapes[beyond] = whole
    return shapes


def _read(file: VectorFile) -> Features:
    frame = _frame(file.uri)
    if frame.crs is None:
        raise LabelError(f"{file.uri} does not say in which CRS its coordinates are; set it")
    geometries = np.asarray(frame.geometry.values, dtype=object)
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    kinds = shapely.get_type_id(geometries)
    wrong = np.flatnonzero(there & ~np.isin(kinds, POLYGONS))
    if len(wrong):
        name = geometries[wrong[0]].geom_type
        raise LabelError(
            f"{file.uri} holds a {name}; labels are polygons: buffer lines and points, and take collections apart"
        )
    geometries = shapely.force_2d(geometries[there])
    points, owner = shapely.get_coordinates(geometries, return_index=True)
    if not np.isfinite(points).all():
        number = np.flatnonzero(there)[owner[~np.isfinite(points).all(axis=1)][0]]
        raise LabelError(
            f"{file.uri} holds a feature (number {number}, from 0) with a coordinate that is not finite; correct it or "
            "leave it out"
        )
    _check_degrees(file, frame.crs, points)
    geometries = _cut_at_turns(geometries, half_turn_of(frame.crs.to_wkt()))
    # a file without features may have no columns either
    ids = _ids(file, frame[_attribute(file, frame.columns)][there]) if there.any() else np.zeros(0, np.uint8)
    return Features(crs=frame.crs.to_wkt(), geometries=geometries, ids=ids, tree=shapely.STRtree(geometries))


def _check_degrees(file: VectorFile, crs: CRS, points: np.ndarray) -> None:
    """LabelError on coordinates that are no degrees, as in a GeoJSON that does not say its CRS: they lie nowhere."""
    if not crs.is_geographic:
        return
    half = half_turn_of(crs.to_wkt())
    beyond = (np.abs(points) > (3 * half, half)).any(axis=1)  # longitudes may go on past a turn, boxes past a pole
    if beyond.any():
        x, y = points[beyond][0]
        raise LabelError(
            f"{file.uri} holds the coordinates ({x:.10g}, {y:.10g}), which are no longitude and latitude as in its CRS "
            f"{crs.name}; set the CRS that they are in"
        )


def _check_complete(uri: str) -> None:
    """LabelError if a GeoPackage is being edited: SQLite keeps changes beside it until its last user closes it."""
    if ending(uri) == ".gpkg" and any(file.size for file in files_if_any(f"{uri}-wal")):
        raise LabelError(f"{uri}-wal holds changes that {uri} lacks; close the program that edits it, such as QGIS")


def _frame(uri: str) -> GeoDataFrame:
    """The features of a file; SegrayError without geopandas, ImageError when the file cannot be read."""
    try:
        import geopandas  # lazily: it is an extra, and takes a second
        import pyogrio
        import pyproj
    except ImportError as error:
        raise SegrayError(f"{uri} holds vector labels, which geopandas reads: pip install 'segray[vector]'") from error
    _check_complete(uri)
    with _one_sentence(uri):
        data = io.BytesIO(read_bytes(uri))
    # once the bytes are here, an OSError is pyarrow's for what it cannot read
    errors = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyproj.exceptions.CRSError, OSError)
    with _one_sentence(uri, *errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings that bytes have no ending, and that texts are not JSON
        if ending(uri) == ".parquet":
            return geopandas.read_parquet(data)
        _check_content(uri, data.getbuffer())
        names, kinds = pyogrio.list_layers(data).T
        layers = [number for number, kind in enumerate(kinds) if kind is not None]
        if len(layers) != 1:
            found = ", ".join(str(names[number]) for number in layers) or "none"
            raise LabelError(f"{uri} holds the layers {found}; give one layer of features")
        data.seek(0)
        return pyogrio.read_dataframe(data, layer=layers[0])  # by number: a GeoJSON may be renamed at each opening


def _check_content(uri: str, data: memoryview) -> None:
    """ImageError if the ending does not fit: GDAL goes by the content, and some formats make it read other files."""
    starts = (b"SQLite format 3\0",) if ending(uri) == ".gpkg" else (b"{",)
    if not bytes(data[:64]).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(starts):
        raise ImageError(f"{uri} cannot be read: its content is not what its ending says")


@contextmanager
def _one_sentence(uri: str, *errors: type[Exception]) -> Iterator[None]:
    """Whatever is wrong with a file of features becomes an ImageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"{uri} does not exist") from error
    except (*errors, pa.ArrowException, shapely.errors.GEOSException, ValueError, KeyError) as error:
        if isinstance(error, SegrayError):
            raise
        raise ImageError(f"{uri} cannot be read: {describe(error)}") from error


def _attribute(file: VectorFile, names: Iterable[str]) -> str:
    """The attribute that holds the class."""
    wanted = (file.attribute,) if file.attribute else ATTRIBUTES
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise LabelError(
            f"{file.uri} has no attribute {' or '.join(wanted)}; name the one with the class in classes.json, as in "
            f'"attribute": "landuse"'
        )
    return found


def _ids(file: VectorFile, values: Series) -> np.ndarray:
    """(n,) uint8: the ids of the values of an attribute, each a name or an id."""
    known = dict(file.ids)
    if values.isna().any():
        raise LabelError(f"{file.uri} holds a feature without a class; give it one, or leave it out")
    with _one_sentence(file.uri):  # texts are decoded one by one
        return np.array([_id(file, value, known) for value in values], np.uint8)


def _id(file: VectorFile, value: object, known: dict[str, int]) -> int:
    text = str(value).strip()
    # whole numbers beside missing ones arrive as 3.0
    text = text if text in known else text.removesuffix(".0")
    if text not in known:
        raise LabelError(
            f"{file.uri} holds the class {value!r}, which is neither the name nor the id of a class; add it to "
            "classes.json or correct the file"
        )
    return known[text]


_kept: Kept[VectorFile, Features] = Kept(_read, most=MOST)
