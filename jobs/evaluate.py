r"""Evaluate a model on labelled images, by the same code path as segmentation.

On this machine:
    python jobs/evaluate.py --model OUT/model --data LABELLED --split val --output SCORES

On a Ray cluster (with the RAY_AUTH_MODE that it was started with):
    ray job submit --working-dir . -- python jobs/evaluate.py \
        --model s3://bucket/OUT/model --data s3://bucket/LABELLED --split val --output s3://bucket/SCORES

With --calibrate the temperature that fits the split is written into the model; keep another split to test on.

Exit status: 0 done; 1 failed; 2 bad usage or input.
"""

import sys

from segray.command_line import DONE, run_job
from segray.evaluation import evaluate
from segray.report.wording import score
from segray.settings import EvaluateSettings

CALIBRATED = (
    "temperature {temperature_before:.4g} -> {temperature:.4g} in {model}: NLL {nll_before:.4f} -> {nll_after:.4f}, "
    "ECE {ece_before:.4f} -> {ece_after:.4f}; earlier masks now count as another model's"
)


def main(settings: EvaluateSettings) -> int:
    """Run the job and print the scores."""
    metrics = evaluate(settings)
    width = max(len(name) for name in metrics["classes"])
    for name, iou in zip(metrics["classes"], metrics["iou"]):
        print(f"{name:<{width}}  " + ("absent" if iou is None else f"{iou:.4f}"))
    if metrics["miou"] is None:
        print(f"no labelled pixel in the {metrics['images']} images of {metrics['split']}, so there is no score")
    else:
        print(
            f"mIoU {metrics['miou']:.4f} over {metrics['classes_in_mean']} classes, pixel accuracy "
            f"{metrics['pixel_accuracy']:.4f}, {metrics['images']} images of {metrics['split']}"
        )
        print(f"boundary mIoU {score(metrics['boundary_miou'])}, ECE {score(metrics['ece'])}")
    if "calibration" in metrics:
        print(CALIBRATED.format(model=settings.model, **metrics["calibration"]))
    print(f"metrics.json, images.parquet and report.html are in {settings.output}")
    return DONE


if __name__ == "__main__":
    sys.exit(run_job(main, EvaluateSettings))
