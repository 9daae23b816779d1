"""An image that kills the process that reads it ends no job: it becomes a failed row, and all others get masks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from models import write_model
from PIL import Image
from running import small_ray

from segray import cluster, pipeline, walk
from segray import plan as plans
from segray.errors import ModelError, SegrayError
from segray.grid import Window
from segray.inference import default_precision
from segray.inputs import InputSpec
from segray.listing import list_files
from segray.model_dir import read_description
from segray.packing import batch_of, unpack
from segray.plan import whole, write_files
from segray.regions import Region, WindowMask
from segray.summary import Totals
from segray.synthetic import scene
from segray.work import STAGES, Work, probe

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
FAULT = "CUDA error: an illegal memory access was encountered"


@dataclass(frozen=True)
class Constant:
    """A stand-in for a network: class 0 everywhere, and no torch in the many processes that die."""

    classes: int

    def segment(self, regions: Iterable[Region]) -> Iterator[list[WindowMask]]:
        """A mask a window."""
        for region in regions:
            yield [self._mask(window) for window in region.windows]

    def _mask(self, window: Window) -> WindowMask:
        counts = np.array([window.pixels] + [0] * (self.classes - 1))
        known = {"pixel_counts": counts, "valid_pixels": window.pixels, "confidence": 1.0, "seam_disagreement": None}
        return WindowMask(window=window, mask=np.zeros((window.height, window.width), np.uint8), **known)


@dataclass(frozen=True, kw_only=True)
class ConstantWork(Work):
    """A Work like any other, but for the network."""

    def segmenter(self) -> Constant:
        """The stand-in."""
        return Constant(len(self.classes))


@dataclass(frozen=True, kw_only=True)
class DeadlyWork(Work):
    """As every work, but that the network kills whoever loads it."""

    def segmenter(self) -> Constant:
        """Die as of too little memory."""
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class PoisonedWork(ConstantWork):
    """ConstantWork, but an image named poison kills its reader."""

    def readings(self, items):
        """Die, as on a fault in a decoder."""
        items = list(items)
        if any("-poison" in item.image and not item.error for item in items):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().readings(items)


@dataclass(frozen=True, kw_only=True)
class CrowdedWork(ConstantWork):
    """ConstantWork, but reading several images (at the same time, or at all) kills the process."""

    at_the_same_time: bool

    def readings(self, items):
        """Die, as for lack of memory."""
        items = list(items)
        if len(items) > 1 and (self.ahead > 1 or not self.at_the_same_time):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().readings(items)


@dataclass(frozen=True)
class FailingDevice(Constant):
    """Constant, but images of less than 48 rows, or all, raise an error worded as by torch."""

    message: str
    always: bool

    def segment(self, regions):
        """Fail as a device does."""
        for region in regions:
            if self.always or region.height < 48:
                raise RuntimeError(self.message)
            yield from super().segment([region])


@dataclass(frozen=True, kw_only=True)
class FailingDeviceWork(ConstantWork):
    """ConstantWork on a failing device."""

    message: str
    always: bool = False

    def segmenter(self) -> FailingDevice:
        """The stand-in."""
        return FailingDevice(len(self.classes), self.message, self.always)


@dataclass(frozen=True, kw_only=True)
class FullDiskWork(ConstantWork):
    """ConstantWork that notes a dot for each shard, but can write none."""

    record: str

    def publish(self, shard, results, costs, *, role="actor"):
        """Segment the shard, and fail."""
        for _ in results:
            pass
        with open(self.record, "a") as record:
            record.write(".")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A Ray of two cores with the stages of a GPU cluster, whose workers get the code of the classes above."""
    with small_ray(resources={STAGES: 1}):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model that no test writes to."""
    return write_model(str(tmp_path_factory.mktemp("model")))


@pytest.fixture
def work(model, tmp_path) -> dict:
    """The settings of a Work on six images, two a shard, one of them poisonous."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        name = "poison" if number == 3 else "image"
        Image.fromarray(scene(number, 48, 48)[0]).save(images / f"{number:02d}-{name}.png")
    model = shutil.copytree(model, str(tmp_path / "model"))
    items = [whole(file) for file in list_files(str(images))]
    shards = [items[start : start + 2] for start in range(0, 6, 2)]
    assert write_files(str(tmp_path / "plan"), shards) == (3,)
    description = read_description(model)
    return {
        "plan": str(tmp_path / "plan"), "output": str(tmp_path), "model": model, "digest": description.digest,
        "classes": description.classes, "spec": description.spec, "explicit_bands": False, "window": 2048,
        "formats": ("parquet",), "precision": "fp32", "blend": "taper",
    }  # fmt: skip


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("bands", [3, 5])
def test_a_full_actor_makes_its_pool_grow(work, on_gpu, staged, bands):
    """Ray Data compares its threshold with the shards at the actors over those that they can work on."""
    spec = InputSpec(bands=tuple(range(bands)), scale=1.0, mean=(0.0,) * bands, std=(1.0,) * bands)
    options = replace(ConstantWork(**work), spec=spec, on_gpu=on_gpu).pool_options(staged=staged)
    pipeline.configure()
    threshold = ray.data.DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold
    together = options.get("max_concurrent_calls_per_actor", 1)
    assert 1 < threshold <= options["max_tasks_in_flight_per_actor"] / together


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_shard_tried_alone_fits_where_an_actor_does(work, on_gpu):
    """A node whose GPUs came without spare cores would never run it, and the job would wait without end."""
    of_one = replace(ConstantWork(**work), on_gpu=on_gpu)
    actor = of_one.actor_options()
    assert all(pipeline._resources(of_one).get(name, 0) <= actor.get(name, 0) for name in ("num_cpus", "num_gpus"))


