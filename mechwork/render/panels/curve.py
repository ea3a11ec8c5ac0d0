"""Faithfulness over the share of edges, with its interval, beside random circuits of the same sizes and the
empty one.
"""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from ...circuits.testing.curves import CircuitEvaluation, FaithfulnessCurve
from ...display import draws
from ..page.figure import INK, MUTED, NEGATIVE, NEUTRAL, POSITIVE, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, fixed, number, percent, plural, signed, words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def curve_figure(curve: FaithfulnessCurve, *, chosen: CircuitEvaluation | None = None, pairs: str = "pair") -> Figure:
    """The curve as a plotly figure; `chosen` marks one circuit that was evaluated on its own, `pairs` says
    which pairs.
    """
    import plotly.graph_objects as go

    low, high = (list(side) for side in zip(*curve.intervals(), strict=True))
    x = list(curve.fractions)
    hover = [f"{count(n)} edges ({percent(f)})" for n, f in zip(curve.sizes, curve.fractions, strict=True)]

    def line(y: list[float], name: str, colour: str, dash: str, symbol: str) -> go.Scatter:
        shown = [i for i, v in enumerate(y) if not isnan(v)]
        said = [f"{name.split(' (', maxsplit=1)[0]}: {number(y[i])}<br>{hover[i]}" for i in shown]
        return go.Scatter(
            x=[x[i] for i in shown], y=[y[i] for i in shown], name=name,
            mode="lines+markers", text=said, hovertemplate="%{text}<extra></extra>",
            line={"color": colour, "dash": dash, "width": 2}, marker={"color": colour, "size": 6, "symbol": symbol},
        )  # fmt: skip

    band = go.Scatter(
        x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor="rgba(0,114,178,0.18)", line={"width": 0},
        hoverinfo="skip",
        name="95 % interval over pairs", mode="lines",
    )  # fmt: skip
    figure = go.Figure(
        [
            band,
            line(
                curve.faithfulness.tolist(), f"by absolute score (CMD {number(curve.cmd)})", POSITIVE, "solid", "circle"
            ),
            line(curve.signed.tolist(), f"by signed score (CPR {number(curve.cpr)})", NEGATIVE, "dash", "square"),
            line(
                curve.random.tolist(),
                f"random circuits (CPR {number(curve.random_cpr)}, CMD {number(curve.random_cmd)})",
                NEUTRAL,
                "dot",
                "diamond",
            ),
        ]
    )
    if chosen is not None:
        figure.add_trace(_chosen_mark(chosen))
    for height, name in ((0.0, "empty circuit"), (1.0, "whole model")):
        figure.add_hline(
            y=height,
            line={"color": MUTED, "width": 1, "dash": "4px 3px"},
            annotation={
                "text": name,
                "font": {"size": 11, "color": MUTED},
                "xanchor": "left",
                "x": 0.004,
                "yanchor": "top" if height == 0 else "bottom",
            },
        )
    figure.update_xaxes(
        type="log",
        title={"text": "share of the model's edges (log scale)"},
        tickvals=x,
        ticktext=[_tick(f) for f in x],
        showgrid=True,
        zeroline=False,
    )
    figure.update_yaxes(title={"text": "faithfulness"}, zeroline=False, showgrid=True)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.24, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 66, "b": 150},
    )
    n = len(curve.model_per_example)
    subtitle = f"{words(curve.metric_name)}, {curve.ablation} ablation of all other edges, {plural(n, pairs)}; measured"
    return titled(figure, "Faithfulness over circuit size", subtitle, width=820, height=480)


def curve_fragment(
    curve: FaithfulnessCurve, *, chosen: CircuitEvaluation | None = None, pairs: str = "pair"
) -> Fragment:
    """The curve as part of a page."""
    rows = ", ".join(
        f"{percent(f)} {number(v)}" for f, v in zip(curve.fractions, curve.faithfulness.tolist(), strict=True)
    )
    alternative = f"Faithfulness over the share of edges: {rows}. CPR {number(curve.cpr)}, CMD {number(curve.cmd)}."
    return figure_fragment(curve_figure(curve, chosen=chosen, pairs=pairs), alternative)


