"""How near a job comes to its ideal: the ideal from the stages, and what a measured job must not do."""

from __future__ import annotations

import pytest

from segray.errors import SegrayError
from segray.made_up import make_tiles
from segray.settings import SegmentSettings
from segray.stages import Cost
from segray.storage import publish
from segray.throughput import SPANS, ideal, run_job


def cost(seconds: float, cpu_seconds: float) -> Cost:
    """The cost of ten megapixels."""
    return Cost(amount=10, seconds=seconds, cpu_seconds=cpu_seconds)


COSTS = {
    "listing": cost(100, 100),
    "reading": cost(100, 100),
    "decoding": cost(1, 2),
    "network": cost(5, 4),
    "writing": cost(2, 2),
}


@pytest.mark.parametrize(
    ("cores", "gpus", "rate", "limit"),
    [(1, 0, 10 / 8, "network"), (2, 0, 20 / 8, "network"), (2, 1, 2, "network"), (2, 4, 5, "writing")],
)
def test_ideal(cores, gpus, rate, limit):
    assert ideal(COSTS, cores=cores, gpus=gpus) == (pytest.approx(rate), limit)


def test_what_of_a_job_is_counted():
    summary = {"seconds": 5.0, "start_up_seconds": 2.0, "call_seconds": 9.0}
    assert [seconds(summary) for seconds in SPANS.values()] == [3.0, 5.0, 9.0]


@pytest.mark.usefixtures("local_ray")
def test_a_job_starts_afresh_and_images_must_not_fail(small_model, tmp_path):
    archive, output = make_tiles(str(tmp_path / "tiles"), 3), tmp_path / "out"
    job = SegmentSettings(model=small_model, archive=archive, output=str(output), actors="1", tile=256)
    publish(f"{output}/masks/shard-00000000.parquet", b"of an earlier run")
    summary = run_job(job)
    assert summary["shards"]["this_run"] == summary["shards"]["total"] == 1
    assert summary["call_seconds"] > summary["seconds"] >= summary["start_up_seconds"]
    publish(f"{archive}/bad.jpg", b"no picture")
    with pytest.raises(SegrayError, match="25.0% of the images failed"):
        run_job(job)