@pytest.mark.parametrize(("estimate", "most"), [(48 * 48, 4), (1, 11)])
def test_whatever_a_reading_stage_reads_is_handed_over(work, monkeypatch, estimate, most):
    """Or the actor would read it again."""
    read, read_item = [], walk.read_item
    monkeypatch.setattr(walk, "read_item", lambda item, **options: read.append(item) or read_item(item, **options))
    monkeypatch.setattr(pipeline, "READ_BYTES", 2 * 48 * 48 * 3)
    items = [replace(plans.read_shard(work["plan"], 0)[0], estimate=estimate) for _ in range(20)]
    write_files(work["plan"], [items])
    (handed, rest), _ = unpack(pipeline._read(batch_of({"shard": 0}), ConstantWork(**work)))
    assert len(read) == len(handed) <= most
    assert len(handed) >= 3 and rest == items[len(handed) :]


def test_a_poisonous_image_is_a_failed_row_and_nothing_else_is_lost(work, tmp_path):
    totals = Totals()
    pipeline.run(PoisonedWork(**work), list(range(3)), actors=(1, 1), on_result=totals.add)
    assert totals.shards == 3
    assert totals.image_counts() == {"ok": 5, "nodata": 0, "failed": 1}
    rows = pq.read_table(tmp_path / "masks").to_pylist()
    assert len(rows) == 6
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert "03-poison.png" in failed["image"]
    assert "killed its process" in failed["error"]


def test_a_poisonous_image_of_several_blocks_that_is_alone_in_its_shard_is_failed_rows(work, tmp_path):
    item = next(item for item in plans.read_shard(work["plan"], 1) if "-poison" in item.image)
    size = {"image_height": 48, "image_width": 48, "width": 48}
    blocks = [replace(item, row_off=0, height=32, **size), replace(item, row_off=32, height=16, **size)]
    assert write_files(work["plan"], [blocks]) == (1,)
    totals = Totals()
    pipeline.run(PoisonedWork(**work), [0], actors=(1, 1), on_result=totals.add)
    assert totals.image_counts() == {"ok": 0, "nodata": 0, "failed": 1}
    rows = pq.read_table(tmp_path / "masks").to_pylist()
    assert [(row["row_off"], row["height"], row["status"]) for row in rows] == [(0, 32, "failed"), (32, 16, "failed")]


def test_images_that_are_too_much_together_are_read_one_at_a_time(work):
    totals = Totals()
    pipeline.run(CrowdedWork(**work, at_the_same_time=True), [0], actors=(1, 1), on_result=totals.add)
    assert totals.image_counts() == {"ok": 2, "nodata": 0, "failed": 0}


def test_a_shard_that_kills_its_process_although_no_image_does_is_one_sentence(work):
    with pytest.raises(SegrayError, match="shard 0 kills its process, though none of its images alone does; give"):
        pipeline.run(CrowdedWork(**work, at_the_same_time=False), [0], actors=(1, 1), on_result=lambda totals: None)


def test_a_full_disk_ends_the_job_before_all_is_done_again(work, tmp_path):
    full = FullDiskWork(**work, record=str(tmp_path / "record"))
    with pytest.raises(OSError, match="No space left") as caught:
        pipeline.run(full, list(range(3)), actors=(1, 1), on_result=lambda totals: None)
    assert caught.value.cause.errno == errno.ENOSPC
    assert len((tmp_path / "record").read_text()) == 3 + 1  # each shard, and the one that was tried again alone


def test_a_full_disk_is_told_however_many_shards_are_left(work, tmp_path):
    items = plans.read_shard(work["plan"], 0)[:1]
    shards = pipeline.MAX_LOST_SHARDS + 6
    assert write_files(work["plan"], [items] * shards) == (shards,)
    full = FullDiskWork(**work, record=str(tmp_path / "record"))
    with pytest.raises(OSError, match="No space left") as caught:
        pipeline.run(full, list(range(shards)), actors=(1, 1), on_result=lambda totals: None)
    assert caught.value.cause.errno == errno.ENOSPC


