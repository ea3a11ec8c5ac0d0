"""A user's pairs from CSV and JSONL, and what is said about each wrong row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechwork.errors import InputError, NotFoundError
from mechwork.patching import patch
from mechwork.tasks import from_file
from mechwork.tasks.read import read_rows

ROWS = [
    {"clean": "When Mary and John went to the store, John gave a drink "
              "to", "corrupt": "When Mary and John went to the store, Mary gave a drink "
                               "to", "correct": " Mary", "incorrect": " John"},
    {"clean": "When Tom and Anna went to the store, Anna gave a drink "
              "to", "corrupt": "When Tom and Anna went to the store, Tom gave a drink "
                               "to", "correct": " Tom", "incorrect": " Anna"},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [",".join(rows[0])] + [
            ",".join(json.dumps(v, ensure_ascii=False) for v in row.values()) for row in rows
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_reads_and_runs(bundled_model: Any, tmp_path: Path, name: str) -> None:
    task = from_file(bundled_model, write(tmp_path / name, ROWS))
    assert len(task) == 2
    assert task.name == "pairs"
    assert "[ John]" in task.describe()
    effects = patch(bundled_model, task, ["resid_pre"])
    assert effects["resid_pre"].values.shape[0] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": " Mary Mary"}, r"single token.*pair 1"),
        ({"corrupt": ROWS[1]["clean"]}, "pair 1 are identical"),
        ({"corrupt": " store"}, "pair 1 has prompts of"),
        ({"clean": ""}, "pair 1 needs a text in column 'clean'"),
        ({"incorrect": None}, "pair 1 needs text"),
        ({"incorrect": " Tom"}, "must differ"),
        ({"system": "Be brief."}, "pass chat=True"),
        ({"split": "train"}, "every pair says its split"),
        ({"spans": {"S": "Anna"}}, "stands 2 times"),
        ({"spans": {"S": "Bob"}}, "stands 0 times"),
        ({"spans": {"S": [5, 900]}}, "start, end"),
        ({"spans": "S=Anna"}, "written as JSON"),
        ({"spans": {"A": "Tom and", "B": "and Anna"}}, "overlap"),
        ({"clean": "the " * 200, "corrupt": "a " * 200}, "context of 128"),
    ],
)
def test_names_the_wrong_row(bundled_model: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "pairs.jsonl", [ROWS[0], {**ROWS[1], **change}])
    with pytest.raises(InputError, match=message):
        from_file(bundled_model, path)


def test_wrong_files(bundled_model: Any, tmp_path: Path, tiny_gpt2: Any) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        from_file(bundled_model, tmp_path / "nothing.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"\.csv or \.jsonl"):
        from_file(bundled_model, tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(InputError, match="line 1, is not JSON"):
        from_file(bundled_model, tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text("\n")
    with pytest.raises(InputError, match="at least one pair"):
        from_file(bundled_model, tmp_path / "c.jsonl")
    with pytest.raises(InputError, match="no tokenizer"):
        from_file(tiny_gpt2, write(tmp_path / "pairs.jsonl", ROWS))


HEAD = "clean,corrupt,correct,incorrect"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEAD}\na,b,c,d\n".encode("utf-16"), "is UTF-16"),
        (f"{HEAD}\na,b,c,d\n".encode("utf-16-le"), "zero bytes"),
        (f"{HEAD}\né,b,c,d\n".encode("latin-1"), "Latin-1"),
        (f"{HEAD}\n{'a' * 200_000},b,c,d\n".encode(), "field limit"),
        (f"{HEAD},clean\na,b,c,d,e\n".encode(), "'clean' comes twice"),
        (f"{HEAD}\na,b,c,d,e\n".encode(), "line 2, has 5 cells and the header 4"),
        (f"{HEAD},split\na,b,c,d,banana\n".encode(), "split is train or test"),
    ],
)
def test_a_csv_that_would_be_misread_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "a.csv")


def test_byte_order_marks_blank_lines_and_quotes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f'\ufeff{HEAD}\r\n\r\n"a, b\nc",b,c\r\n'.encode())
    ((where, row),) = read_rows(tmp_path / "a.csv")
    assert row == {"clean": "a, b\nc", "corrupt": "b", "correct": "c", "incorrect": None}
    assert where == "a.csv, line 4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"clean": "\ud800"}', "surrogate"), ((r'{"correct": ["a", '
                                                r'"\udfff"]}'), "surrogate"), ("[" * 100_000, "is not JSON"),
        ("[1]", "must be an object"), ('{"split": 3}', "split is"),
    ],
)  # fmt: skip
def test_a_jsonl_that_would_be_misread_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "a.jsonl")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file of pairs"):
        read_rows(tmp_path / ("n" * 5000 + ".csv"))


def test_a_terminal_does_not_obey_a_prompt(bundled_model: Any, tmp_path: Path) -> None:
    rows = [{**ROWS[0], **{side: f"\x1b]0;owned\x07 {ROWS[0][side]}" for side in ("clean", "corrupt")}}]
    task = from_file(bundled_model, write(tmp_path / "pairs.jsonl", rows))
    assert "\x1b" not in task.describe()
    assert "\x07" not in task.describe()
    assert "\\x1b]0;owned" in task.describe()
