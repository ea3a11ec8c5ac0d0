"""Rows of a user's file of pairs: CSV with a header, or one JSON object a line; UTF-8.

Everything that would be read as something else than was meant is refused, by file and line: another encoding, two
columns of one name, a row longer than the header, a split that is neither train nor test, characters that no text has.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..errors import InputError, NotFoundError

SPLITS = ("train", "test")
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK": "a spreadsheet or another zip", b"\x1f\x8b": "gzip"}


def read_rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows, each with where it stands in words; raises `NotFoundError` or `InputError` (see the module's
    docstring).
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise NotFoundError(f"no file of pairs at {path}")
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"no file of pairs can be read at {str(path)[:200]}: {error.strerror}") from error
    if path.suffix == ".csv":
        rows = _read_csv(path.name, read_text(path.name, content))
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = _read_jsonl(path.name, read_text(path.name, content))
    else:
        raise InputError(f"pairs are read from .csv or .jsonl files; got {path.name}")
    for where, row in rows:
        _check_row(where, row)
    return rows


def read_text(name: str, content: bytes) -> str:
    """`content` as UTF-8 text; raises `InputError` for other encodings, saying which where that can be seen."""
    for mark, what in _MARKS.items():
        if content.startswith(mark):
            raise InputError(f"text is read as UTF-8; {name} is {what}. Save it as UTF-8 text.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {error.start} ({content[error.start]:#x}) of {name} is not"
        raise InputError(f"text is read as UTF-8; {found} (Latin-1?). Save it as UTF-8 text.") from error
    if "\0" in text:
        raise InputError(
            f"text is read as UTF-8; {name} has zero bytes, as UTF-16 and binary files do. Save it as UTF-8."
        )
    return text


def _read_csv(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(lines, [])
        if twice := sorted({column for column in header if header.count(column) > 1}):
            raise InputError(f"every column of {name} has its own name; {', '.join(map(repr, twice))} comes twice")
        rows = []
        for cells in lines:
            where = f"{name}, line {lines.line_num}"
            if len(cells) > len(header):
                raise InputError(
                    f"{where}, has {len(cells)} cells and the header {len(header)}. Put text with commas in double "
                    "quotes."
                )
            if cells:
                rows.append((where, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True))))
    except csv.Error as error:
        raise InputError(f"{name}, line {lines.line_num}, is no CSV that can be read: {error}") from error
    return rows


def _read_jsonl(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}, is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}, must be an object with clean, corrupt, correct, incorrect; got {line[:80]}")
        rows.append((where, row))
    return rows


def _check_row(where: str, row: dict[str, Any]) -> None:
    split = row.get("split")
    if split not in (None, "", *SPLITS):
        raise InputError(f"{where}: split is {' or '.join(SPLITS)}, or empty; got {split!r}")
    for value in row.values():
        for text in value if isinstance(value, list) else (value,):
            try:
                str(text).encode()
            except UnicodeEncodeError:
                raise InputError(f"{where}: half of a surrogate pair is no character; got {text!r}") from None
