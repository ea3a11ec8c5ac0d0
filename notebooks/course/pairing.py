"""Sources and notebooks: ``python -m notebooks.course.pairing`` writes every .ipynb from its py:percent source.

The .py files are what people edit; they are jupytext's percent format, so that ``jupytext --sync`` and editors
understand them too. A cell begins with ``# %%``, a Markdown cell with ``# %% [markdown]``. Outputs that a notebook has
(``python -m notebooks.course.outputs`` renews them) stay as long as its code is the same; else they are dropped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1]
MARK = "# %%"
HIDDEN = '# %% jupyter={"outputs_hidden": true}'
"""The mark of a code cell whose stored output is folded: a student opens it after predicting it."""
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """The sources, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))


def read_cells(text: str) -> list[tuple[str, str]]:
    """(``"markdown"`` or ``"code"``, text) of every cell of a percent source; what stands before the first is its
    header.
    """
    return [(kind, content) for kind, content, _ in _marked_cells(text)]


def _marked_cells(text: str) -> list[tuple[str, str, str]]:
    """Kind, text and mark of every cell."""
    cells: list[tuple[str, list[str], str]] = []
    for line in text.splitlines():
        if line.startswith(MARK):
            cells.append(("markdown" if "[markdown]" in line else "code", [], line))
        elif cells:
            cells[-1][1].append(line)
    return [(kind, _text(kind, lines), mark) for kind, lines, mark in cells]


def _text(kind: str, lines: list[str]) -> str:
    if kind == "markdown":
        lines = [line[2:] if line.startswith("# ") else line.removeprefix("#") for line in lines]
    return "\n".join(lines).strip("\n")


def build(text: str) -> dict[str, Any]:
    """The notebook of a percent source, as nbformat 4.5 without outputs."""
    cells: list[dict[str, Any]] = []
    for number, (kind, content, mark) in enumerate(_marked_cells(text)):
        folded = {"jupyter": {"outputs_hidden": True}} if mark == HIDDEN else {}
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number:02d}", "metadata": folded}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": content.splitlines(keepends=True)})
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def code_sha256(notebook: dict[str, Any]) -> str:
    """Of the code cells: prose may change without outputs getting stale."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def with_outputs(notebook: dict[str, Any], outputs: list[tuple[int | None, list[Any]]]) -> dict[str, Any]:
    """The notebook with (count, outputs) put into its code cells, and the hash of the code that made them."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, (count, made) in zip(code, outputs, strict=True):
        cell |= {"execution_count": count, "outputs": made}
    return notebook | {"metadata": METADATA | {"mechwork": {"outputs_of": code_sha256(notebook)}}}


def outputs_of(notebook: dict[str, Any]) -> list[tuple[int | None, list[Any]]]:
    """(count, outputs) of every code cell."""
    return [(c["execution_count"], c["outputs"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def pair(source: Path) -> dict[str, Any]:
    """The notebook that belongs to a source: its cells, and the outputs of the file beside it if they are of this
    code.
    """
    notebook, target = build(source.read_text(encoding="utf-8")), source.with_suffix(".ipynb")
    if not target.exists():
        return notebook
    old = json.loads(target.read_text(encoding="utf-8"))
    fresh = old["metadata"].get("mechwork", {}).get("outputs_of") == code_sha256(notebook)
    return with_outputs(notebook, outputs_of(old)) if fresh else notebook


def to_json(notebook: dict[str, Any]) -> str:
    """As Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write every notebook anew."""
    for source in sources():
        source.with_suffix(".ipynb").write_text(to_json(pair(source)), encoding="utf-8")


if __name__ == "__main__":
    main()
