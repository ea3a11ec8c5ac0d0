"""How the parts of an attention score are drawn: a heat map of the strongest writers, and the strongest pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...circuits.scoring.query_key import QueryKeyAttribution
from ...display import draws
from ..findings import reports
from ..page.figure import figure_fragment, figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import show_token, signed
from .ablation import labelled_map

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHOWN = 24
"""Writers on either side of the heat map: those with the largest single parts."""
ROWS = 20


def query_key_figure(found: QueryKeyAttribution) -> Figure:
    """The parts of the strongest writers, queries' down, keys' across."""
    sides = []
    for dim in (1, 0):
        order = found.values.abs().amax(dim=dim).argsort(descending=True)[:SHOWN]
        sides.append(sorted(order.tolist()))
    values = found.values[sides[0]][:, sides[1]]
    names = [[found.writers[i] for i in side] for side in sides]
    text = [
        [f"{a} at the query × {b} at the key: {signed(v)}" for b, v in zip(names[1], row, strict=True)]
        for a, row in zip(names[0], values.tolist(), strict=True)
    ]
    subtitle = (
        f"score {signed(found.total)} from {found.tokens[found.query].strip()!r} to "
        f"{found.tokens[found.key].strip()!r}; those shown make {signed(float(values.sum()))} of it; blue: looks more"
    )
    title = f"What makes {found.head} look"
    return labelled_map(values.tolist(), names[0], names[1], text, title, subtitle)


@reports(QueryKeyAttribution, section="localisation")
def query_key_fragment(found: QueryKeyAttribution) -> Fragment:
    """The heat map and the strongest pairs."""
    top = found.top(ROWS)
    columns = [
        Column("writer at the query", [a for a, _, _ in top]),
        Column("writer at the key", [b for _, b, _ in top]),
        Column("part of the score", [signed(v) for *_, v in top], numeric=True, signs=[v for *_, v in top]),
    ]
    where = f"{show_token(found.tokens[found.query])} to {show_token(found.tokens[found.key])}"
    drawn = figure_fragment(query_key_figure(found), "Heat map; the table has the strongest numbers")
    return Fragment(
        drawn.body + table(columns, caption=f"The strongest parts of the score from {where}"), needs=drawn.needs
    )


@draws(QueryKeyAttribution)
def render_query_key(found: QueryKeyAttribution) -> str:
    """One page: the heat map and the strongest pairs."""
    return figures_page(f"What makes {found.head} look", [query_key_fragment(found)])
