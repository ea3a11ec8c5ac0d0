"""Steering drawn: success against side effects, one line per method over its strengths, random directions
beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...directions import SteeringStudy
from ...display import draws
from ..page.figure import MUTED, NEUTRAL, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import fixed, number, plural, words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A5195", "#8C564B", "#4D4D4D")
"""Okabe and Ito's colours and three more; the symbols below tell methods apart without colour."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down", "pentagon", "hexagon")
CONTROLS = {"random": ("random directions", "circle-open"), "as far": ("moved as far at random", "cross-thin-open")}
"""Kind of control -> its name in the legend and its symbol."""

FLOOR = 1e-5
"""Smaller divergences are drawn here: the axis is logarithmic."""


def steering_figure(study: SteeringStudy) -> Figure:
    """KL on other prompts (log scale) against success: what is up and to the left is better."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for kind, (label, symbol) in CONTROLS.items():
        rows = [row for row in study.rows if row.control.startswith(kind)]
        if not rows:
            continue
        figure.add_trace(
            go.Scatter(
                x=[max(row.kl, FLOOR) for row in rows], y=[row.success for row in rows], mode="markers",
                marker={"color": NEUTRAL, "size": 5, "symbol": symbol}, name=label,
                text=[f"{row.method}, {row.control}, strength {number(row.strength)}" for row in rows],
                hovertemplate="%{text}<br>success %{y:.3f}, KL %{x:.4f}<extra></extra>",
            )
        )  # fmt: skip
    for i, method in enumerate(study.methods):
        rows = study.of(method)
        low, high = (
            [row.success - row.success_interval[0] for row in rows],
            [row.success_interval[1] - row.success for row in rows],
        )
        colour = COLOURS[i % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[max(row.kl, FLOOR) for row in rows], y=[row.success for row in rows], mode="lines+markers",
                name=words(method),
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 8, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                error_y={"type": "data", "array": high, "arrayminus": low, "thickness": 1, "width": 2, "color": colour},
                text=[f"{words(method)}, strength {number(row.strength)}, accuracy "
                      f"{number(row.accuracy)}" for row in rows],
                hovertemplate="%{text}<br>success %{y:.3f}, KL %{x:.4f}<extra></extra>",
            )
        )  # fmt: skip
    for height, name in ((0.0, "as the corrupt prompts"), (1.0, "as the clean prompts")):
        figure.add_hline(
            y=height,
            line={"color": MUTED, "width": 1, "dash": "4px 3px"},
            annotation={
                "text": name,
                "font": {"size": 11, "color": MUTED},
                "xanchor": "right",
                "x": 0.996,
                "yanchor": "bottom",
            },
        )
    figure.update_xaxes(
        type="log",
        dtick=1,
        exponentformat="none",
        title={"text": "side effect: KL on other prompts, nats (log scale)"},
        showgrid=True,
        zeroline=False,
    )
    figure.update_yaxes(title={"text": "success"}, zeroline=False, showgrid=True)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.2, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 66, "b": 150},
    )
    elsewhere = [*study.others, *([] if study.plain_perplexity is None else ["text"])]
    subtitle = f"{study.task_name}; other prompts: {', '.join(elsewhere)}; bars: 95 % over pairs"
    return titled(figure, "What steering does, and what else it does", subtitle, width=760, height=560)


@draws(SteeringStudy)
def render_steering(study: SteeringStudy) -> str:
    """One self-contained HTML page: the plot, and every number in a table."""
    rows = study.rows
    columns = [
        Column("method", [words(row.method) for row in rows]),
        Column("direction", [row.control or "fitted" for row in rows]),
        Column("strength", [number(row.strength) for row in rows], numeric=True),
        Column(
            "success",
            [f"{fixed(r.success)} [{fixed(r.success_interval[0])}, {fixed(r.success_interval[1])}]" for r in rows],
            numeric=True,
        ),
        Column("accuracy", [fixed(row.accuracy) for row in rows], numeric=True),
        Column("accuracy on others", [fixed(row.other_accuracy) for row in rows], numeric=True),
        Column("KL on others", [f"{row.kl:.4f}" for row in rows], numeric=True),
    ]
    if study.plain_perplexity is not None:
        columns.append(Column("perplexity", [number(row.perplexity or 0.0) for row in rows], numeric=True))
    if study.plain_repetition is not None:
        columns.append(Column("repetition", [fixed(row.repetition or 0.0) for row in rows], numeric=True))
        columns.append(Column("oddness", [number(row.oddness or 0.0) for row in rows], numeric=True))
    best = max(study.methods, key=lambda method: study.best(method, max_kl=0.1))
    said = (
        f"{plural(len(study.methods), 'method')} over {plural(len({row.strength for row in rows}), 'strength')}. With "
        "a KL of at most 0.1 nats on "
        f"other prompts, {words(best)} reaches the largest success, {study.best(best, max_kl=0.1):.3f}."
    )
    figure = figure_fragment(steering_figure(study), said)
    plain = {"perplexity": study.plain_perplexity, "repetition": study.plain_repetition, "oddness": study.plain_oddness}
    unsteered = "".join(f", {name} {value:.2f}" for name, value in plain.items() if value is not None)
    caption = (
        "Measured on held-out pairs where there are any; unsteered accuracy on other tasks "
        f"{study.plain_accuracy:.3f}{unsteered}. "
        "Repetition: share of repeated trigrams in continuations; oddness: their perplexity for the unsteered model"
    )
    return figures_page("Steering", [Fragment(f"<p>{said}</p>"), figure, Fragment(table(columns, caption=caption))])