def curve_table(curve: FaithfulnessCurve) -> str:
    """The numbers of the curve."""
    low, high = zip(*curve.intervals(), strict=True)
    columns = [
        Column("edges", [count(n) for n in curve.sizes], numeric=True),
        Column("share", [percent(f) for f in curve.fractions], numeric=True),
        Column("kept after pruning", [count(n) for n in curve.n_kept], numeric=True),
        Column("faithfulness", [fixed(v) for v in curve.faithfulness.tolist()], numeric=True),
        Column("95 % interval", [f"[{fixed(a)}, {fixed(b)}]" for a, b in zip(low, high, strict=True)], numeric=True),
        Column("by signed score", [fixed(v) for v in curve.signed.tolist()], numeric=True),
        Column("random", ["" if isnan(v) else fixed(v) for v in curve.random.tolist()], numeric=True),
    ]
    return table(columns, caption="Faithfulness by circuit size; 0 = empty circuit, 1 = whole model")


def evaluation_table(evaluations: list[CircuitEvaluation], pairs: str = "pair") -> str:
    """Circuits beside the whole model, random circuits of the same size, and the empty circuit."""
    names, edges, faith, interval, metric, accuracy = [], [], [], [], [], []
    for evaluation in evaluations:
        low, high = evaluation.interval()
        n = count(evaluation.circuit.n_edges)
        controls = evaluation.random
        mean = sum(controls) / len(controls) if controls else float("nan")
        spread = f"[{fixed(min(controls))}, {fixed(max(controls))}] (range)" if controls else ""
        names += [
            f"the circuit ({evaluation.ablation} ablation)",
            "whole model",
            f"random circuits, mean of {len(controls)}",
            "empty circuit",
        ]
        edges += [n, count(evaluation.circuit.space.n_edges), n, "0"]
        faith += [fixed(evaluation.faithfulness), "1", fixed(mean), "0"]
        interval += [f"[{fixed(low)}, {fixed(high)}]", "", spread, ""]
        model = float(evaluation.model_per_example.mean())
        metric += [signed(evaluation.metric), signed(model), "", signed(evaluation.empty)]
        accuracy += [percent(evaluation.accuracy), percent(evaluation.model_accuracy), "", ""]
    n_pairs = len(evaluations[0].per_example) if evaluations else 0
    columns = [
        Column("edges kept", names), Column("edges", edges, numeric=True), Column("faithfulness", faith, numeric=True),
        Column("95 % interval", interval, numeric=True),
        Column(f"mean {words(evaluations[0].metric_name) if evaluations else 'metric'}", metric, numeric=True),
        Column("accuracy", accuracy, numeric=True),
    ]  # fmt: skip
    return table(columns, caption=f"The circuit beside its controls, measured on the same {plural(n_pairs, pairs)}")


@draws(FaithfulnessCurve)
def render_curve(curve: FaithfulnessCurve) -> str:
    """One self-contained HTML page with the curve and its numbers."""
    return figures_page("Faithfulness over circuit size", [curve_fragment(curve), Fragment(curve_table(curve))])


@draws(CircuitEvaluation)
def render_evaluation(evaluation: CircuitEvaluation) -> str:
    """One self-contained HTML page with the circuit's faithfulness beside its controls."""
    return figures_page("Evaluation of a circuit", [Fragment(evaluation_table([evaluation]))])


def _chosen_mark(chosen: CircuitEvaluation) -> object:
    import plotly.graph_objects as go

    low, high = chosen.interval()
    value = chosen.faithfulness
    return go.Scatter(
        x=[chosen.circuit.fraction], y=[value], mode="markers", name="the circuit of this report "
                                                                     f"({plural(chosen.circuit.n_edges, 'edge')})",
        error_y={"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low], "color": INK,
        "thickness": 1.5},
        marker={"symbol": "star", "size": 13, "color": INK}, text=[("faithfulness "
                                                                   f"{number(value)}<br>"
                                                                   f"{plural(chosen.circuit.n_edges, 'edge')}")],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _tick(share: float) -> str:
    return f"{100 * share:g}%"
