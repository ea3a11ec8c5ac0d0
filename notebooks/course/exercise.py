"""Exercises: a question's judge, its hint and its hidden solution.

A judge gets the answer and what the notebook has computed, and returns None when the answer is right, else one sentence
about what is wrong with it: the misconception if it is a known one, never the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Judge = Callable[..., "str | None"]


@dataclass(frozen=True)
class Exercise:
    """`solution` is code that gives the answer, run in the notebook before the check; `why` is said when it is
    right.
    """

    name: str
    judge: Judge
    hint: str
    solution: str
    why: str

    def __post_init__(self) -> None:
        for part in ("name", "hint", "solution", "why"):
            if not getattr(self, part).strip():
                raise ValueError(f"exercise {self.name!r} needs a {part}")


EXERCISES: dict[str, Exercise] = {}
"""Every exercise by its name, ``"3.2"`` being the second of notebook 3."""

_PASSED: dict[str, bool] = {}


def add(*exercises: Exercise) -> None:
    """Puts exercises on the list."""
    EXERCISES.update({exercise.name: exercise for exercise in exercises})


def check(name: str, answer: Any, *evidence: Any) -> None:
    """Says whether `answer` to exercise `name` is right, and if not, what is wrong with it."""
    exercise = _find(name)
    _PASSED[name] = False
    if answer is Ellipsis or answer is None:
        print(f"{name}  not answered yet: put your answer in place of the dots and run this cell again.")
        return
    try:
        wrong = exercise.judge(answer, *evidence)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        wrong = f"this kind of answer could not be judged ({type(error).__name__}: {error})."
    if wrong is not None:
        print(f"{name}  not yet: {wrong}\n     A hint: course.hint({name!r})")
        return
    _PASSED[name] = True
    print(f"{name}  right. {exercise.why}")


def passed(name: str) -> bool:
    """Whether the last answer to `name` was right."""
    return _PASSED.get(name, False)


def hint(name: str) -> None:
    """Prints the hint."""
    print(f"{name}  hint: {_find(name).hint}")


def solution(name: str) -> None:
    """Prints the solution, as code."""
    exercise = _find(name)
    print(f"{name}  one solution:\n\n{exercise.solution.strip()}\n\nWhy: {exercise.why}")


def _find(name: str) -> Exercise:
    if name not in EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
    return EXERCISES[name]


# ---- what judges share
# -------------------------------------------------------------------------------------------------


def close(answer: Any, truth: Any, tolerance: float = 0.01) -> bool:
    """Whether two numbers agree within `tolerance` of the larger."""
    a, b = float(answer), float(truth)
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def same(answer: Any, truth: Iterable[str] | str) -> bool:
    """Whether two words, or two collections of words, are the same, whatever their case and order."""
    if isinstance(truth, str):
        return str(answer).strip().lower() == truth.lower()
    return {str(a).strip().lower() for a in answer} == {t.lower() for t in truth}
