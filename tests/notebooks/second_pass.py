"""One run of a notebook with its exercises done: wrong answers, then the solution, at the cells where they stand."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks.course.pairing import NOTEBOOKS, build, to_json

from .answers import CLAIMS, WRONG

TAG = "asked-by-the-tests"
ASSIGNED = re.compile(r"\w+$")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d*\.?\d+(?![\w.])")
CHECK = re.compile(r'^course\.check\("(\d+\.\d+)".*\)$', re.MULTILINE)


def exercises_in(source: Path) -> list[str]:
    """Names of the exercises, in the order in which the notebook asks them."""
    return CHECK.findall(source.read_text(encoding="utf-8"))


def with_answers(notebook: Any) -> list[Any]:
    """The notebook's cells, and behind every exercise's cell: each wrong answer and its check, then the solution and
    its check.
    """
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        found = CHECK.search(cell.source) if cell.cell_type == "code" else None
        if found is None:
            continue
        name, check = found[1], found[0]
        lines = [f"assert not course.passed({name!r})"]  # the dots that stand there are no answer
        for wrong in WRONG[name]:
            lines += [wrong, check, f"assert not course.passed({name!r}), {wrong!r}"]
        lines += [f"course.hint({name!r})", f"course.solution({name!r})"]
        lines += [f"exec(course.EXERCISES[{name!r}].solution)", check, f"assert course.passed({name!r}), 'solution'"]
        if value := ASSIGNED.match(check.partition(", ")[2].partition(",")[0].rstrip(")")):
            lines.append(f"print('the answer is', {value[0]})")
        cells.append(nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": [TAG]}))
    return cells


def claims_of(source: Path) -> list[Any]:
    """One more cell: what the prose says about the numbers is so."""
    lines = [f"assert {claim}" for claim in CLAIMS[source.name[:2]]]
    return [nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": [TAG]})]


def told(notebook: Any) -> list[str]:
    """What the checks said."""
    return [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if TAG in cell.metadata.get("tags", ())
    ]


def printed_answers(notebook: Any, told: list[str]) -> list[str]:
    """Answers that are numbers of three digits or more and stand, so rounded, in what the lesson's own cells print."""
    own = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    printed = [(word, len(word.partition(".")[2])) for word in NUMBER.findall(own) if len(word.strip("+-0.")) >= 3]
    found = []
    for said in told:
        answer = said.rpartition("the answer is ")[2].strip()
        if NUMBER.fullmatch(answer) and len(answer.strip("+-0.")) >= 3:
            found += [word for word, digits in printed if f"{float(answer):.{digits}f}" == f"{float(word):.{digits}f}"]
    return found


@dataclass(frozen=True)
class Executed:
    """An executed notebook, the tests' own cells taken out of it again."""

    notebook: Any
    told: list[str]
    seconds: float


def read(source: Path) -> Any:
    """The notebook of a source, as nbformat has it."""
    return nbformat.reads(to_json(build(source.read_text(encoding="utf-8"))), as_version=4)


def run(notebook: Any, folder: Path, *, timeout: int = 300, allow_errors: bool = False) -> None:
    """Run every cell in a kernel of its own that works in `folder`."""
    from nbclient import NotebookClient

    paths = [str(NOTEBOOKS), str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH", "")]
    client = NotebookClient(
        notebook, timeout=timeout, allow_errors=allow_errors, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})


def execute(source: Path, folder: Path, *, answers: bool = True, timeout: int = 300) -> Executed:
    """Run it in `folder`, in a kernel of its own; a cell that fails raises nbclient's error."""
    notebook = read(source)
    if answers:
        notebook.cells = [*with_answers(notebook), *claims_of(source)]
    begun = time.monotonic()
    run(notebook, folder, timeout=timeout)
    said = told(notebook)
    notebook.cells = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", ())]
    return Executed(notebook, said, time.monotonic() - begun)


def to_page(notebook: Any) -> str:
    """The notebook as nbconvert's page, which otherwise asks a server for scripts that no cell needs. Skips without
    nbconvert.
    """
    nbconvert = pytest.importorskip("nbconvert", reason="exercises and claims passed; nbconvert is not installed")
    nothing = "data:text/javascript,"
    exporter = nbconvert.HTMLExporter(
        template_name="lab", require_js_url=nothing, jquery_url=nothing, mathjax_url=nothing, mermaid_js_url=nothing
    )
    page, _ = exporter.from_notebook_node(notebook)
    return page
