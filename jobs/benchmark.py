"""Measure segmentation on this machine: each stage alone, the whole job, and the ratio of the two.

    python jobs/benchmark.py
    python jobs/benchmark.py --peer
    python jobs/benchmark.py --what memory,growth
    python jobs/benchmark.py --what lattice --model OUT/model --data LABELLED
    python jobs/benchmark.py --what loading --data LABELLED
    python jobs/benchmark.py --what cluster,planning

Imagery and model are made up unless --archive and --model are given. Submitted to a Ray cluster, the job measures
that cluster; the stages need a cluster of one machine:
    ray job submit --working-dir . -- python jobs/benchmark.py --output /tmp/segray-benchmark

Exit status: 0 done; 1 failed; 2 bad usage or input.
"""

from __future__ import annotations

import sys

from segray.command_line import DONE, run_job
from segray.settings import BenchmarkSettings


def main(settings: BenchmarkSettings) -> int:
    """Measure, and print the tables."""
    from segray.benchmark import benchmark, lines  # takes seconds, for which --help and errors in flags need not wait

    report = benchmark(settings)
    for line in lines(report):
        print(line)
    print(f"benchmark.json is in {settings.output}")
    return DONE


if __name__ == "__main__":
    sys.exit(run_job(main, BenchmarkSettings))
