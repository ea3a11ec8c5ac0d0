"""Two models drawn: how far apart they are layer by layer beside noise of the same size, and what patching one into the
other carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...comparison import AcrossModels, Divergence
from ...display import draws
from ..page.figure import MUTED, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import fixed, number, plural, words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


def divergence_figure(found: Divergence) -> Figure:
    """Distance by layer, one line per kind of site with its null dashed below, and KL of the stream's readings beside
    it.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, horizontal_spacing=0.14)
    for i, kind in enumerate(found.kinds):
        rows, colour = found.of(kind), COLOURS[i % len(COLOURS)]
        if not any(row.distance or row.null for row in rows):
            continue  # a kind of site that these models do not write to, such as MLPs of a model without any
        layers = [row.layer for row in rows]
        line = go.Scatter(
            x=layers, y=[row.distance for row in rows], name=words(kind), mode="lines+markers",
            line={"color": colour, "width": 2}, marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8,
            "color": colour},
            error_y={
                "type": "data", "array": [row.interval[1] - row.distance for row in rows],
                "arrayminus": [row.distance - row.interval[0] for row in rows], "thickness": 1, "width": 2,
                "color": colour,
            },
            hovertemplate=f"{words(kind)}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
        null = go.Scatter(
            x=layers, y=[row.null for row in rows], mode="lines", showlegend=False,
            line={"color": colour, "width": 1, "dash": "4px 3px"},
            hovertemplate=f"{words(kind)}, noise, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(line, row=1, col=1)
        figure.add_trace(null, row=1, col=1)
    stream = [row for row in found.rows if row.kl is not None]
    for values, name, dash in (
        ([row.kl for row in stream], "KL of the stream's readings", "solid"),
        ([row.null_kl for row in stream], "the same with noise", "4px 3px"),
    ):
        trace = go.Scatter(
            x=[row.layer for row in stream], y=values, mode="lines+markers", name=name, showlegend=False,
            line={"color": COLOURS[0], "width": 2 if dash == "solid" else 1, "dash": dash},
            marker={"color": COLOURS[0], "size": 6},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}} nats<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=1, col=2)
    figure.update_xaxes(title={"text": "layer"}, dtick=1, showgrid=False, zeroline=False)
    figure.update_yaxes(title={"text": "distance"}, rangemode="tozero", showgrid=True, row=1, col=1)
    figure.update_yaxes(title={"text": "KL at the last token, nats"}, rangemode="tozero", showgrid=True, row=1, col=2)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.2, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 72, "b": 96},
    )
    a, b = found.names
    subtitle = (
        f"{a} and {b} on {found.task_name}, {plural(found.n_pairs, 'prompt')}; dashed: weights with noise of "
        "the same size"
    )
    return titled(figure, "Where two models come apart", subtitle, width=860, height=440)


def across_figure(found: AcrossModels) -> Figure:
    """Share of the difference between the models that each site carries, by layer, one line per kind (heads as
    points).
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    kinds = list(dict.fromkeys(row.site.kind for row in found.rows))
    for i, kind in enumerate(kinds):
        rows = [row for row in found.rows if row.site.kind == kind]
        heads = any(row.site.head is not None for row in rows)
        colour = COLOURS[i % len(COLOURS)]
        trace = go.Scatter(
            x=[row.site.layer for row in rows], y=[row.share for row in rows], name=words(kind),
            mode="markers" if heads else "lines+markers", line={"color": colour, "width": 2},
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8, "color": colour},
            error_y={
                "type": "data", "array": [max(0.0, row.interval[1] - row.share) for row in rows],
                "arrayminus": [max(0.0, row.share - row.interval[0]) for row in rows], "thickness": 1, "width": 2,
                "color": colour,
            },
            text=[str(row.site) for row in rows], hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace)
    for height, name in ((0.0, "the host"), (1.0, "the donor")):
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
    figure.update_xaxes(title={"text": "layer"}, dtick=1, showgrid=False, zeroline=False)
    figure.update_yaxes(title={"text": "share of the difference"}, zeroline=False, showgrid=True)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.2, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 72, "b": 96}, showlegend=True,
    )  # fmt: skip
    subtitle = f"{found.task_name}, positions: {found.position}; one site of the donor at a time, bars: 95 % over pairs"
    return titled(figure, "What one model's activations carry into the other", subtitle, width=760, height=440)


@draws(Divergence)
def render_divergence(found: Divergence, across: AcrossModels | None = None) -> str:
    """One self-contained HTML page: the plot, and every number in a table; with `across`, what patching carries below
    it.
    """
    return figures_page("Two models", [*_divergence_parts(found), *([] if across is None else _across_parts(across))])


@draws(AcrossModels)
def render_across(found: AcrossModels) -> str:
    """One self-contained HTML page: the plot, and every number in a table."""
    return figures_page("Patching across models", _across_parts(found))


def _divergence_parts(found: Divergence) -> list[Fragment]:
    said = _said(found)
    figure = figure_fragment(divergence_figure(found), said)
    return [Fragment(f"<p>{said}</p>"), figure, divergence_table(found)]


def _across_parts(found: AcrossModels) -> list[Fragment]:
    best = found.best(1)[0]
    said = f"{best.site} of the donor carries most of the difference: {fixed(best.share)} of it."
    rows = found.rows
    columns = [
        Column("site", [str(row.site) for row in rows]),
        Column("effect", [fixed(row.effect) for row in rows], numeric=True),
        Column(
            "share", [f"{fixed(r.share)} [{fixed(r.interval[0])}, {fixed(r.interval[1])}]" for r in rows], numeric=True
        ),
    ]
    caption = (
        f"Measured: metric {fixed(found.baseline.corrupt)} of the host, {fixed(found.baseline.clean)} of the donor"
    )
    figure = figure_fragment(across_figure(found), said)
    return [Fragment(f"<p>{said}</p>"), figure, Fragment(table(columns, caption=caption))]


def divergence_table(found: Divergence) -> Fragment:
    """Every row, the null beside what was measured."""
    rows = found.rows
    columns = [
        Column("site", [f"{row.kind}.{row.layer}" for row in rows]),
        Column(
            "distance",
            [f"{fixed(r.distance)} [{fixed(r.interval[0])}, {fixed(r.interval[1])}]" for r in rows],
            numeric=True,
        ),
        Column("with noise", [fixed(row.null) for row in rows], numeric=True),
        Column("over it", ["yes" if row.over_null else "no" for row in rows]),
        Column("cosine", [fixed(row.cosine) for row in rows], numeric=True),
        Column("KL", ["" if row.kl is None else number(row.kl) for row in rows], numeric=True),
        Column("KL with noise", ["" if row.null_kl is None else number(row.null_kl) for row in rows], numeric=True),
        Column("change of the weights", [fixed(row.weights) for row in rows], numeric=True),
    ]
    caption = (
        f"Measured; noise: the largest of {plural(found.n_null, 'draw')} as large as the change of every parameter"
    )
    return Fragment(table(columns, caption=caption))


def _said(found: Divergence) -> str:
    first, read = (
        "nowhere" if layer is None else f"from layer {layer} on" for layer in (found.first_layer, found.first_read)
    )
    return (
        "The control is noise in one model's weights, as large as the two models' difference. "
        f"The residual streams differ more than under noise {first}; the words read from them {read}. "
        f"The outputs differ by {number(found.output_kl)} nats; the metric is {fixed(found.metric[0])} and "
        f"{fixed(found.metric[1])}."
    )
