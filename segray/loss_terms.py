"""What --loss and --class_weights mean: the terms of a sum of losses, a weight for every class. Without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

PIXEL_LOSSES = ("cross_entropy", "focal", "ohem")  # one value per pixel, multiplied by the weight of its class
IMAGE_LOSSES = ("dice", "lovasz")  # one value per image, in which all classes of its truth count the same
LOSS_NAMES = (*PIXEL_LOSSES, *IMAGE_LOSSES)
TERM = re.compile(r"(?:(?P<factor>\d+\.?\d*(?:e-?\d+)?|\.\d+)\*)?(?P<name>[a-z_]+)")

# Weight of a class by its share of the labelled pixels, before weights are scaled to a mean of 1.
CLASS_WEIGHTS: dict[str, Callable[[float], float]] = {
    "inverse_log": lambda share: 1 / math.log(1.02 + share),  # ENet, Paszke et al. 2016: 50 to 1.4
    "inverse_sqrt": lambda share: share**-0.5,  # Mahajan et al. 2018, who sample with such weights
}


def parse_loss(text: str) -> tuple[tuple[float, str], ...]:
    """`cross_entropy+0.5*lovasz` -> ((1.0, "cross_entropy"), (0.5, "lovasz")).

    ValueError, with the known names, unless it is a sum of them, each at most once and times a positive number.
    """
    matches = [TERM.fullmatch(term.strip()) for term in text.split("+")]
    terms = tuple((float(match["factor"] or 1), match["name"]) for match in matches if match)
    names = [name for _, name in terms]
    if len(terms) < len(matches) or set(names) - set(LOSS_NAMES) or len(set(names)) < len(names):
        raise ValueError(
            f"--loss is one of {', '.join(LOSS_NAMES)}, or a sum such as cross_entropy+0.5*lovasz, not {text!r}"
        )
    if not all(0 < factor < math.inf for factor, _ in terms):
        raise ValueError(f"the factors of --loss must be positive, but it is {text!r}")
    return terms


def check_loss(text: str, weighting: str) -> None:
    """ValueError when --loss is not valid, or --class_weights would have no effect on it."""
    names = {name for _, name in parse_loss(text)}
    if weighting != "none" and not names & set(PIXEL_LOSSES):
        raise ValueError(
            f"--class_weights {weighting} has no effect on --loss {text}, in which classes count the same; leave it "
            f"out, or add one of {', '.join(PIXEL_LOSSES)}"
        )


def class_weights(name: str, pixels: Sequence[int]) -> tuple[float, ...] | None:
    """A weight for each class from its count of labelled pixels; None for "none".

    Scaled so that the mean weight of a labelled pixel is 1: a mean over pixels needs no other normaliser, and learning
    rates keep their meaning. A class without pixels weighs as much as the rarest class with pixels.
    """
    if name == "none":
        return None
    shares = [count / sum(pixels) for count in pixels]
    rarest = min(share for share in shares if share)
    weights = [CLASS_WEIGHTS[name](share or rarest) for share in shares]
    mean = sum(share * weight for share, weight in zip(shares, weights))
    return tuple(weight / mean for weight in weights)
