"""What users wrote, made harmless where programs act on it: control characters (terminals), formulas (spreadsheets).

A prompt, a token or a name comes from a file of others. Printed raw it can move a terminal's cursor or hide text;
in a CSV file a cell that begins with ``=`` is run as a formula. `visible` is applied by the console and by the `repr`
of everything `Readable`; `table_text` writes every CSV file.

Bottom layer: imports nothing of mechwork.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

_ODD = re.compile(r"[^\n\t -~]")
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""First letters by which a spreadsheet takes a cell for a formula, full-width ones included."""


def visible(text: str) -> str:
    r"""The text with every character that does not print (but line ends and tabs) as its escape.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _ODD.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def visible_json(text: str) -> str:
    r"""JSON with every character that does not print as ``\uXXXX``: the same values, safe on a terminal."""
    return _ODD.sub(lambda found: found[0] if found[0].isprintable() else _units(found[0]), text)


def cell(value: object) -> object:
    """A value for a cell of a table: text that a spreadsheet would run gets an apostrophe before it; numbers stay.

    Text is also made `visible`: pandas leaves a carriage return unquoted, and what follows it would be a new cell.

    >>> cell("=1+1"), cell("-0.5"), cell(-0.5)
    ("'=1+1", '-0.5', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def table_text(frame: pandas.DataFrame, *, float_format: str | None = None) -> str:
    """A frame as CSV, header first, no index, lines ended by a line feed; text cells and the header by `cell`."""
    safe = frame.rename(columns=cell).copy()
    for i, kind in enumerate(frame.dtypes):
        if getattr(kind, "kind", "O") == "O":  # numpy's numbers, dates and truths hold no text
            safe.isetitem(i, [cell(value) for value in frame.iloc[:, i]])
    return safe.to_csv(index=False, lineterminator="\n", float_format=float_format)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _units(letter: str) -> str:
    """The UTF-16 units of a letter, as JSON writes them; a lone surrogate is one."""
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
