"""Typical wrong values get the message that helps, and every way to write the right value passes; no model is run."""

from __future__ import annotations

import pytest

from notebooks.course import EXERCISES

from .later_mistakes import LATER_MISTAKES
from .mistakes import MISTAKES
from .values import VALUES


@pytest.mark.parametrize("name", VALUES)
def test_every_wrong_value_has_its_message_and_right_ones_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, judge = VALUES[name], EXERCISES[name].judge
    for function, fake in asked.fakes.items():
        monkeypatch.setattr(function, fake)
    for answer, words in asked.wrong:
        said = judge(answer, *asked.evidence)
        assert said is not None, answer
        assert words in said, (answer, said)
    for answer in asked.right:
        assert judge(answer, *asked.evidence) is None, answer


def test_every_exercise_is_here_or_with_the_functions() -> None:
    functions = MISTAKES | LATER_MISTAKES
    assert set(EXERCISES) == set(VALUES) | set(functions)
    assert not set(VALUES) & set(functions)
