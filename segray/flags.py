"""What makes a dataclass field a flag of a job, and a check that many share."""

from __future__ import annotations

import math
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
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name} must be positive, not {value}")
