"""Exercises of notebook 4, Attribution patching and where it lies."""

from __future__ import annotations

import math
from typing import Any

from .exercise import Exercise, add, close, same


def _metric(x: float) -> float:
    return 1 / (1 + math.exp(-12 * (x - 0.5)))


def _slope(x: float) -> float:
    return 12 * _metric(x) * (1 - _metric(x))


def _estimate(answer: Any) -> str | None:
    if close(answer, _slope(0), 0.02):
        return None
    if close(answer, _metric(1) - _metric(0), 0.02):
        return "this is the true effect. The straight line does not know it."
    if close(answer, _slope(0.5), 0.02):
        return "this is the slope in the middle. Attribution patching takes it at the corrupt run."
    if close(answer, _metric(0), 0.02):
        return "this is the metric at the start, not what the line adds on its way."
    return "the line's effect is its slope at 0, times the way from 0 to 1."


def _steps(answer: Any) -> str | None:
    effect = _metric(1) - _metric(0)

    def off(n: int) -> float:
        return abs(sum(_slope((k + 0.5) / n) for k in range(n)) / n / effect - 1)

    truth = next(n for n in range(1, 50) if all(off(m) <= 0.05 for m in range(n, 50)))
    if int(answer) == truth:
        return None
    if int(answer) < truth:
        larger = next(m for m in range(int(answer), truth) if off(m) > 0.05)
        return f"with {larger} steps the estimate is off by {off(larger):.0%}."
    return "a smaller number is enough."


def _usable(answer: Any, plain: Any, exact: Any) -> str | None:
    rows = plain.agreement(exact)
    good = [kind for kind, row in rows.items() if row.pearson > 0.9]
    if same([answer] if isinstance(answer, str) else answer, good):
        return None
    if answer in rows:
        return f"there the correlation is {rows[answer].pearson:+.2f}."
    return f"the kinds are {', '.join(rows)}."


def _passes(answer: Any) -> str | None:
    n = int(answer)
    if n == 12:
        return None
    return {
        5: "these are the backward passes alone.",
        10: "the two runs that are recorded first, clean and corrupt, are missing.",
        3: "this is one step.",
        15: "the two runs are recorded once, not once per step.",
    }.get(n, "two forward passes first, then one forward and one backward pass per step.")


add(
    Exercise(
        "4.1",
        _estimate,
        hint="slope(0) times the distance.",
        solution="estimate = slope(0) * (1 - 0)",
        why="About 0.03, where the truth is nearly 1: the line starts on the flat part and never learns of the step.",
    ),
    Exercise(
        "4.2",
        _steps,
        hint="Read the printed table, or compare integrated(n) with true_effect for every n.",
        solution=(
            "n_steps = next(n for n in range(1, 50) "
            "if all(abs(integrated(m) / true_effect - 1) <= 0.05 for m in range(n, 50)))"
        ),
        why="A handful of points is enough for one step this steep; a steeper one would need more.",
    ),
    Exercise(
        "4.3",
        _usable,
        hint="Read the column Pearson.",
        solution='usable = "mlp_out"',
        why="One site kind being fine says nothing about the next: agreement has to be looked at where you use it.",
    ),
    Exercise(
        "4.4",
        _passes,
        hint="2 + 5 forward, 5 backward.",
        solution="passes = 2 + 5 + 5",
        why="Four times the passes of the plain estimate; still far fewer than one run per cell.",
    ),
)
