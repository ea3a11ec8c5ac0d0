"""Nothing that a user's file says acts on a terminal or is run by a spreadsheet."""

from __future__ import annotations

import ast
import csv
import io
import json
import string
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mechwork
from mechwork.cli.console import Console
from mechwork.discovery.plain import dump_json
from mechwork.display import Displayable
from mechwork.harmless import cell, table_text, visible, visible_json

ROOT = Path(mechwork.__file__).parents[1]
HOSTILE = "a\x1b[2J\x9b31m\x07\r\u202eevil\u2066\ud800"
FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "＝1+1", "\r=1")


def harmless(text: str) -> bool:
    return all(letter in "\n\t" or letter.isprintable() for letter in text)


@given(st.text(alphabet=st.characters(), max_size=40))
def test_what_is_visible_prints_and_stays_as_it_is(text: str) -> None:
    shown = visible(text)
    assert harmless(shown)
    assert visible(shown) == shown
    assert (shown == text) == harmless(text)


@given(st.text(alphabet=st.characters(), max_size=40))
def test_json_keeps_its_values(text: str) -> None:
    shown = visible_json(json.dumps([text], ensure_ascii=False))
    assert harmless(shown)
    assert json.loads(shown) == [text]


def test_the_console_and_printed_results_escape(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, eq=False)
    class Own(Displayable):
        name: str

        def __str__(self) -> str:
            return f"own {self.name}"

    @dataclass(frozen=True, eq=False)
    class Outlined(Displayable):
        names: tuple[str, ...]

    for result in (Own(HOSTILE), Outlined((HOSTILE, "b"))):
        print(result, repr(result))
    console = Console()
    console.result(HOSTILE, {})
    console.say(HOSTILE)
    console.error(HOSTILE)
    Console(json=True).result("", {HOSTILE: HOSTILE})
    said = capsys.readouterr()
    assert harmless(said.out)
    assert harmless(said.err)
    assert said.out.count("\\x1b[2J") == 5
    assert json.loads(dump_json({HOSTILE: HOSTILE})) == {HOSTILE: HOSTILE}


def test_formulas_become_text_and_numbers_stay() -> None:
    frame = pandas.DataFrame(
        {"token": [*FORMULAS, "plain", "-0.5"], "score": [-1.5] * (len(FORMULAS) + 2), "=HEAD()": [None] * 9}
    )
    header, *rows = csv.reader(io.StringIO(table_text(frame)))
    assert header == ["token", "score", "'=HEAD()"]
    assert [row[0] for row in rows] == [*(f"'{text}" for text in FORMULAS if text[0] != "\r"), "\\r=1", "plain", "-0.5"]
    assert {row[1] for row in rows} == {"-1.5"}
    assert list(frame.columns) == ["token", "score", "=HEAD()"]  # the caller's frame is unchanged
    assert frame["token"].tolist()[0] == "=1+1"
    assert [cell(value) for value in (-1, 2.5, None, string.digits)] == [-1, 2.5, None, string.digits]


def test_categories_and_twin_columns_are_covered() -> None:
    frame = pandas.DataFrame({"a": pandas.Categorical(["=1", "b"]), "b": pandas.array(["=2", "c"], dtype="string")})
    assert table_text(frame) == "a,b\n'=1,'=2\nb,c\n"
    twins = pandas.DataFrame([["=1", "x"]], columns=["a", "a"])
    assert table_text(twins) == "a,a\n'=1,x\n"


def test_every_csv_file_is_written_by_one_function() -> None:
    """No other `to_csv`, no csv writer, in what mechwork writes (the course's grades go through `cell`)."""
    found = set()
    for file in [*(ROOT / "mechwork").rglob("*.py"), *(ROOT / "notebooks" / "course").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("to_csv", "DictWriter", "to_excel"):
                found.add(file.relative_to(ROOT).as_posix())
            if isinstance(node, ast.Attribute) and node.attr == "writer" and ast.unparse(node.value) == "csv":
                found.add(file.relative_to(ROOT).as_posix())
    assert found == {"mechwork/harmless.py", "notebooks/course/exercise.py"}
    assert "cell(value)" in (ROOT / "notebooks" / "course" / "exercise.py").read_text(encoding="utf-8")
