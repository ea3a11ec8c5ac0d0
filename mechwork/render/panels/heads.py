"""The table of heads: measured effects and attention on one side, the words chosen from them on the other."""

from __future__ import annotations

from collections.abc import Sequence

from ...ablation.heads import HeadRow, HeadStudy
from ...display import draws
from ..page.cards import Card, Fact
from ..page.page import Fragment, assemble
from ..page.table import Column, RowLinks, table
from ..page.text import escape, fixed, number, percent, plural, signed, words


@draws(HeadStudy)
def render_heads(study: HeadStudy) -> str:
    """One self-contained HTML page with the table of heads."""
    title = "Heads"
    head = Fragment(f'<main class="mw-page"><h1>{escape(title)}</h1>')
    return assemble(title, [head, heads_fragment(study), Fragment("</main>")], body_class="mw-standalone")


def heads_fragment(study: HeadStudy, *, limit: int = 16) -> Fragment:
    """The table as part of a page; a row and the node of the graph are the same selection. Heads beyond `limit` are
    folded.
    """
    rows = sorted(study.rows, key=lambda row: -abs(row.effect))
    key = (
        "Positive: the head raises the metric, and ablating it lowers it. The attention columns give mean attention "
        "from one span to another."
    )
    body = f'<div class="mw-heads-table">{_head_table(study, rows[:limit])}<p class="mw-muted">{escape(key)}</p></div>'
    if len(rows) > limit:
        rest = rows[limit:]
        body += (
            f'<details class="mw-fallback"><summary>The other {escape(plural(len(rest), "head"))}, of smaller '
            f"effect</summary>{_head_table(study, rest)}</details>"
        )
    return Fragment(body, needs=("heads",))


def _head_table(study: HeadStudy, rows: Sequence[HeadRow]) -> str:
    columns = [
        Column("head", [row.head for row in rows]),
        Column(
            "effect",
            [signed(row.effect) for row in rows],
            numeric=True,
            signs=[row.effect for row in rows],
            title="m(model) − m(head mean-ablated), measured",
        ),
        Column(
            "± SE", [number(row.standard_error, 2) for row in rows], numeric=True, title="standard error over pairs"
        ),
    ]
    if any(row.direct_effect is not None for row in rows):
        values = [row.direct_effect if row.direct_effect is not None else float("nan") for row in rows]
        columns.append(
            Column(
                "direct effect",
                [signed(v) for v in values],
                numeric=True,
                signs=values,
                title="through the residual stream to the logits alone",
            )
        )
    columns += [
        Column(name, [_share(row, name) for row in rows], numeric=True, title=f"mean attention {name}")
        for name in _spans(rows)
    ]
    if any(row.role for row in rows):
        columns.append(
            Column(
                "role (interpretation)", [row.role for row in rows], title="words chosen by rule from the measurements"
            )
        )
    caption = (
        f"{plural(len(rows), 'head')}, largest effect first, in units of the {words(study.metric_name)}. Measured: "
        "everything but the role"
        if rows
        else "No heads were studied"
    )
    return table(columns, caption=caption, links=RowLinks([row.head for row in rows]))


def head_facts(study: HeadStudy) -> dict[str, list[Card]]:
    """What is known about each head, for the side panel of the graph."""
    return {row.head: _facts(row, words(study.metric_name)) for row in study.rows}


def _facts(row: HeadRow, unit: str) -> list[Card]:
    half = 1.96 * row.standard_error
    spread = (
        f"95 % interval {signed(-row.effect - half)} to {signed(-row.effect + half)}" if half == half else "one pair"
    )
    facts: list[Card] = [Fact(f"Mean-ablating it changes {unit} by", signed(-row.effect), detail=spread)]
    if row.direct_effect is not None:
        facts.append(Fact("Direct effect on the logits", signed(row.direct_effect)))
    strongest = sorted(row.attention.items(), key=lambda item: -item[1])[:3]
    facts += [Fact(f"Attention {name}", percent(value, 0)) for name, value in strongest if value >= 0.05]
    return facts


def _share(row: HeadRow, name: str) -> str:
    return fixed(row.attention.get(name, float("nan")), 2)


def _spans(rows: Sequence[HeadRow]) -> list[str]:
    """Attention columns in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.attention))
