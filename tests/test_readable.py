"""What a user sees who prints a result: a few short lines, no tensor's numbers, for every public class that
holds one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import webbrowser
from dataclasses import dataclass, field

import pytest
import torch

from mechwork.display import Displayable, Readable, brief, outline
from notebooks.course.site import PACKAGES, public_names
from tests.render import synthetic

HOLDS = re.compile(
    r"Tensor|Float\[|Int\[|Bool\[|Tokens|Mask|Parts|Logits|PerExample|TransformerBridge|PromptPairs|Baseline"
)


def holders() -> list[type]:
    """Public dataclasses with a field that would print many numbers or a whole model."""
    found: dict[type, None] = {}
    for package in PACKAGES:
        module = importlib.import_module(f"mechwork.{package}")
        for name in public_names(package):
            value = getattr(module, name)
            kept = dataclasses.fields(value) if inspect.isclass(value) and dataclasses.is_dataclass(value) else ()
            if any(HOLDS.search(str(one.type)) for one in kept):
                found[value] = None
    return list(found)


def writes_its_own(cls: type) -> bool:
    """Whether the class, and not the dataclass decorator, says how it is printed."""
    return "__repr__" in inspect.getsource(cls)


def test_no_public_class_prints_its_tensors() -> None:
    found = holders()
    assert len(found) > 40
    assert [cls.__name__ for cls in found if not issubclass(cls, Readable) and not writes_its_own(cls)] == []


def test_results_print_in_few_lines() -> None:
    for result in synthetic.everything():
        for text in (repr(result), str(result)):
            assert 0 < len(text.splitlines()) <= 30, text
            assert max(map(len, text.splitlines())) <= 240, text
            assert "tensor(" not in text, text


def test_an_outline_names_fields_shapes_and_ranges() -> None:
    text = outline(synthetic.scores())
    assert text.startswith("EdgeScores\n  space ")
    assert re.search(r"per_example +float32 \[32, 31, 79\], -\d\S* to \d", text)
    assert "'relp'" in text
    pairs = synthetic.task().pairs
    assert repr(pairs) == str(pairs) == outline(pairs)


def test_a_class_that_writes_its_own_text_keeps_it_and_heirs_do_too() -> None:
    @dataclass(frozen=True, eq=False)
    class Own(Displayable):
        value: torch.Tensor

        def __str__(self) -> str:
            return "own words"

    @dataclass(frozen=True, eq=False)
    class Heir(Own):
        more: dict[str, int] = field(default_factory=dict)

    assert repr(Own(torch.ones(2))) == str(Heir(torch.ones(2))) == repr(Heir(torch.ones(2))) == "own words"


def test_where_no_browser_opens_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    with pytest.warns(UserWarning, match=r"no browser could be opened here; the page is \S+\.html"):
        synthetic.circuit().show()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([1.0, -2.5]), "float32 [2], -2.5 to 1"),
        (torch.zeros(0, 3), "float32 [0, 3]"),
        (torch.tensor([True]), "bool [1]"),
        (None, "None"),
        ((), "none"),
        ({"a": 1, "b": 2}, "2: a, b"),
        ((object(), object()), "2: object each"),
        ("x" * 300, "'" + "x" * 98 + "…"),
    ],
)
def test_values_in_one_line(value: object, text: str) -> None:
    assert brief(value) == text
