r"""Segment an archive of imagery into mask shards.

On this machine:
    python jobs/segment.py --model OUT/model --archive IMAGES --output MASKS

On a Ray cluster (with the RAY_AUTH_MODE that it was started with):
    ray job submit --working-dir . -- python jobs/segment.py \
        --model s3://bucket/OUT/model --archive s3://bucket/IMAGES --output s3://bucket/MASKS

The same command again continues. Exit status: 0 done; 1 failed; 2 bad usage or input; 3 done, but more than
--max_failed of the images could not be read.
"""

import sys

from segray.command_line import DONE, TOO_MANY_FAILED, run_job
from segray.report import stage_shares
from segray.report.wording import number
from segray.segmentation import segment
from segray.settings import SegmentSettings


def main(settings: SegmentSettings) -> int:
    """Run the job and say how it went."""
    summary = segment(settings)
    images, pixels = summary["images"], summary["pixels"]
    print(
        f"{images['ok']} images segmented, {images['nodata']} without data, {images['failed']} failed; "
        f"{pixels['total'] / 1e6:.1f} Mpx in {summary['windows']} masks"
    )
    rates = {
        "Mpx/s": summary["mpx_per_s"],
        "km2/h": summary["km2_per_h"],
        "GPU-hours": summary["gpu_hours"],
        "GPU-hours per 1,000 km2": summary["gpu_hours_per_1000_km2"],
    }
    if any(rates.values()):
        print(", ".join(f"{number(value)} {unit}" for unit, value in rates.items() if value))
    if shares := stage_shares(summary.get("stage_seconds", {})):
        print(f"time of the workers: {shares}")
    print(f"masks, summary.json and report.html are in {settings.output}")
    if summary["failed_share"] > settings.max_failed:
        first = summary["failures"][0]
        print(f"{summary['failed_share']:.1%} of the images failed; the first: {first['error']}", file=sys.stderr)
        return TOO_MANY_FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(run_job(main, SegmentSettings))
