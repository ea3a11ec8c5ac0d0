"""Tables of the pages and the commands that made them. Above a table stands one of

    <!-- made by: mechwork COMMAND -->                the whole table, printed within a minute or two
    <!-- made in 25 minutes by: mechwork COMMAND -->  the same, but dear
    <!-- columns 2 to 3 made by: mechwork COMMAND --> some columns (the first after the labels is 1), or rows; several
                                                      such lines make one table
    <!-- row 3 made by: mechwork COMMAND -->          one row: the command names what its label says
    <!-- cells made by: mechwork COMMAND -->          a row's cells are printed in several lines, each cell in one
    <!-- timed by: python -m MODULE PART -->          times and memory: other machines print other numbers

where a command may also be ``python -m tests.benchmarks.NAME``. Every day another of the cheap ones is run again (all
of them, the dear ones too, with MECHWORK_ALL_CLAIMS; those of FILE.gguf where MECHWORK_REAL_MODEL names one), and each
number of its table must be in the printed line that begins as its row does, at the precision of the page. Of a timed
table the module must exist and know its part. Tables with neither are counted: the number may only fall.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mechwork.cli.entry import build_parser, main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "notebooks" / "docs"
MARK = re.compile(
    r"<!-- (?:(?P<kind>columns?|rows?) (?P<first>\d+)(?: to (?P<last>\d+))? )?(?P<cells>cells )?"
    r"(?P<how>made|timed)(?: in (?P<minutes>\d+) minutes)? by: (?P<command>(?:mechwork|python -m) .+?) -->"
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d*\.\d+(?![\w.])")
WITHOUT_COMMAND = 1
"""Tables of measured numbers whose page does not say by which one command they were made: each row of the table of the
literature is a study of its own.
"""
REAL = "FILE.gguf"

Rows = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Claim:
    """What one command prints of a table: `rows` with their labels, only the cells that it makes."""

    page: str
    command: str
    timed: bool
    minutes: int
    rows: Rows
    by_cell: bool = False
    labelled: bool = True

    def missing(self, printed: str) -> list[tuple[str, list[str]]]:
        """Rows, by their labels, with numbers that `printed` lacks."""
        parts = [
            (label, part) for label, cells in self.rows for part in (cells if self.by_cell else (" ".join(cells),))
        ]
        lost = [not_in_its_line(label if self.labelled else "", NUMBER.findall(part), printed) for label, part in parts]
        return [(label, numbers) for (label, _), numbers in zip(parts, lost, strict=True) if numbers]


@dataclass(frozen=True)
class Table:
    """A table of a page; `marks` are the comments above it, each with a command."""

    page: str
    marks: tuple[re.Match[str], ...]
    rows: Rows

    @property
    def numbers(self) -> list[str]:
        return [number for _, cells in self.rows for cell in cells for number in NUMBER.findall(cell)]

    @property
    def claims(self) -> list[Claim]:
        """One per mark."""
        found = []
        for mark in self.marks:
            rows, first, last = self.rows, int(mark["first"] or 0), int(mark["last"] or mark["first"] or 0)
            if (mark["kind"] or "").startswith("column"):
                rows = tuple((label, cells[first - 1 : last]) for label, cells in rows)
            elif mark["kind"]:
                rows = rows[first - 1 : last]
            minutes, one = int(mark["minutes"] or 0), mark["kind"] == "row"
            found.append(
                Claim(self.page, mark["command"], mark["how"] == "timed", minutes, rows, bool(mark["cells"]), not one)
            )
        return found


def tables_of(page: Path) -> list[Table]:
    """Tables with four numbers or more that have a decimal point."""
    found: list[Table] = []
    text = page.read_text(encoding="utf-8").replace("−", "-")
    lines = [*text.splitlines(), ""]
    rows: list[tuple[str, tuple[str, ...]]] = []
    marks: list[re.Match[str]] = []
    for line in lines:
        if line.startswith("|"):
            label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.append((label.replace("*", "").replace("`", ""), tuple(cells)))
            continue
        if rows:
            found.append(Table(page.relative_to(DOCS).as_posix(), tuple(marks), tuple(rows[2:])))
            rows, marks = [], []
        if made := MARK.fullmatch(line):
            marks.append(made)
        elif line.strip():
            marks = []
    return [table for table in found if len(table.numbers) >= 4]


TABLES = [table for page in sorted(DOCS.rglob("*.md")) for table in tables_of(page)]
CLAIMS = [claim for table in TABLES for claim in table.claims]
MADE_AGAIN = [claim for claim in CLAIMS if not claim.timed]
CHEAP = [claim for claim in MADE_AGAIN if not claim.minutes and REAL not in claim.command]


def module_of(command: str) -> tuple[str, list[str]]:
    """(module, arguments) of ``python -m MODULE ARGUMENTS``."""
    _, _, module, *arguments = shlex.split(command)
    return module, arguments


def output_of(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints, run in this process."""
    command = command.replace(REAL, os.environ.get("MECHWORK_REAL_MODEL", REAL))
    capsys.readouterr()
    if command.startswith("mechwork "):
        assert main(shlex.split(command)[1:]) == 0, command
    else:
        module, arguments = module_of(command)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")
    words, written = shlex.split(command), ""
    if "--out" in words and (folder := Path(words[words.index("--out") + 1])).is_dir():
        written = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.md")))
    return capsys.readouterr().out + written


