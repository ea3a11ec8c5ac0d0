"""The optional last cell of every notebook, which asks a hub for GPT-2: it runs, with the bundled model of as many
layers in GPT-2's place.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notebooks.course.pairing import read_cells, sources
from tests.gate import fewer

STANDS = re.compile(r"^(?:import mechwork|from mechwork|(?:template|prompt) = )")
"""Lines of earlier cells that the last one needs: imports, and texts."""


@pytest.mark.parametrize("source", fewer(sources(), sources()[1::3]), ids=lambda source: source.stem)
def test_the_optional_cell_runs(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = [text for kind, text in read_cells(source.read_text(encoding="utf-8")) if kind == "code"]
    names: dict[str, object] = {}
    for line in (line for text in code[:-1] for line in text.splitlines() if STANDS.match(line)):
        exec(line, names)
    cell = code[-1].replace("NOW_WITH_GPT2 = False", "NOW_WITH_GPT2 = True")
    assert cell.count('"openai-community/gpt2"') == 1
    cell = cell.replace('"openai-community/gpt2"', '"gpt2-12l"')
    cell = re.sub(r"\bn=\d+", "n=8", cell)
    cell = re.sub(r"\b(a\d+\.h)(\d+)", lambda head: f"{head[1]}{int(head[2]) % 4}", cell)  # of four heads per layer
    capsys.readouterr()
    exec(compile(cell, source.name, "exec", dont_inherit=True), names)
    assert len(capsys.readouterr().out) > 20
