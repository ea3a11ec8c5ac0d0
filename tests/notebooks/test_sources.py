"""The notebooks as files: paired with their sources, and each with the parts that a lesson has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notebooks.course import EXERCISES
from notebooks.course.pairing import NOTEBOOKS, build, pair, read_cells, sources, to_json

from .answers import WRONG
from .second_pass import exercises_in

SOURCES = sources()
each = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def test_there_are_notebooks_and_no_others() -> None:
    assert {source.stem for source in SOURCES} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert len(SOURCES) >= 6


@each
def test_the_notebook_is_its_source(source: Path) -> None:
    """python -m notebooks.course.pairing writes them anew."""
    found = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert found == to_json(pair(source)), "run: python -m notebooks.course.pairing"


@each
def test_jupytext_reads_the_same_cells(source: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
    text = source.read_text(encoding="utf-8")
    theirs = jupytext.reads(text, fmt="py:percent")
    assert [(cell.cell_type, cell.source) for cell in theirs.cells] == read_cells(text)


@each
def test_it_has_what_a_lesson_has(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    cells = read_cells(text)
    prose = "\n".join(content for kind, content in cells if kind == "markdown")
    code = [content for kind, content in cells if kind == "code"]
    assert len(cells) <= 40
    assert cells[0][1].startswith(f"# {int(source.name[:2])}. ")
    assert "> **Goals.**" in cells[0][1]
    assert code[0] == f'import course\n\ncourse.begin("{int(source.name[:2])}")'
    assert prose.count("## Predict first") == 1
    assert re.search(r"Before you run", prose)
    asked = f'prediction = ...\ncourse.predict("{int(source.name[:2])}", prediction)'
    assert asked in code
    assert prose.count("<details>") == prose.count("</details>") == prose.count("<summary>")
    folded = [
        "".join(cell["source"])
        for cell in build(text)["cells"]
        if cell["cell_type"] == "code" and cell["metadata"].get("jupyter", {}).get("outputs_hidden")
    ]
    assert code[code.index(asked) + 1] in folded
    assert 3 <= len(exercises_in(source)) <= 6
    assert next(line.split("=")[0].strip() for line in code[-1].splitlines()) == "NOW_WITH_GPT2"
    assert code[-1].startswith("NOW_WITH_GPT2 = False\nif NOW_WITH_GPT2:\n")
    assert "## Optional: now with GPT-2" in prose
    assert "course.place(" in code[-2]
    assert "from_pretrained" not in text
    assert "http" not in text


def test_every_exercise_is_asked_once_and_has_wrong_answers() -> None:
    asked = [name for source in SOURCES for name in exercises_in(source)]
    assert sorted(asked) == sorted(EXERCISES) == sorted(WRONG)
    assert all(len(set(wrong)) >= 2 for wrong in WRONG.values())


def test_hints_do_not_hold_the_solution() -> None:
    for exercise in EXERCISES.values():
        assert exercise.solution not in exercise.hint
