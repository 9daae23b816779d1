"""Vector labels burnt into the pixels of a window of an image whose centres they cover."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import shapely
from rasterio import Affine
from rasterio.features import rasterize

from segray.archives.raster import Header
from segray.datasets.features import Features, VectorFile, clipped, features_of
from segray.datasets.regrid import half_turn_of, same_crs, transformed
from segray.errors import LabelError
from segray.footprints import coordinates, inverse
from segray.grid import Window

LOOKS = 33  # points along each side of the grid that gives a window's bounds in the CRS of the features
EDGES = 128  # in another CRS, an edge as long as the image's longer side is split into at least this many


def burn(file: VectorFile, image: Header, window: Window, *, background: int) -> np.ndarray:
    """(h, w) uint8 ids of the features that cover the centres of a window's pixels, later ones over earlier ones.

    background: the id where there is no feature. image: with CRS and transform. LabelError, naming the file, on a class
    that the legend does not have or a feature that has no place in the image's CRS; ImageError when it cannot be read.
    """
    features = features_of(file)
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
    shapes[cut] = clipped(shapes[cut], bounds)
    return shapely.segmentize(shapes, max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / EDGES)
