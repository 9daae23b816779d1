"""The stages of a segmentation alone: each works on every pixel once, and tiles are counted as they are computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import write_model
from PIL import Image
from scene_sets import raster

from segray import stages, walk
from segray.archives import open_archive
from segray.archives.images import is_picture, read_header
from segray.grid import Lattice
from segray.model_dir import read_description
from segray.plan import cut, read_shard, whole, write_files
from segray.shards import read_masks, write_shard
from segray.stages import Clock, Workers
from segray.synthetic import scene
from segray.work import Work

SIZES = {"a.tif": (230, 190), "b.tif": (64, 300), "c.png": (50, 70), "d.png": (33, 31)}
PIXELS = sum(height * width for height, width in SIZES.values())


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Two rasters, one of them without data in most of it, and two pictures."""
    folder = tmp_path_factory.mktemp("archive")
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        image = np.maximum(scene(number, height, width)[0], 1)
        if name.endswith(".png"):
            Image.fromarray(image).save(folder / name)
            continue
        image[40:, : 170 if name == "a.tif" else 0] = 0
        content = raster(image.transpose(2, 0, 1), nodata=0, tiled=True, blockxsize=64, blockysize=64)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_model(str(tmp_path_factory.mktemp("model")))


def work_of(archive: Path, model: str, folder: Path, *, shard_pixels: int, blend: str = "taper") -> tuple[Work, int]:
    """(work, shards): the Work on a plan of the archive with one item per shard."""
    description = read_description(model)
    lattice = description.spec.lattice(blend)
    items = []
    for file in open_archive(str(archive)).images():
        header = read_header(file.uri)
        size = {"height": header.height, "width": header.width}
        items += (
            [whole(file)] if is_picture(file.uri) else cut(file, **size, lattice=lattice, shard_pixels=shard_pixels)
        )
    shards = sum(write_files(str(folder / "plan"), ([item] for item in items)))
    work = Work(
        plan=str(folder / "plan"), output=str(folder / "done"), model=model, digest=description.digest,
        classes=description.classes, spec=description.spec, explicit_bands=False, window=100, formats=("parquet",),
        precision="fp32", blend=blend, batch_size=3,
    )  # fmt: skip
    return work, shards


@pytest.fixture(scope="module")
def done(archive, model, tmp_path_factory) -> tuple[Work, int]:
    """A finished job: its work and its shards."""
    work, shards = work_of(archive, model, tmp_path_factory.mktemp("job"), shard_pixels=10_000)
    segmenter = work.segmenter()
    for shard in range(shards):
        results = walk.segment(work.readings(read_shard(work.plan, shard)), segmenter)
        rows = list(walk.rows(results, work.classes))
        write_shard(work.output, shard, rows=rows, formats=work.formats, metadata=work.metadata)
    return work, shards


@pytest.mark.parametrize("blend", ["taper", "crop"])
def test_every_tile_with_data_is_needed_once_however_the_archive_is_cut(archive, model, tmp_path, *, blend):
    counts = {}
    for shard_pixels in (10**9, 20_000, 5_000, 1_000):
        work, shards = work_of(archive, model, tmp_path / str(shard_pixels), shard_pixels=shard_pixels, blend=blend)
        counts[shard_pixels] = stages.count_tiles(work, list(range(shards)))
    needed = {ours for ours, _ in counts.values()}
    computed = [all_ for _, all_ in counts.values()]
    assert len(needed) == 1
    assert counts[10**9] == (computed[0], computed[0])
    assert all(few <= many for few, many in zip(computed, computed[1:]))
    if blend == "taper":
        assert computed[-1] > computed[0]
    lattice = Lattice(32, 8, blend)
    everywhere = sum(lattice.count(height) * lattice.count(width) for height, width in SIZES.values())
    without_a = everywhere - lattice.count(230) * lattice.count(190)
    assert without_a < computed[0] < everywhere  # most tiles of a.tif hold no data


