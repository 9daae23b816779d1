r"""Export the masks of a segmentation as files that GIS programs open.

On this machine:
    python jobs/export.py --masks MASKS --output FILES --format cog

On a Ray cluster (with the RAY_AUTH_MODE that it was started with):
    ray job submit --working-dir . -- python jobs/export.py \
        --masks s3://bucket/MASKS --output s3://bucket/FILES --format cog,polygons

The same command again continues. Exit status: 0 done; 1 failed; 2 bad usage or input; 3 done, but more than
--max_failed of the scenes, or a file of all of them, could not be exported.
"""

import sys

from segray.command_line import DONE, TOO_MANY_FAILED, run_job
from segray.exporting import export
from segray.settings import ExportSettings


def main(settings: ExportSettings) -> int:
    """Run the job and say how it went."""
    summary = export(settings)
    totals = summary["totals"]
    print(
        f"{summary['scenes']} scene(s), {summary['skipped']} of them done before, {summary['failed']} failed; "
        f"{totals.get('files', 0)} files, {totals.get('bytes', 0) / 1e6:,.1f} MB in {summary['seconds']:.1f} s"
    )
    print(f"files, summary.json and collection.json (STAC) are in {settings.output}")
    for lost in summary["lost"]:
        print(f"{lost['file']} was not written: {lost['error']}", file=sys.stderr)
    too_many = summary["failed_share"] > settings.max_failed
    if too_many:
        first = summary["failures"][0]
        print(f"{summary['failed_share']:.1%} of the scenes failed; the first: {first['error']}", file=sys.stderr)
    return TOO_MANY_FAILED if too_many or summary["lost"] else DONE


if __name__ == "__main__":
    sys.exit(run_job(main, ExportSettings))
