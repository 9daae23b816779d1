"""Learning rate and decay of the weight average, as pure functions of the step: there is no state to resume."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.05  # share of all steps
ONE_CYCLE_WARM_UP = 0.3  # of torch's OneCycleLR, as is the ratio of the first rate to the peak
ONE_CYCLE_START = 1 / 25
POLY_POWER = 0.9  # of DeepLab (Chen et al. 2017) and of torchvision's reference training


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


# Share of the peak after the warm-up, by progress from 0 to 1. cosine: Loshchilov & Hutter 2017, eq. 5, without
# restarts. one_cycle: Smith & Topin 2018, after a warm-up over 0.3 of the run that is itself half a cosine.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _half_cosine,
    "poly": lambda progress: (1 - progress) ** POLY_POWER,
    "one_cycle": _half_cosine,
    "constant": lambda progress: 1.0,
}


def default_warm_up(schedule: str) -> float:
    """The default share of all steps in which the rate of a schedule rises."""
    return ONE_CYCLE_WARM_UP if schedule == "one_cycle" else WARM_UP


def learning_rate(step: int, *, steps: int, peak: float, schedule: str, warm_up: float) -> float:
    """The rate of a step (0-based) out of `steps`: it rises to its peak, then follows one of SCHEDULES.

    warm_up: share of the steps that the rise takes; 0 begins at the peak.
    """
    warm = max(1, round(warm_up * steps))
    if step >= warm:
        return peak * SCHEDULES[schedule]((step - warm + 1) / (steps - warm + 1))
    risen = (step + 1) / warm
    if schedule == "one_cycle":
        risen = ONE_CYCLE_START + (1 - ONE_CYCLE_START) * (1 - _half_cosine(risen))
    return peak * risen


def average_decay(step: int, decay: float) -> float:
    """The decay of the weight average at a step (0-based): (1 + t) / (10 + t) until that reaches `decay`.

    Early on, the average thus covers about the last tenth of the steps so far, and a short run is not held at its
    random start: the rule of TensorFlow's ExponentialMovingAverage for num_updates.
    """
    return min(decay, (1 + step) / (10 + step))
