"""The stability card drawn: Jaccard indices of every selection beside the null's, and core edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...circuits.testing.card import CORE, StabilityCard
from ...display import draws
from ..findings import reports
from ..graph.graph import DRAWN_LIMIT, graph_fragment
from ..graph.payload import GraphOptions, graph_payload
from ..page.figure import MUTED, POSITIVE, figure_fragment, figures_page, plotly_text, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, escape, fixed, plural

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_CORE = 60
LEAST = 5
"""Selections below which no central 95 % is given."""


@draws(StabilityCard)
def render_stability_card(card: StabilityCard) -> str:
    """One page."""
    graph = [core_graph(card)] if card.circuit.n_edges and card.core.n_edges else []
    return figures_page("Stability card", [stability_section(card), *graph])


def core_graph(card: StabilityCard) -> Fragment:
    """The circuit with its core over it: the legend's filters show core edges alone, or contingent ones."""
    names = ("contingent", "core, and not in the circuit")
    options = GraphOptions(title="Core (in both) and contingent edges", names=names, shown=DRAWN_LIMIT)
    return graph_fragment(graph_payload(card.circuit, options, other=card.core))


@reports(StabilityCard, section="robustness")
def stability_section(card: StabilityCard) -> Fragment:
    """The figure, the axes as a table, the core edges."""
    n = {axis: sum(row.axis == axis for row in card.rows) for axis in card.axes}

    def spread(column: str) -> list[str]:
        return [_range(card.interval(a, column)) if n[a] >= LEAST else "" for a in card.axes]

    columns = [
        Column("what was changed", list(card.axes)),
        Column("selections", [count(n[a]) for a in card.axes], numeric=True),
        Column("edges", [fixed(card.mean(a)) for a in card.axes], numeric=True),
        Column("central 95 %", spread("edges"), numeric=True),
        Column("nodes", [fixed(card.mean(a, "nodes")) for a in card.axes], numeric=True),
        Column("edges on the null", [fixed(card.mean(a, "null_edges")) for a in card.axes], numeric=True),
        Column("central 95 %", spread("null_edges"), numeric=True),
        Column(f"edges to faithfulness {card.target:g}", [_sizes(card.sizes(a)) for a in card.axes], numeric=True),
    ]
    core = card.core
    lead = (
        f"{plural(core.n_edges, 'core edge')}, in at least {100 * CORE:.0f} % of the selections of every axis; "
        f"{card.contingent.n_edges} of the circuit's {card.circuit.n_edges} edges are contingent. On the null "
        f"{plural(card.null_core.n_edges, 'edge')} would be core."
    )
    caption = "Jaccard indices with the circuit of all pairs, by estimated scores; the null has shuffled answers"
    edges = core.edges[:N_CORE]
    listed = table([Column("core edge", list(edges))], caption="Core edges, strongest first") if edges else ""
    more = f'<details class="mw-fallback"><summary>Core edges ({len(edges)})</summary>{listed}</details>'
    drawn = figure_fragment(stability_card_figure(card), lead)
    body = f"<p>{escape(lead)}</p>{drawn.body}{table(columns, caption=caption)}{more if edges else ''}"
    return Fragment(body, needs=drawn.needs)


def stability_card_figure(card: StabilityCard) -> Figure:
    """Every selection as a point: the index of its edges, and of the null's beside it; dashed is chance."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, column, colour, symbol, shift in (
        ("the task", "edges", POSITIVE, "circle", -0.15),
        ("null: shuffled answers", "null_edges", MUTED, "x", 0.15),
    ):
        x = [card.axes.index(row.axis) + shift for row in card.rows]
        y = [float(getattr(row, column)) for row in card.rows]
        said = [plotly_text(row.label, 60) for row in card.rows]
        marker = {"color": colour, "size": 6, "opacity": 0.5, "symbol": symbol}
        figure.add_scatter(
            x=x, y=y, mode="markers", name=name, marker=marker, text=said, hovertemplate="%{text}: %{y:.3f}"
        )
    figure.add_hline(y=card.chance, line={"dash": "dash", "color": MUTED, "width": 1})
    figure.update_xaxes(tickvals=list(range(len(card.axes))), ticktext=list(card.axes), zeroline=False, showgrid=False)
    figure.update_yaxes(title={"text": "Jaccard index of edges"}, range=[-0.02, 1.02], showgrid=True)
    figure.update_layout(margin={"l": 64, "r": 24, "t": 66, "b": 50}, legend={"orientation": "h", "y": -0.15})
    subtitle = f"{card.circuit.n_edges} edges; each point a selection; dashed: two random circuits"
    return titled(figure, "Would another choice have given this circuit?", subtitle, width=640, height=380)


def _range(ends: tuple[float, float]) -> str:
    return f"[{fixed(ends[0])}, {fixed(ends[1])}]"


def _sizes(sizes: tuple[int, ...]) -> str:
    return ", ".join(count(size) if size else "none" for size in sizes)