@pytest.mark.parametrize("message", [OUT_OF_MEMORY, FAULT])
def test_an_image_on_which_the_device_fails_is_a_failed_row(work, tmp_path, message):
    Image.fromarray(scene(3, 40, 48)[0]).save(tmp_path / "images" / "03-poison.png")
    totals = Totals()
    pipeline.run(FailingDeviceWork(**work, message=message), list(range(3)), actors=(1, 1), on_result=totals.add)
    assert totals.image_counts() == {"ok": 5, "nodata": 0, "failed": 1}


@pytest.mark.parametrize("message", [OUT_OF_MEMORY, FAULT])
def test_a_device_that_always_fails_is_one_sentence(work, message):
    failing = FailingDeviceWork(**work, message=message, always=True)
    with pytest.raises(SegrayError, match="3 shards kill every process that segments them; give the workers more mem"):
        pipeline.run(failing, list(range(3)), actors=(1, 1), on_result=lambda totals: None, fresh=True)


def test_a_model_that_changed_meanwhile_is_not_used(work, tmp_path):
    changed = Work(**{**work, "digest": "of the model that the job began with"})
    with pytest.raises(SegrayError) as caught:
        pipeline.run(changed, [0], actors=(1, 1), on_result=lambda totals: None)
    assert str(caught.value) == (
        f"{work['model']} has changed since the job began; run it again once nothing writes to it"
    )
    assert not (tmp_path / "masks").exists()


def test_a_gpu_that_is_not_there_is_not_waited_for():
    with pytest.raises(SegrayError, match="--device gpu was given, but Ray finds no GPU on this machine; leave it out"):
        cluster.use_gpu("gpu")


def test_a_gpu_that_torch_cannot_use_is_found_before_the_model_is_read(work, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SegrayError, match="Ray counts GPUs that torch cannot use"):
        Work(**{**work, "model": "nowhere", "on_gpu": True}).segmenter()


def test_where_nothing_ever_survives_no_image_is_to_blame(work, tmp_path):
    crowded, shards = CrowdedWork(**work, at_the_same_time=False), [0, 1]
    with pytest.raises(SegrayError, match="2 shards kill every process that segments them; give the workers more"):
        pipeline.run(crowded, shards, actors=(1, 1), on_result=lambda totals: None, fresh=True)
    assert not (tmp_path / "masks").exists()


def test_the_precision_is_that_of_the_work_or_what_is_fast_here(work):
    assert probe(Work(**work)) == "fp32"
    assert probe(Work(**{**work, "precision": ""})) == default_precision("cpu")


def test_who_waits_for_nodes_is_told(work, monkeypatch, caplog):
    with caplog.at_level("INFO", logger="segray"):
        probe(Work(**work))
        assert not caplog.messages
        monkeypatch.setattr(cluster, "NO_ROOM_S", 0.01)
        probe(Work(**work))
        assert not caplog.messages  # no cluster, no nodes
        monkeypatch.setenv("RAY_ADDRESS", "it is only looked at")
        probe(Work(**work))
        assert caplog.messages == [cluster.NO_RESULT % 0.01]
        caplog.clear()
        pipeline.run(Work(**work), [0], actors=(1, 1), on_result=lambda totals: None)
    assert caplog.messages[0] == cluster.NO_RESULT % 0.01


def test_a_model_that_gives_other_logits_than_its_classes_is_refused_before_anything_is_segmented(work):
    source = Path(work["model"]) / "model.json"
    document = json.loads(source.read_text())
    document["classes"].append({"id": 3, "name": "tree", "color": [0, 99, 0]})
    source.write_text(json.dumps(document))
    four = read_description(work["model"])
    with pytest.raises(ModelError, match=r"gives \(1, 3, 32, 32\).*\(N, 4, H, W\)"):
        probe(Work(**{**work, "classes": four.classes, "digest": four.digest}))


def test_a_tile_that_the_program_does_not_take_is_refused(work):
    larger = work["spec"].with_overrides(tile=64)
    with pytest.raises(ModelError, match="give .*another --tile"):
        probe(Work(**{**work, "spec": larger}))


def test_a_model_that_kills_the_process_that_tries_it_is_one_sentence(work):
    with pytest.raises(ModelError, match=r"kills the process that tries it on 1 tile\(s\) of 32 px; give the workers"):
        probe(DeadlyWork(**work))


def test_what_a_shard_cost_is_told(work):
    totals = Totals()
    pipeline.run(Work(**work), [0], actors=(1, 1), on_result=totals.add)
    assert set(totals.seconds) == {"reading", "waiting", "segmenting", "writing"}
    assert min(totals.seconds.values()) > 0
    assert set(totals.peak_bytes) == {"reader", "actor", "writer"}
    assert min(totals.peak_bytes.values()) > 2**25
