"""Memory budgets: one way to say how much, one cut of work into blocks that fit, one refusal when nothing does.

    block = items_that_fit(parse_budget("2GB"), per_item, n_items)

What an item takes is counted where the science knows it (`patching.memory`, `circuits.graph.budget`); the counts are
bytes beside the weights. Blocks depend on sizes alone: never on who runs them, on how many there are or on what memory
is free.
"""

from __future__ import annotations

import math
import re

from ..errors import InputError

MemoryBudget = int | float | str
"""Bytes (``2_000_000_000`` or ``2e9``), or text: ``"2GB"``, ``"500 MB"``, ``"1.5GiB"``."""

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_TEXT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]i?B|B)?\s*", re.IGNORECASE)


def parse_budget(size: MemoryBudget, name: str = "memory_budget") -> int:
    """Bytes of a budget; raises `InputError` for what is no positive number of bytes (NaN, negative, ``"lots"``).

    >>> parse_budget("500 MB")
    500000000
    """
    n = _bytes(size)
    if n is None or n < 1:
        raise InputError(f"{name} is a positive number of bytes, or text such as '2GB' or '500 MB'; got {size!r}")
    return n


def _bytes(size: object) -> int | None:
    if isinstance(size, str):
        found = _TEXT.fullmatch(size)
        return None if found is None else int(float(found[1]) * _UNITS[(found[2] or "B").upper()])
    if isinstance(size, bool) or not isinstance(size, int | float) or not math.isfinite(size):
        return None
    return int(size)


def items_that_fit(budget: float, per_item: float, n_items: int) -> int:
    """How many of `n_items` fit `budget` bytes at a time: at least one, at most all."""
    return max(1, min(n_items, int(budget // per_item)))


def cut(n_items: int, size: int) -> tuple[slice, ...]:
    """Consecutive pieces of at most `size` items."""
    if size < 1:
        raise InputError(f"a piece of work holds at least one item; got {size}")
    return tuple(slice(first, min(first + size, n_items)) for first in range(0, n_items, size))


def require_room(budget: int, least: int, holds: str, remedy: str, name: str = "memory_budget") -> None:
    """Raises `InputError` when `budget` is below `least` bytes, which is what `holds` takes."""
    if budget < least:
        raise InputError(f"{name} must hold {holds}, {least:,} bytes here; got {budget:,}. {remedy}")
