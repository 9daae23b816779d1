"""The benchmark job: the cost of segmentation, as ratios within one run, since machines differ and drift."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from segray.feeding import loading_table
from segray.scaling import growth_table, lattice_table, memory_table
from segray.settings import BenchmarkSettings
from segray.simulation import cluster_table, planning_table
from segray.storage import publish
from segray.throughput import stages_table
from segray.uris import join
from segray.versions import versions

# Each returns {"rows": dicts with the same keys, "notes": sentences}, which are printed, and more for benchmark.json.
WHAT: dict[str, Callable[[BenchmarkSettings], dict]] = {
    "stages": stages_table,
    "memory": memory_table,
    "growth": growth_table,
    "lattice": lattice_table,
    "loading": loading_table,
    "cluster": cluster_table,
    "planning": planning_table,
}


def benchmark(settings: BenchmarkSettings) -> dict:
    """Measure what --what names, write benchmark.json and return its content. SegrayError on bad input."""
    tables = {name: WHAT[name](settings) for name in settings.measurements}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"date": now, "machine": machine(), "settings": asdict(settings), "tables": tables}
    publish(join(settings.output, "benchmark.json"), json.dumps(report, indent=1).encode())
    return report


def machine() -> dict:
    """The cores, GPUs and library versions of this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"cores": os.cpu_count(), "cpu": _cpu_model(), "gpus": gpus, "versions": versions()}


def lines(report: dict) -> list[str]:
    """A report as lines of text: the rows of each table, aligned, and its notes."""
    made_of = report["machine"]
    parts = [f"{made_of['cores']} cores of {made_of['cpu']}", *made_of["gpus"], report["date"]]
    found = [", ".join(parts)]
    for name, table in report["tables"].items():
        found += ["", name, *aligned(table["rows"]), *table["notes"]]
    return found


def aligned(rows: list[dict]) -> list[str]:
    """Rows with the same keys as lines of aligned columns, with the keys on top."""
    if not rows:
        return []
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells)]
    numeric = [isinstance(value, int | float | None) for value in rows[0].values()]
    columns = list(zip(widths, numeric))
    return [
        "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, (width, right) in zip(line, columns))
        for line in cells
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _cpu_model() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())
