"""Exercises: a question's judge, its hint and its hidden solution.

A judge gets the answer and what the notebook has computed, and returns None when the answer is right, else one sentence
about what is wrong with it: the misconception if it is a known one, never the answer.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechwork.harmless import cell

Judge = Callable[..., "str | None"]


@dataclass(frozen=True)
class Exercise:
    """`solution` is code that gives the answer, run in the notebook before the check; `why` is said when it is
    right; `asks` is the kind of answer, said when another kind is given.
    """

    name: str
    judge: Judge
    hint: str
    solution: str
    why: str
    asks: str = "a number"

    def __post_init__(self) -> None:
        for part in ("name", "hint", "solution", "why"):
            if not getattr(self, part).strip():
                raise ValueError(f"exercise {self.name!r} needs a {part}")


EXERCISES: dict[str, Exercise] = {}
"""Every exercise by its name, ``"3.2"`` being the second of notebook 3."""

_PASSED: dict[str, bool] = {}


@dataclass
class Record:
    """What a student did with one exercise since the kernel started.

    `passed`: some answer was right. `attempts`: answers judged up to and with the first right one.
    """

    exercise: str
    passed: bool = False
    attempts: int = 0
    hint_read: bool = False
    solution_read_before: bool = False


_RECORDS: dict[str, Record] = {}


def _record(name: str) -> Record:
    return _RECORDS.setdefault(name, Record(name))


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
    record = _record(name)
    record.attempts += not record.passed
    try:
        wrong = NOT_A_NUMBER if _is_nan(answer) else exercise.judge(answer, *evidence)
    except Exception:  # noqa: BLE001 whatever a judge cannot read is to be explained
        wrong = f"{_what(answer)} was given; {exercise.asks} is asked for."
    if wrong is not None:
        print(f"{name}  not yet: {wrong}\n     A hint: course.hint({name!r})")
        return
    _PASSED[name] = record.passed = True
    print(f"{name}  right. {exercise.why}")


NOT_A_NUMBER = "this is NaN, not a number: look for a division by zero, or the mean of nothing."


def _is_nan(answer: Any) -> bool:
    """Whether it is one number, and none: NaN."""
    try:
        return math.isnan(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def _what(answer: Any) -> str:
    """An answer of the wrong kind, in words."""
    if isinstance(answer, str):
        return f"the text {answer!r}"
    if (shape := getattr(answer, "shape", None)) is not None:
        return f"a {type(answer).__name__} of shape {tuple(shape)}"
    if isinstance(answer, (list, tuple, set, dict)):
        return f"a {type(answer).__name__} of {len(answer)}"
    if callable(answer):
        return f"the function {getattr(answer, '__name__', '')} itself, not what it gives,"
    return f"{answer!r}" if isinstance(answer, (int, float)) else f"a whole {type(answer).__name__}"


def predict(lesson: str, prediction: Any) -> None:
    """Takes down what a student expects before a number is shown. Nothing is judged, and it is in no grade."""
    if prediction is Ellipsis or prediction is None or not str(prediction).strip():
        print(f"Prediction {lesson}  not written down yet: put a sentence in quotes in place of the dots, then go on.")
        return
    print(
        f"Prediction {lesson}  written down: {prediction}\nNow run the next cell and compare; nothing is judged here."
    )


def passed(name: str) -> bool:
    """Whether the last answer to `name` was right."""
    return _PASSED.get(name, False)


def hint(name: str) -> None:
    """Prints the hint."""
    print(f"{name}  hint: {_find(name).hint}")
    _record(name).hint_read = True


def solution(name: str) -> None:
    """Prints the solution, as code."""
    exercise = _find(name)
    record = _record(name)
    record.solution_read_before |= not record.passed
    print(f"{name}  one solution:\n\n{exercise.solution.strip()}\n\nWhy: {exercise.why}")


def export(path: str | Path, student: str = "") -> Path:
    """Writes the grades of this kernel, one row for each exercise of every lesson that was worked on.

    A ``.csv`` or a ``.json`` file, by the ending of `path`; the columns are `student` and the fields of `Record`. An
    exercise that was never answered has 0 attempts. Each notebook has its own kernel, so each writes its own file; the
    rows of several files may be put under one another.
    """
    path = Path(path)
    if path.suffix not in {".csv", ".json"}:
        raise ValueError(f"grades are written as .csv or .json; {path.name!r} ends otherwise: choose one of the two.")
    lessons = {name.partition(".")[0] for name in _RECORDS}
    names = [name for name in EXERCISES if name.partition(".")[0] in lessons]
    rows = [{"student": student} | asdict(_RECORDS.get(name, Record(name))) for name in names]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["student", *asdict(Record(""))])
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return path


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
