"""Tables of the pages and the commands that made them: ``<!-- made by: mechwork ... -->`` stands above a table.

Every day another of these commands is run again (all of them with MECHWORK_ALL_CLAIMS), and each number of its table
must be among those that it prints, at the precision of the page. Tables without a command are counted: the number may
only fall.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from mechwork.cli.entry import build_parser, main

DOCS = Path(__file__).resolve().parents[2] / "notebooks" / "docs"
MADE = re.compile(r"<!-- made by: mechwork (.+?) -->")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d*\.\d+(?![\w.])")
WITHOUT_COMMAND = 27
"""Tables of measured numbers whose page does not say by which one command they were made; seven are times, or took an
hour on a real model, and cannot be made again here.
"""


@dataclass(frozen=True)
class Table:
    """A table of a page; `command` is what stands behind ``mechwork``, or empty."""

    page: str
    command: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def numbers(self) -> list[str]:
        return [number for _, cells in self.rows for cell in cells for number in NUMBER.findall(cell)]


def tables_of(page: Path) -> list[Table]:
    """Tables with four numbers or more that have a decimal point."""
    found: list[Table] = []
    text = page.read_text(encoding="utf-8").replace("−", "-")
    command, lines = "", [*text.splitlines(), ""]
    rows: list[tuple[str, tuple[str, ...]]] = []
    for line in lines:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.append((cells[0], tuple(cells[1:])))
            continue
        if rows:
            found.append(Table(page.relative_to(DOCS).as_posix(), command, tuple(rows[2:])))
            rows, command = [], ""
        made = MADE.fullmatch(line)
        command = made[1] if made else command if not line.strip() else ""
    return [table for table in found if len(table.numbers) >= 4]


TABLES = [table for page in sorted(DOCS.rglob("*.md")) for table in tables_of(page)]
MADE_BY_COMMAND = [table for table in TABLES if table.command]


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
    rows = [line for line in printed.splitlines() if f"{' '.join(line.split())} ".startswith(f"{label} ")]
    return min((not_printed(numbers, row) for row in rows), key=len, default=numbers)


def test_every_command_parses_and_debts_do_not_grow() -> None:
    for table in MADE_BY_COMMAND:
        build_parser().parse_args(shlex.split(table.command))
    assert len(MADE_BY_COMMAND) >= 3
    assert len(TABLES) - len(MADE_BY_COMMAND) <= WITHOUT_COMMAND


def test_numbers_are_compared_at_the_page_s_precision() -> None:
    assert not_printed([".26", "-0.02", "1.3"], "a0.h1 0.264  -0.021 1.27") == []
    assert not_printed([".27", "0.021"], "0.264 -0.021") == [".27", "0.021"]


def test_a_row_is_sought_by_its_first_cell() -> None:
    printed = "ioi / induction  0.140 0.010\nioi  0.985 0.060\nioily 0.5"
    assert not_in_its_line("ioi", [".985"], printed) == []
    assert not_in_its_line("ioi / induction", [".14", ".01"], printed) == []
    assert not_in_its_line("ioi", [".5"], printed) == [".5"]
    assert not_in_its_line("docstring", [".5"], printed) == [".5"]


@pytest.mark.slow
def test_todays_table_is_made_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    today = datetime.datetime.now(datetime.UTC).toordinal() % len(MADE_BY_COMMAND)
    printed: dict[str, str] = {}
    for table in MADE_BY_COMMAND if os.environ.get("MECHWORK_ALL_CLAIMS") else [MADE_BY_COMMAND[today]]:
        if table.command not in printed:  # two tables may come from one command
            capsys.readouterr()
            assert main(shlex.split(table.command)) == 0, table.command
            printed[table.command] = capsys.readouterr().out
        for label, cells in table.rows:
            wanted = [number for cell in cells for number in NUMBER.findall(cell)]
            assert not_in_its_line(label, wanted, printed[table.command]) == [], (table.page, label)
