"""Where the pixels of an image lie in a label raster on another grid; points transformed from one CRS to another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from rasterio._err import CPLE_NotSupportedError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from segray import footprints
from segray.archives.raster import Affine6, Header
from segray.errors import LabelError
from segray.footprints import coordinates, half_turn, inverse
from segray.grid import Window

CONTROL = 16  # pixels between control points: interpolating linearly between them is good to 0.001 pixels of 10 m
ROUGH = 0.01  # pixels of the label: where interpolating is off by more, as in pixels of kilometres, nothing is
SNAP = 1e-6  # of a pixel: a smaller difference is taken for a rounding error


def label_pixels(image: Header, label: Header, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the label pixels that hold the centres of the image's pixels in a window; -1 outside.

    int64 arrays that broadcast to the window's shape. Both headers have a transform. A pixel's place depends on the two
    grids alone, not on the window. Longitudes that differ by a whole turn are the same place.
    """
    if same_crs(image.crs, label.crs):
        a, b, c, d, e, f = _combined(inverse(label.transform), image.transform)
        rows = np.arange(window.row_off, window.row_off + window.height)[:, None] + 0.5
        cols = np.arange(window.col_off, window.col_off + window.width)[None, :] + 0.5
        # only rotated grids need both coordinates for each
        across = a * cols + c + (b * rows if b else 0.0)
        down = e * rows + f + (d * cols if d else 0.0)
    else:
        down, across = _between(image, label, window)
    rows, cols = _index(down, label.height), _index(across, label.width)
    a, b, _, d, *_ = label.transform
    if (half := half_turn_of(label.crs)) and not (b or d) and (cols < 0).any():
        turn = 2 * half / abs(a)  # pixels
        cols = np.where(cols < 0, _index(across - np.floor((across + SNAP) / turn) * turn, label.width), cols)
    return rows, cols


def transformed(from_crs: str, to_crs: str, points: np.ndarray) -> np.ndarray:
    """As `footprints.transformed`; LabelError when one CRS cannot be transformed to the other."""
    try:
        return footprints.transformed(from_crs, to_crs, points)
    except (CRSError, CPLE_NotSupportedError) as error:
        raise LabelError(f"the CRS {from_crs[:60]} cannot be transformed to {to_crs[:60]}; correct them") from error


@lru_cache(64)
def same_crs(one: str | None, other: str | None) -> bool:
    """Whether two CRS, as authority code or WKT, are the same; CRSError when one is invalid."""
    return one == other or (bool(one and other) and CRS.from_user_input(one) == CRS.from_user_input(other))


@lru_cache(64)
def half_turn_of(crs: str | None) -> float | None:
    """As `half_turn`, of a CRS as authority code or WKT; None without a CRS too."""
    return half_turn(CRS.from_user_input(crs)) if crs else None


def _combined(second: Affine6, first: Affine6) -> Affine6:
    """The affine that is `first` and then `second`."""
    a, b, c, d, e, f = second
    g, h, i, j, k, m = first
    return a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f


def _between(image: Header, label: Header, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) rows and columns of pixel centres in the label, interpolated between control points where that is exact.

    Points halfway between control points say where it is.
    """
    rows, cols = (_control(start, n) for start, n in ((window.row_off, window.height), (window.col_off, window.width)))
    corners = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2).astype(np.float64)
    points = transformed(image.crs, label.crs, coordinates(image.transform, corners))
    to_label = inverse(label.transform)
    places = coordinates(to_label, points).reshape(len(rows), len(cols), 2)
    across, down = (_bilinear(places[::2, ::2, axis], window) for axis in (0, 1))
    exact = _torn(label, points[:, 0].reshape(len(rows), len(cols))[::2, ::2]) | _rough(places)
    if exact.any():
        where = exact[np.ix_(*(cell - cell[0] for _, cell in _cells(window)))]
        pixels = np.argwhere(where)[:, ::-1] + (window.col_off + 0.5, window.row_off + 0.5)
        found = coordinates(to_label, transformed(image.crs, label.crs, coordinates(image.transform, pixels)))
        across[where], down[where] = found.T
    return down, across


def _rough(places: np.ndarray) -> np.ndarray:
    """Bool, for each cell: whether a point halfway along one of its sides is far from the middle of the side's ends.

    places: (2 n + 1, 2 m + 1, 2). The middle of a cell would not tell: where maps keep angles, what rows bend there,
    columns bend back. False for cells that have no place.
    """
    level = np.abs(places[::2, 1::2] - (places[::2, :-1:2] + places[::2, 2::2]) / 2).max(axis=2)
    upright = np.abs(places[1::2, ::2] - (places[:-1:2, ::2] + places[2::2, ::2]) / 2).max(axis=2)
    return np.maximum(np.maximum(level[:-1], level[1:]), np.maximum(upright[:, :-1], upright[:, 1:])) > ROUGH


def _torn(label: Header, x: np.ndarray) -> np.ndarray:
    """Bool, for each cell: whether its control points lie on both sides of the antimeridian (179 and -179 degrees)."""
    half = half_turn_of(label.crs)
    cells = np.lib.stride_tricks.sliding_window_view(x, (2, 2))
    return np.ptp(cells, axis=(2, 3)) > (np.inf if half is None else half)


def _control(start: int, count: int) -> np.ndarray:
    """The control points around `count` pixels and the points halfway between them, in pixels of the image."""
    first, last = start // CONTROL, (start + count - 1) // CONTROL + 1
    return np.arange(2 * first, 2 * last + 1) * (CONTROL // 2)


def _cells(window: Window) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For rows, then columns: a window's pixel centres in units of cells of control points, and the cells they hit."""
    for start, count in ((window.row_off, window.height), (window.col_off, window.width)):
        place = (np.arange(start, start + count) + 0.5) / CONTROL
        yield place, np.floor(place).astype(np.int64)


def _bilinear(values: np.ndarray, window: Window) -> np.ndarray:
    """(h, w) values at the centres of a window's pixels, from those at the control points around it."""
    for axis, (place, cell) in enumerate(_cells(window)):
        share = (place - cell)[:, None] if axis == 0 else place - cell
        before = cell - cell[0]
        values = np.take(values, before, axis) * (1 - share) + np.take(values, before + 1, axis) * share
    return values


def _index(place: np.ndarray, size: int) -> np.ndarray:
    """The pixel of each place on an axis of `size` pixels, -1 outside; on a border the one that begins there."""
    inside = (place >= -SNAP) & (place < size - SNAP)  # False for NaN
    return np.where(inside, np.floor(np.where(inside, place, 0.0) + SNAP), -1).astype(np.int64)
