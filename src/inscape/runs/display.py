"""Numbers as a reader wants them: three to four significant digits, columns that line up, nothing rounded to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
_THIN = "\N{NARROW NO-BREAK SPACE}"


def format_number(value: Any) -> str:
    """One number on its own: 0.906, 1 234 567, 1902, −12.4, 3.1 × 10⁻⁷; a missing one is a dash."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _float(value, _decimals(abs(value)))
    return str(value)


def format_interval(lo: Any, hi: Any) -> str:
    """`[0.871, 0.932]`, both with the same number of decimals; empty where either bound is missing."""
    if lo is None or hi is None:
        return ""
    decimals = _decimals(max(abs(lo), abs(hi)))
    return f"[{_float(float(lo), decimals)}, {_float(float(hi), decimals)}]"


def format_column(values: Sequence[Any]) -> list[str]:
    """A column of numbers with the same number of decimals, as many as its largest needs for four digits."""
    floats = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    if not floats:
        return [format_number(value) for value in values]
    largest = max(map(abs, floats))
    decimals = 0 if all(value.is_integer() for value in floats) else max(_decimals(largest), 1 if largest < 1e4 else 0)
    return [_float(value, decimals) if isinstance(value, float) else format_number(value) for value in values]


def _decimals(size: float) -> int:
    """Decimals that leave a number of this size with about four significant digits, at most three."""
    if size == 0 or not math.isfinite(size):
        return 0
    return min(3, max(0, 3 - math.floor(math.log10(size))))


def _float(value: float, decimals: int) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}".replace("-", MINUS)
    # A small number in a column of large ones keeps two digits of its own: 0.000 would read as nothing.
    if size and size < 10**-decimals * 10:
        decimals = max(decimals, 1 - math.floor(math.log10(size)))
    whole, dot, rest = f"{size:.{decimals}f}".partition(".")
    sign = MINUS if value < 0 and float(f"{size:.{decimals}f}") else ""
    return sign + _grouped(whole) + dot + rest


def _integer(value: int) -> str:
    return (MINUS if value < 0 else "") + _grouped(str(abs(value)))


def _grouped(digits: str) -> str:
    # Four digits stay together: they are often years.
    if len(digits) <= 4:
        return digits
    return f"{int(digits):,}".replace(",", _THIN)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