def test_the_segmenter_computes_the_tiles_that_are_counted(archive, model, tmp_path):
    work, shards = work_of(archive, model, tmp_path, shard_pixels=7_000)
    segmenter = replace(work, batch_size=1).segmenter()  # larger batches are filled up
    tiles = []
    segmenter.inference.network.register_forward_hook(lambda _module, x, _logits: tiles.append(len(x[0])))
    for shard in range(shards):
        list(walk.segment(work.readings(read_shard(work.plan, shard)), segmenter))
    assert sum(tiles) == stages.count_tiles(work, list(range(shards)))[1]


def test_reading_takes_every_byte_once(archive, done, monkeypatch):
    monkeypatch.setattr(stages, "PIECE_BYTES", 1000)
    pieces = stages.pieces_of(open_archive(str(archive)).images())
    assert max(stop - start for _, start, stop in pieces) == 1000
    assert stages.read_pieces(done[0], pieces, Clock()) == sum((archive / name).stat().st_size for name in SIZES)


def test_decoding_takes_every_pixel_once(done, monkeypatch):
    work, shards = done
    monkeypatch.setattr(stages, "ALIGNED", 64)
    parts = stages.decodings(item for shard in range(shards) for item in read_shard(work.plan, shard))
    assert len(set(parts)) == len(parts) == 4 * 3 + 1 * 5 + 2
    assert stages.decode(work, parts, Clock()) == PIXELS


def test_the_network_runs_alone(done, monkeypatch):
    monkeypatch.setattr(stages, "NETWORK_S", 0.05)
    clock = Clock()
    tiles = stages.run_network(done[0], [0], clock)
    assert tiles >= done[0].batch_size and tiles % done[0].batch_size == 0
    assert clock.seconds > 0 and clock.cpu_seconds > 0


def test_writing_writes_the_masks_of_the_job(done, tmp_path):
    work, shards = done
    assert stages.write(work, (work.output, list(range(shards)), str(tmp_path)), Clock()) == PIXELS
    for shard in range(shards):
        before, after = (read_masks(output, shard, "parquet") for output in (work.output, str(tmp_path)))
        assert [(row["image"], row["row_off"], row["pixel_counts"], row["status"], png) for row, png in before] == [
            (row["image"], row["row_off"], row["pixel_counts"], row["status"], png) for row, png in after
        ]


def test_processes_share_a_stage(done):
    work, shards = done
    items = [item for shard in range(shards) for item in read_shard(work.plan, shard)]
    with Workers(2) as workers:
        parts = workers.shares(stages.decodings(items))
        assert sorted(map(len, parts)) == [2, 2]
        cost = workers.measure(stages.decode, work, parts)
        nothing = workers.measure(stages.decode, work, [[], parts[0]])
        assert workers.map(len, [[1], [1, 2], []]) == [1, 2, 0]
        with pytest.raises(ValueError, match="2 processes need as many parts, not 1"):
            workers.measure(stages.decode, work, [[]])
    assert cost.amount == PIXELS > nothing.amount
    assert cost.seconds > 0 and cost.cpu_seconds > 0


def fail_alone(work: Work, part: str, clock: Clock) -> float:
    """A stage that fails in one process while the others wait for it."""
    if part == "bad":
        raise RuntimeError("it is broken")
    with clock:
        return 0.0


@pytest.mark.parametrize("parts", [["good", "bad"], ["bad", "good"]])
def test_the_error_of_one_process_ends_a_stage_of_all(done, parts):
    with Workers(2) as workers, pytest.raises(RuntimeError, match="it is broken"):
        workers.measure(fail_alone, done[0], parts)


def test_a_clock_waits_once_and_adds_up():
    waits = []
    clock = Clock(lambda: waits.append(clock.seconds))
    for _ in range(3):
        with clock:
            sum(range(10_000))
    clock.wait()
    assert waits == [0.0]
    assert clock.seconds > 0
