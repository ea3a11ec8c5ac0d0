"""The judge of students' functions: each kind of bad function gets its own message and leaves the model as it was."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from notebooks.course import EXERCISES, build, exercise
from notebooks.course.build import Case, judge_function
from notebooks.course.exercise import Exercise

TRUTH = torch.tensor([1.0, 2.0])


@pytest.fixture(scope="module")
def model() -> Any:
    return mw.load_model("attn-only-2l")


def _changes_weights(model: Any) -> torch.Tensor:
    next(model.original_model.parameters()).data.add_(1.0)
    return TRUTH


def _leaves_hook(model: Any) -> torch.Tensor:
    model.add_hook("blocks.0.hook_resid_pre", lambda stream, hook: stream * 0)
    return TRUTH


def _leaves_torch_s_own_hook(model: Any) -> torch.Tensor:
    module = next(iter(model.original_model.children()))
    module.register_forward_hook(lambda module, given, made: None)
    return TRUTH


def _switches_gradients_off(model: Any) -> torch.Tensor:
    torch.set_grad_enabled(False)
    return TRUTH


def _changes_the_number_type(model: Any) -> torch.Tensor:
    torch.set_default_dtype(torch.float64)
    return TRUTH


def _changes_constants(model: Any) -> torch.Tensor:
    next(model.original_model.buffers()).data.add_(1)
    return TRUTH


def _trains(model: Any) -> torch.Tensor:
    model.train()
    return TRUTH


def _runs_forever(model: Any) -> torch.Tensor:
    while True:
        with contextlib.suppress(Exception):  # a student's `except Exception` does not keep it alive
            sum(range(1000))


BAD = {
    "shape": (lambda model: torch.ones(3), r"returned the shape \(3,\); the shape \(2,\) is asked for"),
    "dtype": (lambda model: torch.tensor([1, 2]), r"returned torch.int64; real numbers are asked for"),
    "words": (lambda model: "two", r"returned a str; a number or a tensor"),
    "nan": (lambda model: TRUTH / 0 * 0, r"NaN or infinity"),
    "nothing": (lambda model: None, r"returns nothing yet"),
    "raises": (lambda model: {}["x"], r"raised KeyError"),
    "weights": (_changes_weights, r"weights are changed afterwards"),
    "hook": (_leaves_hook, r"a hook is still on the model"),
    "torch's own hook": (_leaves_torch_s_own_hook, r"a hook is still on the model"),
    "gradients": (_switches_gradients_off, r"with torch.no_grad"),
    "number type": (_changes_the_number_type, r"default number type"),
    "constants": (_changes_constants, r"constants \(its masks, say\) are changed"),
    "mode": (_trains, r"another mode afterwards"),
    "forever": (_runs_forever, r"ran for more than 1 seconds"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_function_is_named_and_the_model_put_back(kind: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SECONDS", 1)
    function, message = BAD[kind]
    tokens = torch.arange(6)[None]
    before, mode = model(tokens).detach(), model.training
    said = judge_function(function, [Case("the case", model, (model,), TRUTH)])
    assert said is not None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert torch.equal(model(tokens), before)
    assert model.training == mode
    assert not build._n_hooks(model)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    good = [Case("the case", model, (model,), TRUTH)]
    assert judge_function(lambda model: model.run_with_cache(tokens) and TRUTH, good) is None  # libraries' own hooks


def test_grades_are_exported_with_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "_RECORDS", {})
    monkeypatch.setattr(exercise, "_PASSED", {})
    asked = Exercise("3.2", lambda answer: None if answer == "logit_difference" else "no.", "hint", "x = 1", "so")
    monkeypatch.setitem(EXERCISES, "3.2", asked)
    for answer in (..., 1, "log_probability", "logit_difference", "accuracy"):
        exercise.check("3.2", answer)
    exercise.hint("3.3")
    exercise.solution("3.3")
    rows = json.loads(exercise.export(tmp_path / "grades.json", "Ada").read_text(encoding="utf-8"))
    assert [row["exercise"] for row in rows] == [name for name in EXERCISES if name.startswith("3.")]
    by_name = {row["exercise"]: row for row in rows}
    assert by_name["3.2"] == {
        "student": "Ada", "exercise": "3.2", "passed": True, "attempts": 3, "hint_read": False,
        "solution_read_before": False,
    }  # fmt: skip
    assert by_name["3.3"]["hint_read"]
    assert by_name["3.3"]["solution_read_before"]
    assert not by_name["3.1"]["attempts"]
    with exercise.export(tmp_path / "grades.csv").open(encoding="utf-8") as file:
        assert [row["attempts"] for row in csv.DictReader(file)] == [str(row["attempts"]) for row in rows]
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        exercise.export(tmp_path / "grades.xlsx")


def test_cases_are_made_once_and_an_attempt_cannot_spoil_them() -> None:
    numbers, made = torch.ones(2), []

    @build.judges
    def judge(factor: float) -> list[Case]:
        made.append(factor)
        return [Case("the case", None, (numbers,), numbers.clone() * factor)]

    def spoils(x: torch.Tensor) -> torch.Tensor:
        return x.zero_()

    assert "0 everywhere" in str(judge(spoils, 2.0))
    assert judge(lambda x: x * 2, 2.0) is None
    assert "without parentheses" in str(judge(3, 2.0))
    assert made == [2.0]


def test_the_tokens_of_a_task_are_copied(model: Any) -> None:
    task = mw.Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], correct=[5], incorrect=[6])
    copied = build._copy(task)
    copied.pairs.clean_tokens.zero_()
    assert task.pairs.clean_tokens.tolist() == [[1, 2, 3]]
    assert build._copy(model) is model