def not_printed(numbers: list[str], printed: str) -> list[str]:
    """Those of `numbers` that are no printed number at their own precision."""
    values = [float(number) for number in NUMBER.findall(printed)]
    missing = []
    for number in numbers:
        digits = len(number.partition(".")[2])
        if not any(abs(round(value, digits) - float(number)) < 0.6 * 10.0**-digits for value in values):
            missing.append(number)
    return missing


def not_in_its_line(label: str, numbers: list[str], printed: str) -> list[str]:
    """Numbers that are missing in the printed line which begins with `label`; in the best one, if several do."""
    lines = (" ".join(re.sub(r"[|*`]", " ", line).split()) for line in printed.splitlines())
    rows = [line for line in lines if f"{line} ".startswith(f"{label} " if label else "")]
    return min((not_printed(numbers, row) for row in rows), key=len, default=numbers)


def test_every_command_is_one_and_debts_do_not_grow() -> None:
    for claim in CLAIMS:
        if claim.command.startswith("mechwork "):
            build_parser().parse_args(shlex.split(claim.command)[1:])
            continue
        module, arguments = module_of(claim.command)
        found = importlib.util.find_spec(module)
        assert found is not None, claim.command
        source = Path(str(found.origin)).read_text(encoding="utf-8")
        assert all(word.lstrip("-") in source for word in arguments if not word.isdigit()), claim.command
    assert len(CHEAP) >= 10
    assert len([table for table in TABLES if not table.marks]) <= WITHOUT_COMMAND


def test_marked_columns_cover_their_tables() -> None:
    assert any(table.marks for table in TABLES)
    for table in TABLES:
        covered = [
            number for claim in table.claims for _, cells in claim.rows for c in cells for number in NUMBER.findall(c)
        ]
        assert not table.marks or sorted(covered) == sorted(table.numbers), table.page


def test_numbers_are_compared_at_the_page_s_precision() -> None:
    assert not_printed([".26", "-0.02", "1.3"], "a0.h1 0.264  -0.021 1.27") == []
    assert not_printed([".27", "0.021"], "0.264 -0.021") == [".27", "0.021"]


def test_a_row_is_sought_by_its_first_cell() -> None:
    printed = "ioi / induction  0.140 0.010\nioi  0.985 0.060\nioily 0.5\n| pronoun | **0.25** |"
    assert not_in_its_line("pronoun", [".25"], printed) == []
    assert not_in_its_line("ioi", [".985"], printed) == []
    assert not_in_its_line("ioi / induction", [".14", ".01"], printed) == []
    assert not_in_its_line("ioi", [".5"], printed) == [".5"]
    assert not_in_its_line("docstring", [".5"], printed) == [".5"]


@pytest.mark.slow
def test_todays_table_is_made_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    today = datetime.datetime.now(datetime.UTC).toordinal() % len(CHEAP)
    printed: dict[str, str] = {}
    for claim in MADE_AGAIN if os.environ.get("MECHWORK_ALL_CLAIMS") else [CHEAP[today]]:
        if REAL in claim.command and "MECHWORK_REAL_MODEL" not in os.environ:
            continue
        if claim.command not in printed:  # two tables may come from one command
            printed[claim.command] = output_of(claim.command, capsys, monkeypatch)
        assert claim.missing(printed[claim.command]) == [], (claim.page, claim.command)


def test_parts_of_a_table_are_compared_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.DOCS", tmp_path)
    page = tmp_path / "page.md"
    marks = ["column 1 made by: mechwork tasks", "column 2 timed by: python -m x", "row 2 made by: mechwork models"]
    table = "| | a | b |\n|---|---|---|\n| `one` | .1 | .2 |\n| two | **.3** | .4, .5 |\n"
    page.write_text("".join(f"<!-- {mark} -->\n" for mark in marks) + "\n" + table, encoding="utf-8")
    (found,) = tables_of(page)
    first, second, row = found.claims
    assert first.rows == (("one", (".1",)), ("two", ("**.3**",)))
    assert first.missing("one 0.1\ntwo 0.31") == []
    assert first.missing("one 0.11\ntwo 0.31 and 0.2\none 0.2") == []
    assert first.missing("one 0.2\nthree 0.3") == [("one", [".1"]), ("two", [".3"])]
    assert second.timed
    assert row.missing("anything 0.3 0.4 0.5") == []
    assert row.missing("anything 0.3\nelse 0.4 0.5") == [("two", [".3"])]
    page.write_text("<!-- cells made in 9 minutes by: mechwork tasks -->\n\n" + table, encoding="utf-8")
    (cells,) = tables_of(page)[0].claims
    assert cells.minutes == 9
    assert cells.missing("one 0.1\none 0.2\ntwo 0.3\ntwo 0.4 0.5") == []
    assert cells.missing("one 0.1\none 0.2\ntwo 0.3\ntwo 0.4\ntwo 0.5") == [("two", [".5"])]
