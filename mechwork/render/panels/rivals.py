"""Rivals and backups drawn: other circuits that do the same, and what takes over when a head is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...circuits.testing.backups import BackupCompletion
from ...circuits.testing.rivals import Rivals
from ...display import draws
from ..findings import reports
from ..page.figure import MUTED, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, escape, fixed, plural
from .steering import COLOURS, SYMBOLS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@draws(Rivals)
def render_rivals(rivals: Rivals) -> str:
    """One page."""
    return figures_page("Rivals of a circuit", [rivals_fragment(rivals)])


@reports(Rivals, section="robustness", called="rivals")
def rivals_fragment(rivals: Rivals) -> Fragment:
    """What the rivals say in a sentence, the figure, the numbers folded."""
    equal = rivals.equal()
    said = (
        f"{plural(len(equal), 'rival')} of {len(rivals.overlaps)} as faithful as the given circuit (within 0.1); "
        + ", ".join(
            f"{name} shares {fixed(overlap, 2)} of the edges (chance {fixed(rivals.chance[name], 2)})"
            for name, overlap in rivals.overlaps.items()
        )
    )
    rows = rivals.rows
    columns = [
        Column("circuit", [row.circuit for row in rows]),
        Column("other edges by", [row.ablation for row in rows]),
        Column("pairs", [f"{row.pairs} ({count(row.n_pairs)})" for row in rows]),
        Column("faithfulness", [fixed(row.faithfulness) for row in rows], numeric=True),
        Column("95 % interval", [f"[{fixed(row.low)}, {fixed(row.high)}]" for row in rows], numeric=True),
    ]
    numbers = table(columns, caption="Measured on held-out pairs; overlap is the Jaccard index of edges")
    drawn = figure_fragment(rivals_figure(rivals), said)
    return Fragment(
        f"<h3>Do other edges do the same?</h3><p>{escape(said)}.</p>{drawn.body}"
        f'<details class="mw-fallback"><summary>The numbers ({len(rows)})</summary>{numbers}</details>',
        drawn.needs,
    )


def rivals_figure(rivals: Rivals) -> Figure:
    """Faithfulness of every circuit on all held-out pairs, with its interval, one mark per ablation."""
    import plotly.graph_objects as go

    names = list(rivals.circuits)
    ablations = list(dict.fromkeys(row.ablation for row in rivals.rows))
    figure = go.Figure()
    for k, ablation in enumerate(ablations):
        rows = [row for row in rivals.rows if row.ablation == ablation and row.pairs == "all"]
        colour = COLOURS[k % len(COLOURS)]
        figure.add_scatter(
            x=[row.faithfulness for row in rows],
            y=[names.index(row.circuit) + 0.18 * (k - (len(ablations) - 1) / 2) for row in rows],
            mode="markers", name=f"other edges: {ablation}",
            marker={"color": colour, "symbol": SYMBOLS[k % len(SYMBOLS)], "size": 10},
            error_x={
                "type": "data", "array": [row.high - row.faithfulness for row in rows],
                "arrayminus": [row.faithfulness - row.low for row in rows], "color": colour, "thickness": 1.5,
            },
            hovertemplate="%{x:.3f}<extra></extra>",
        )  # fmt: skip
    for at in (0.0, 1.0):
        figure.add_vline(x=at, line={"color": MUTED, "width": 1, "dash": "4px 3px"})
    labels = [
        f"{name}<br>{rivals.circuits[name].n_edges} edges"
        + (f", {fixed(rivals.overlaps[name], 2)} shared" if name in rivals.overlaps else "")
        for name in names
    ]
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=labels,
        range=[len(names) - 0.4, -0.6],
        automargin=True,
        zeroline=False,
    )
    figure.update_xaxes(
        title={"text": "faithfulness: 0 as the empty circuit, 1 as the model"}, showgrid=True, zeroline=False
    )
    figure.update_layout(
        margin={"l": 60, "r": 24, "t": 70, "b": 96}, legend={"orientation": "h", "x": 0, "y": -0.3, "yanchor": "top"}
    )
    return titled(
        figure, "The circuit and its rivals", "held-out pairs; bars: 95 % over pairs", width=640,
        height=200 + 62 * len(names),
    )  # fmt: skip


@draws(BackupCompletion)
def render_backups(found: BackupCompletion) -> str:
    """One page."""
    return figures_page("Backups", [backups_fragment(found)])


@reports(BackupCompletion, section="robustness", called="backups")
def backups_fragment(found: BackupCompletion) -> Fragment:
    """Who takes over in a sentence, the figure, the numbers folded."""
    before, after = found.faithfulness
    said = (
        f"{plural(len(found.backups), 'head')} take over when one of {plural(len(found.reactions), 'head')} is ablated "
        f"({found.n_tested} pairs of heads tested); with them the circuit has {found.completed.n_edges} edges instead "
        f"of {found.circuit.n_edges} and a faithfulness of {fixed(after, 2)} instead of {fixed(before, 2)}."
    )
    if not found.reactions:
        return Fragment(f"<h3>What takes over when a head is gone?</h3><p>{escape(said)}</p>")
    rows = found.rows
    columns = [
        Column("ablated", [row.head for row in rows]),
        Column("backup", [row.backup for row in rows]),
        Column("takes over", [fixed(row.share) for row in rows], numeric=True),
        Column("95 % interval", ["[{}, {}]".format(*map(fixed, row.share_interval)) for row in rows], numeric=True),
        Column("p, corrected", [fixed(row.q) for row in rows], numeric=True),
    ]
    caption = "Measured: share of the gap that the backup takes over"
    numbers = table(columns, caption=caption) if rows else "<p>none</p>"
    drawn = figure_fragment(backups_figure(found), said)
    return Fragment(
        f"<h3>What takes over when a head is gone?</h3><p>{escape(said)}</p>{drawn.body}"
        f'<details class="mw-fallback"><summary>Who takes over ({len(rows)})</summary>{numbers}</details>',
        drawn.needs,
    )


def backups_figure(found: BackupCompletion) -> Figure:
    """Per ablated head how unlike circuit and model react, without and with the backups; least alike first."""
    import plotly.graph_objects as go

    rows = sorted(found.reactions, key=lambda row: -row.before)
    figure = go.Figure()
    for i, row in enumerate(rows):
        figure.add_scatter(
            x=[row.before, row.after], y=[i, i], mode="lines", line={"color": MUTED, "width": 1.5}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    for name, values, k in (
        ("the circuit as it was", [row.before for row in rows], 1),
        ("with the backups", [row.after for row in rows], 0),
    ):
        figure.add_scatter(
            x=values, y=list(range(len(rows))), mode="markers", name=name,
            marker={"color": COLOURS[k], "symbol": SYMBOLS[k], "size": 10}, hovertemplate="%{x:.3f}<extra></extra>",
        )  # fmt: skip
    helpers = {row.head: [r.backup for r in found.rows if r.head == row.head] for row in rows}
    labels = [row.head + (f"<br>{', '.join(helpers[row.head][:3])}" if helpers[row.head] else "") for row in rows]
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=labels, range=[len(rows) - 0.4, -0.6], automargin=True, zeroline=False
    )
    figure.update_xaxes(
        title={"text": "difference between circuit and model when the head is ablated, share of the gap"},
        rangemode="tozero", showgrid=True, zeroline=False,
    )  # fmt: skip
    figure.update_layout(
        margin={"l": 60, "r": 24, "t": 70, "b": 96},
        legend={"orientation": "h", "x": 0, "y": -62 / (34 + 40 * len(rows)), "yanchor": "top"},
    )
    subtitle = "further left: circuit and model react alike; below each head what takes over for it"
    return titled(figure, "Circuit against model, without a head", subtitle, width=640, height=200 + 40 * len(rows))
