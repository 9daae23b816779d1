"""Numbers as people read them: thousands separators, three significant digits, a dash (or a word) for nothing."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

DASH = "\N{EN DASH}"


def is_number(value: Any) -> bool:
    """True for a finite number; None, NaN and infinity are drawn and written as nothing."""
    return isinstance(value, Real) and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """12345 -> '12,345' (integers are exact); 1234.5 -> '1,230'; 0.000012 -> '1.2e-5'; None and NaN -> a dash."""
    if not is_number(value):
        return DASH
    if isinstance(value, Integral):
        return f"{int(value):,}"
    rounded = float(f"{value:.{digits}g}")
    if 1000 <= abs(rounded) < 1e12:
        return f"{rounded:,.0f}"
    mantissa, _, exponent = f"{rounded:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def percent(share: float | None) -> str:
    """0.1234 -> '12.3%', 0.9 -> '90.0%'. What is not quite nothing or not quite all never reads '0%' or '100%'."""
    if not is_number(share):
        return DASH
    if 0 < share < 0.0001:
        return "<0.01%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{100 * share:#.3g}".rstrip(".") + "%" if share else "0%"


def score(value: float | None) -> str:
    """0.12345 -> '0.1235'; None, a score that nothing was counted for, -> 'none'."""
    return "none" if value is None else f"{value:.4f}"


def pixels(count: int | None) -> str:
    """1234567 -> '1.23 Mpx'."""
    if not is_number(count):
        return DASH
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{number(count / factor)} {prefix}px"
    return f"{count} px"


def duration(seconds: float | None) -> str:
    """7980 -> '2 h 13 min'; 75 -> '1 min 15 s'; 4.25 -> '4.25 s'."""
    if not is_number(seconds):
        return DASH
    if seconds < 60:
        return f"{number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def text(value: Any) -> str:
    """A setting as its user wrote it: numbers unrounded, lists and mappings on one line."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(entry)}" for key, entry in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value)) or DASH
    return str(value)
