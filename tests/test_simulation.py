"""Simulated clusters of a few GPUs: every shard once through the real pipeline, and the shape of the tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ray.data import ActorPoolStrategy

from segray import pipeline, simulation
from segray.settings import BenchmarkSettings
from segray.work import Work


@pytest.fixture
def tiny(monkeypatch):
    """Smaller tables: a cluster of four GPUs on two processes, and listings of a few pictures."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(simulation, "GPUS", (4,))
    monkeypatch.setattr(simulation, "simulate", _on_a_small_machine)
    monkeypatch.setattr(simulation, "SECONDS_A_SHARD", (0.01,))
    monkeypatch.setattr(simulation, "IMAGES", (50, 3000))


def test_every_shard_of_simulated_gpus_is_done_once(tiny):
    table = simulation.cluster_table(BenchmarkSettings())
    (row,) = table["rows"]
    assert (row["gpus"], row["processes"]) == (4, 2)  # each process stands in for two
    assert row["shards"] == 4 * simulation.SHARDS_A_GPU
    assert 0 < row["ratio"] <= 1.1
    assert row["shards_per_s"] * 0.01 / 4 == pytest.approx(row["ratio"])
    assert 0 < row["driver_cpu_ms"] < row["control_cpu_ms"]
    assert row["worker_cpu_ms"] > 0
    assert "shards a second" in table["notes"][0]


def _on_a_small_machine(**arguments: float) -> dict:
    """`simulate` with smaller constants, for a process of its own, which monkeypatch does not reach."""
    simulation.MOST_PROCESSES, simulation.STAGE_CORES = 2, 4
    return simulation.simulate(**arguments)


class Rows:
    """A stand-in for the pipeline's rows, which notes the pool of actors."""

    pool = None

    def map_batches(self, actor: object, *, compute: ActorPoolStrategy | None = None, **options: object) -> Rows:
        """Note the pool."""
        self.pool = self.pool or compute
        return self

    def iter_rows(self) -> ActorPoolStrategy:
        """The pool."""
        return self.pool


def test_every_device_of_a_process_works_on_a_shard_at_a_time():
    work = simulation._work("", seconds=1.0, threads=3)
    assert pipeline._chain(work, Rows(), (1, 2)) == ActorPoolStrategy(
        min_size=1,
        max_size=2,
        max_tasks_in_flight_per_actor=3 * 6,
        max_concurrent_calls_per_actor=3,
        enable_true_multi_threading=True,
    )
    on_cpus = replace(work, on_gpu=False)
    together = "max_concurrent_calls_per_actor"
    assert Work.pool_options(work, staged=True)[together] == 4
    hyperspectral = replace(work, spec=replace(work.spec, bands=tuple(range(200)), mean=(0.5,) * 200, std=(0.2,) * 200))
    assert Work.pool_options(hyperspectral, staged=True)[together] == 2
    assert Work.pool_options(on_cpus, staged=True) == {"max_tasks_in_flight_per_actor": 3}
    assert Work.pool_options(on_cpus, staged=False) == {"max_tasks_in_flight_per_actor": 2}


def test_listings_are_planned_whole(tiny):
    rows = simulation.planning_table(BenchmarkSettings(shard_mpx=32.0))["rows"]
    assert [row["images"] for row in rows] == [50, 3000]
    pixels = 4 * sum(file.size for file in simulation.made_up_listing(3000))
    assert rows[1]["shards"] == pytest.approx(pixels / 32e6, rel=0.05)  # shards are closed before they exceed it
    assert rows[0]["plan_mb"] < rows[1]["plan_mb"]
    assert all(row["cpu_s"] > 0 and row["driver_mb"] > 1 for row in rows)
