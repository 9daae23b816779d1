"""Small containers for tests: written, put on a store, and read back."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.archives.members import CONTAINERS, Container, kind_of
from segray.listing import list_files
from segray.storage import File, publish

CHANCE = np.random.default_rng(0)
BODIES = {name: CHANCE.bytes(size) for name, size in {"a.png": 3000, "b/ü 水.JPG": 70_000, "c.tif": 1}.items()}
WITHOUT = {"notes.txt": b"1", ".x.png": b"2", "__MACOSX/a.png": b"3", "b/.cache/x.jpg": b"4", "noending": b"5"}


def tar_of(bodies: dict[str, bytes], mode: str = "w", **options: object) -> bytes:
    """A tar with files of those names and bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as tar:
        for name, body in bodies.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def zip_of(bodies: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with files of those names and bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, body in bodies.items():
            archive.writestr(name, body)
    return out.getvalue()


def parquet_of(row_group_size: int | None = None, **columns: object) -> bytes:
    """A Parquet file of those columns."""
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=row_group_size)
    return out.getvalue()


def table_of(bodies: dict[str, bytes]) -> bytes:
    """A table of images in row groups of two, as Hugging Face writes them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": body, "path": name} for name, body in bodies.items()], kind)
    return parquet_of(2, image=images, label=range(len(bodies)))


WRITERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    ".tar": tar_of,
    ".tar.gz": lambda bodies: tar_of(bodies, "w:gz"),
    ".TGZ": lambda bodies: tar_of(bodies, "w:gz", format=tarfile.GNU_FORMAT),
    ".zip": zip_of,
    ".Zip": lambda bodies: zip_of(bodies, zipfile.ZIP_STORED),
    ".parquet": table_of,
}


def container_of(uri: str) -> Container | None:
    """The format of a container, by the ending of its name."""
    return CONTAINERS.get(kind_of(uri))


def put(uri: str, data: bytes) -> File:
    """The file as it is listed once it holds the data."""
    publish(uri, data)
    return next(list_files(uri))


def listed(file: File) -> dict[str, File]:
    """The members of a container by name."""
    return {member.uri.split("://")[1].split("::")[0]: member for member in container_of(file.uri).members(file)}


def body(file: File, member: File) -> bytes:
    """The bytes of a member."""
    return container_of(file.uri).read(file.uri, member.part)
