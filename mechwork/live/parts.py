"""What every change has: its lines in Python, and how large a number it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError

FACTOR = 100.0
"""Largest factor and strength."""


@dataclass(frozen=True)
class PrintedCode:
    """A change in Python: lines before, and the context in which the model runs with it."""

    imports: tuple[str, ...]
    lines: tuple[str, ...]
    context: str


def check_number(what: str, value: float) -> None:
    """Raises `InputError` for what is no finite number of at most `FACTOR`."""
    if isinstance(value, bool) or not math.isfinite(value) or abs(value) > FACTOR:
        raise InputError(f"{what} is a number from -{FACTOR:g} to {FACTOR:g}; got {value!r}")
