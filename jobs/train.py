r"""Train a segmentation network on labelled imagery.

On this machine:
    python jobs/train.py --data LABELLED --output OUT

On a Ray cluster (with the RAY_AUTH_MODE that it was started with):
    ray job submit --working-dir . -- python jobs/train.py \
        --data s3://bucket/LABELLED --output s3://bucket/OUT --network unet --epochs 100

The same command again continues where it was interrupted. The model is in OUT/model.

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
