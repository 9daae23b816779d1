"""Files of vector labels: their features, each a polygon with a class.

A file is read whole, by geopandas, and kept with an index of where its features lie.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import shapely

from segray.archives.kept import Kept
from segray.datasets.regrid import half_turn_of
from segray.errors import ImageError, LabelError, SegrayError
from segray.listing import files_if_any
from segray.storage import read_bytes
from segray.store_errors import describe
from segray.uris import ending

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import Series
    from pyproj import CRS

ATTRIBUTES = ("class", "class_id", "class_name")  # tried in this order, where the legend names none
POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
READS_OTHERS = (b"<OGRVRTDataSource", b"gdal_streamed_alg")  # formats that GDAL recognises wherever a text has these
MOST = 32  # files kept in a process


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


def features_of(file: VectorFile) -> Features:
    """The features of a file, kept for the next time; LabelError and ImageError, naming the file, if it is no use."""
    return _kept.get(file)


def clipped(shapes: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
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
        strip = clipped(shapes[beyond], (turn - half, bottom, turn + half, top))
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
        _check_content(uri, data.getvalue())
        names, kinds = pyogrio.list_layers(data).T
        layers = [number for number, kind in enumerate(kinds) if kind is not None]
        if len(layers) != 1:
            found = ", ".join(str(names[number]) for number in layers) or "none"
            raise LabelError(f"{uri} holds the layers {found}; give one layer of features")
        data.seek(0)
        return pyogrio.read_dataframe(data, layer=layers[0])  # by number: a GeoJSON may be renamed at each opening


def _check_content(uri: str, data: bytes) -> None:
    """ImageError if the ending does not fit: GDAL goes by the content, and some formats make it read other files."""
    package = ending(uri) == ".gpkg"
    start = b"SQLite format 3\0" if package else b"{"
    fits = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(start)
    if not fits or not package and any(mark in data for mark in READS_OTHERS):
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
