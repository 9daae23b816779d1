"""How a dataclass field becomes a flag of a job, and checks that many flags share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any


def option(help: str, default: Any = MISSING, choices: Sequence[str] = ()) -> Any:
    """A dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


def positive(settings: object, *names: str) -> None:
    """ValueError unless those settings are None or positive and finite."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be positive, not {value}")


def parse_range(text: str | None) -> tuple[int, int] | None:
    """The two numbers of MIN[:MAX], checked by `check_range`; None if not given."""
    low, _, high = (text or "").partition(":")
    return (int(low), int(high or low)) if low else None


def check_range(name: str, text: str | None) -> None:
    """ValueError unless a setting is None or MIN[:MAX]."""
    if text is not None and not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", text):
        raise ValueError(f"--{name} is MIN or MIN:MAX, as in 2 or 1:8, not {text}")
    low, high = parse_range(text) or (1, 1)
    if low > high:
        raise ValueError(f"--{name} {text} has a MIN above its MAX")
