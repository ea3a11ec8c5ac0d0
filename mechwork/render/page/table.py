"""HTML tables from columns. Every cell is text and is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .text import escape


@dataclass(frozen=True)
class Column:
    """A column: its heading and one text per row; `signs` colours cells by the sign of a number per row."""

    heading: str
    cells: Sequence[str]
    numeric: bool = False
    signs: Sequence[float] | None = None
    title: str = ""


@dataclass(frozen=True)
class RowLinks:
    """The node that each row stands for (empty: none), so that selecting a row selects the node in every view."""

    names: Sequence[str] = field(default_factory=tuple)


def table(columns: Sequence[Column], *, caption: str = "", links: RowLinks | None = None, css: str = "") -> str:
    """A table in a horizontally scrolling box; the first column holds the row headings."""
    head = "".join(f"<th{_class(column.numeric)}{_title(column)}>{escape(column.heading)}</th>" for column in columns)
    n_rows = len(columns[0].cells) if columns else 0
    rows = "".join(_row(columns, i, links) for i in range(n_rows))
    label = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = f' class="{escape(css)}"' if css else ""
    return (
        '<div class="mw-scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption or "table")}"><table{kind}>{label}<thead><tr>{head}</tr></thead><tbody>'
        f"{rows}</tbody></table></div>"
    )


def _row(columns: Sequence[Column], i: int, links: RowLinks | None) -> str:
    name = links.names[i] if links else ""
    cells = []
    for k, column in enumerate(columns):
        sign = _sign(column.signs[i]) if column.signs is not None else ""
        text = escape(column.cells[i])
        if k == 0 and name:
            text = f'<button type="button" class="mw-select" data-mw-select="{escape(name)}">{text}</button>'
        tag = "th" if k == 0 else "td"
        scope = ' scope="row"' if k == 0 else ""
        cells.append(f"<{tag}{scope}{_class(column.numeric, sign)}>{text}</{tag}>")
    row = f' data-mw-row="{escape(name)}"' if name else ""
    return f"<tr{row}>{''.join(cells)}</tr>"


def _class(numeric: bool, sign: str = "") -> str:  # noqa: FBT001
    names = " ".join(name for name in ("number" if numeric else "", sign) if name)
    return f' class="{names}"' if names else ""


def _title(column: Column) -> str:
    return f' title="{escape(column.title)}"' if column.title else ""


def _sign(value: float) -> str:
    return "positive" if value > 0 else "negative" if value < 0 else ""
