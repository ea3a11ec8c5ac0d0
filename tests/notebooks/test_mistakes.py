"""Second mistakes are judged wrong with their own message, other right ways right, and the model stays as it was."""

from __future__ import annotations

import pytest

from notebooks.course import EXERCISES
from tests.gate import fewer

from .later_mistakes import EVIDENCE, LATER_MISTAKES, LATER_RIGHT
from .mistakes import MISTAKES, RIGHT


def judged(name: str, code: str) -> str | None:
    """What the judge says to the function that `code` defines."""
    import torch

    space: dict[str, object] = {"torch": torch}
    exec(code, space)
    defined = EXERCISES[name].solution.split("def ")[1].split("(")[0]
    return EXERCISES[name].judge(space[defined], *EVIDENCE.get(name, ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", fewer(sorted(MISTAKES | LATER_MISTAKES), ["0.3", "1.4", "5.5", "5.6", "10.2", "11.4"]))
def test_every_mistake_has_its_message_and_every_right_way_passes(name: str) -> None:
    for code, words in (MISTAKES | LATER_MISTAKES)[name]:
        said = judged(name, code)
        assert said is not None, code
        assert words in said, (code, said)
        assert "largest deviation" not in said
    for code in (*(RIGHT | LATER_RIGHT).get(name, ()), EXERCISES[name].solution):
        assert judged(name, code) is None, code
