"""Budgets in every way people write them, and what is none; pieces that fit."""

from __future__ import annotations

from typing import Any

import pytest

from mechwork.errors import InputError
from mechwork.execute.memory import cut, items_that_fit, parse_budget, require_room
from mechwork.execute.progress import Clock, say_time


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [(1000, 1000), (2e9, 2 * 10**9), ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5gib", 3 * 2**29), ("300", 300),
    (" 7 kB ", 7000)],
)  # fmt: skip
def test_budgets(size: Any, n_bytes: int) -> None:
    assert parse_budget(size) == n_bytes


@pytest.mark.parametrize(
    "size",
    [0, -1, float("nan"), float("inf"), "", "lots", "nan GB", "-2GB", "2 GBs", "1..5GB", "0 MB", 0.3, True, None, [1]],
    ids=repr,
)
def test_what_is_no_budget(size: Any) -> None:
    parse = getattr(parse_budget, "__wrapped__", parse_budget)  # without the test suite's own check of types
    with pytest.raises(InputError, match="memory_budget is a positive number of bytes"):
        parse(size)


def test_pieces() -> None:
    assert items_that_fit(100, 30, 10) == 3
    assert items_that_fit(10, 30, 10) == 1
    assert items_that_fit(10**9, 30, 10) == 10
    assert cut(7, 3) == (slice(0, 3), slice(3, 6), slice(6, 7))
    with pytest.raises(InputError, match=r"one pair, 1,000 bytes here; got 999\. Give more\."):
        require_room(999, 1000, "one pair", "Give more.")
    require_room(1000, 1000, "one pair", "Give more.")


def test_time_left() -> None:
    times = iter([100.0, 110.0, 130.0, 140.0])
    clock = Clock(lambda: next(times))
    assert clock.left(50, 100) is None  # kept from an earlier run
    assert clock.left(60, 100) == pytest.approx(40)
    assert clock.left(80, 100) == pytest.approx(20)
    assert clock.left(100, 100) == 0.0
    assert [say_time(s) for s in (8, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 5 min"]
