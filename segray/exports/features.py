"""Regions as rows of a GeoParquet 1.1 file, written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from segray.errors import SegrayError
from segray.exports.ground import Ground
from segray.exports.names import public
from segray.rings import Rings
from segray.scenes import Masks, Scene
from segray.tracing import Regions

ROW_GROUP, ROW_GROUP_BYTES = 2**16, 2**26  # features, or bytes of their geometries: whichever is reached first
MAX_GEOMETRY = 2**31 - 1  # bytes of one value in Parquet
BOX = ("xmin", "ymin", "xmax", "ymax")
SCHEMA = pa.schema(
    [
        pa.field("geometry", pa.binary()),
        pa.field("class_id", pa.int32()),
        pa.field("class_name", pa.string()),
        pa.field("pixels", pa.int64()),
        pa.field("area_m2", pa.float64()),
        pa.field("image", pa.string()),
        pa.field("bbox", pa.struct([pa.field(side, pa.float64()) for side in BOX])),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Regions and their boundaries in pixel coordinates. areas_m2: NaN where unknown."""

    regions: Regions
    areas_m2: np.ndarray
    rings: Rings


class FeatureWriter:
    """Writes features to a GeoParquet file, row group by row group."""

    def __init__(self, path: str, masks: Masks, scene: Scene, ground: Ground) -> None:
        self.features = 0
        self._scene, self._ground, self._names = scene, ground, np.array(masks.classes.names, dtype=object)
        self._metadata = {"segray": json.dumps(masks.metadata, sort_keys=True)}
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._held: list[pa.Table] = []
        # without Arrow's copy of the schema: readers would look there for the metadata, which is known only at the end
        self._file = pq.ParquetWriter(path, SCHEMA, compression="zstd", store_schema=False)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._flush()
            self._file.add_key_value_metadata({**self._metadata, "geo": json.dumps(self._geo())})
        self._file.close()

    def add(self, batch: Batch) -> None:
        """Write a batch, or hold it until there is enough for a row group."""
        for start, stop in _slices(batch.rings, self._scene.image):
            table = self._table(batch, start, stop)
            self._held.append(table)
            self.features += len(table)
            if sum(map(len, self._held)) >= ROW_GROUP or sum(part.nbytes for part in self._held) >= ROW_GROUP_BYTES:
                self._flush()

    def _table(self, batch: Batch, start: int, stop: int) -> pa.Table:
        rings = batch.rings.part(start, stop)
        polygons = polygons_of(replace(rings, points=self._ground.coordinates(rings.points)))
        polygons = shapely.orient_polygons(polygons)  # where rows run downwards, they have become clockwise
        low, high = np.split(shapely.bounds(polygons), 2, axis=1)
        self._bounds = np.concatenate(
            [np.minimum(self._bounds[:2], low.min(axis=0)), np.maximum(self._bounds[2:], high.max(axis=0))]
        )
        class_ids = batch.regions.class_ids[start:stop]
        areas = batch.areas_m2[start:stop]
        columns = [
            pa.array(shapely.to_wkb(polygons, byte_order=1), pa.binary()),
            pa.array(class_ids.astype(np.int32)),
            pa.array(self._names_of(class_ids), pa.string()),
            pa.array(batch.regions.pixels[start:stop]),
            pa.array(areas, mask=np.isnan(areas)),
            pa.repeat(pa.scalar(public(self._scene.image)), stop - start),
            pa.StructArray.from_arrays(
                [pa.array(side) for side in (*low.T, *high.T)], fields=list(SCHEMA.field("bbox").type)
            ),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def _names_of(self, class_ids: np.ndarray) -> np.ndarray:
        largest = int(class_ids.max())
        if largest >= len(self._names):
            raise SegrayError(
                f"the mask of {self._scene.image} holds the id {largest}, but there are {len(self._names)} classes; "
                f"run segment.py again with --overwrite"
            )
        return self._names[class_ids]

    def _flush(self) -> None:
        if self._held:
            self._file.write_table(pa.concat_tables(self._held), row_group_size=ROW_GROUP)
        self._held = []

    def _geo(self) -> dict:
        """The `geo` metadata (GeoParquet 1.1.0)."""
        column = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": self._ground.projjson,
            "orientation": "counterclockwise",
            "edges": "planar",
            "covering": {"bbox": {side: ["bbox", side] for side in BOX}},
        }
        if self.features:
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _slices(rings: Rings, image: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of polygons that fit into one row group; a larger polygon gets one of its own."""
    # bytes of the geometries up to each polygon (OGC 06-103r4, section 8: 9 a polygon, 4 a ring, 16 a point)
    points = rings.rings[rings.polygons]
    sizes = 9 * np.arange(len(points)) + 4 * rings.polygons + 16 * points
    if (np.diff(sizes) > MAX_GEOMETRY).any():
        raise SegrayError(
            f"{image} has a region with more vertices than one value of Parquet holds ({MAX_GEOMETRY:,} bytes); "
            f"export it as a raster"
        )
    start, count = 0, len(sizes) - 1
    while start < count:
        stop = int(np.searchsorted(sizes, sizes[start] + ROW_GROUP_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + ROW_GROUP, count)
        yield start, stop
        start = stop


def polygons_of(rings: Rings) -> np.ndarray:
    """(n,) shapely polygons."""
    points = rings.points.astype(np.float64)
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings.rings, rings.polygons))
