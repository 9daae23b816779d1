"""Train a segmentation network on labelled imagery.

On a laptop, with nothing but the package (Ray starts by itself):
    python jobs/train.py --data ./labelled --output ./trained
On a Ray cluster, from the root of this repository:
    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/train.py --data s3://bucket/labelled --output s3://bucket/trained --network unet --epochs 100

The same command again continues where it was interrupted. All settings: python jobs/train.py --help
Exit status: 0 done; 1 failed; 2 bad usage or input.
"""

from __future__ import annotations

import sys

from segray.command_line import DONE, run_job
from segray.settings import TrainSettings


def main(settings: TrainSettings) -> int:
    """Train and say where the model is."""
    from segray.training import train  # takes seconds, for which --help and errors in flags need not wait

    result = train(settings)
    if result["val_miou"] is None:
        print("validation: no labelled pixel, so the model is that of the last epoch")
    else:
        print(f"best validation mIoU: {result['val_miou']:.1%}, of epoch {result['best_epoch']}")
    print(f"model: {result['model']}")
    print(f"report: {settings.output}/report.html")
    return DONE


if __name__ == "__main__":
    sys.exit(run_job(main, TrainSettings))
