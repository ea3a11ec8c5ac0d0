"""Heat maps of effects: layer x position, layer x head, and layer x position x head as one panel per head.

Colours are those of the circuit graph: blue for positive effects, orange for negative, centred at zero and symmetric,
one scale for all panels of a figure. Small maps carry their numbers. Layers run upwards, as in the circuit graph.
Positions stand at integers with the tokens as tick labels, so that equal tokens stay apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from ...display import draws
from ...errors import InputError
from ...names import EXPERT_OUT, expert_name, head_name, mlp_name
from ...patching.result import Effect, Effects
from ..page.figure import MUTED, NEGATIVE, POSITIVE, figure_fragment, figures_page, plotly_text, titled
from ..page.page import Fragment
from ..page.text import fixed, plain, plural, shorten, show_token, signed, words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DIVERGING = (
    "#8f3e00", "#b84f00", "#D55E00", "#e8985c", "#f6d3ba", "#f7f7f7", "#c3dcec", "#7fb6d8", "#0072B2", "#005c90",
    "#00436a",
)  # fmt: skip
SCALE = [[i / (len(DIVERGING) - 1), colour] for i, colour in enumerate(DIVERGING)]
COLUMNS = 4
MOST_NUMBERS = 130
"""Cells up to which a map carries its numbers."""
AXIS_WORDS = {
    "layer": "layer", "pos": "position", "head": "head", "neuron": "neuron", "expert": "expert", "writer": "writer",
    "reader": "reader",
}  # fmt: skip
SITE_WORDS = {
    "resid_pre": "residual stream entering the block", "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream leaving the "
                  "block", "attn_out": "attention output", "mlp_out": "MLP output", "z": "heads",
    "path": "direct paths", "embed": "token embeddings", "attn_scores": "attention before the "
                                                                        "softmax", "mlp_post": "neurons",
    "q": "queries of heads", "k": "keys of heads", "v": "values of heads", "pattern": "attention patterns",
    "result": "heads", "expert_out": "experts of a mixture", "router_logits": "what the router says",
}  # fmt: skip


def heatmap_figure(effect: Effect, *, limit: float | None = None) -> Figure:
    """The heat map of one kind of site as a plotly figure; effects with one axis become bars.

    `limit` fixes the colour range (default: the largest effect).

    Raises:
        InputError: the effect has axes that no heat map has; or no cells.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if len(effect.axes) == 1:
        return _bars(effect)
    panels = _panels(effect)
    values = effect.values
    bound = limit or float(values.nan_to_num().abs().max()) or 1.0
    n_columns = min(COLUMNS, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    titles = [name for name, _, _ in panels] if len(panels) > 1 else None
    spacing = min(0.22, 0.9 / n_rows)
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=titles,
        shared_yaxes=True,
        shared_xaxes=len(panels) > 1,
        horizontal_spacing=0.05,
        vertical_spacing=spacing,
    )
    x_axis = "pos" if "pos" in effect.axes else effect.axes[-1]
    labels = effect.labels[x_axis]
    layers = effect.labels[effect.axes[0]]
    for i, (name, cells, errors) in enumerate(panels):
        trace = go.Heatmap(
            z=cells.tolist(),
            x=list(range(len(labels))),
            y=list(range(len(layers))),
            customdata=_cell_data(effect, name, cells, errors, labels, layers),
            hovertemplate="%{customdata[0]}<br>effect %{customdata[1]}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            **_numbers(cells, len(panels)),
        )
        figure.add_trace(trace, row=i // n_columns + 1, col=i % n_columns + 1)
    _axes(figure, effect, x_axis, n_rows=n_rows, n_columns=n_columns)
    figure.update_layout(
        coloraxis={
            "colorscale": SCALE,
            "cmid": 0,
            "cmin": -bound,
            "cmax": bound,
            "colorbar": {
                "title": {"text": "effect", "side": "top"},
                "thickness": 12,
                "outlinewidth": 0,
                "len": 1.0,
                "x": 1.02,
            },
        }
    )
    width, height, bottom = _size(effect, labels, n_rows=n_rows, n_columns=n_columns)
    figure.update_layout(margin={"l": 56, "r": 96, "t": 82 if len(panels) > 1 else 66, "b": bottom})
    return titled(figure, heading(effect), _subtitle(effect), width=width, height=height)


def _numbers(cells: Tensor, n_panels: int) -> dict[str, object]:
    """Each cell's number, where the map is small enough to read them."""
    if cells.numel() > MOST_NUMBERS or n_panels > 1:
        return {}
    size = float(cells.nan_to_num().abs().max())
    digits = 1 if size >= 1 else 2
    text = [["" if v != v else fixed(v, digits) if round(v, digits) else "0" for v in row] for row in cells.tolist()]
    return {"text": text, "texttemplate": "%{text}", "textfont": {"size": 11}}


def heatmap_fragment(effect: Effect, *, limit: float | None = None) -> Fragment:
    """The heat map as part of a page; its cells of heads and MLPs select their node in every view."""
    strongest = "; ".join(f"{plain(place)} {signed(value)}" for place, value in effect.top(5))
    alternative = f"Heat map: {heading(effect)}. {_subtitle(effect)}. Largest: {shorten(strongest, 400)}"
    return figure_fragment(heatmap_figure(effect, limit=limit), alternative, follow="cells")


def render_heatmap(effect: Effect | Effects) -> str:
    """One self-contained HTML page with the heat map of an effect, or of every kind of site of some effects."""
    effects = [effect] if isinstance(effect, Effect) else list(effect.values())
    if not effects:
        raise InputError("there are no effects to draw; patch or attribute at one kind of site at least")
    return figures_page(_page_title(effects[0]), [heatmap_fragment(one) for one in effects])


draws(Effect)(render_heatmap)
draws(Effects)(render_heatmap)


def heading(effect: Effect) -> str:
    """Site, metric, direction, and whether the effects were measured or are ESTIMATED."""
    how = "ESTIMATED" if effect.estimated else "measured"
    if effect.provenance.get("method") == "ablation sweep":
        kind = effect.provenance["ablation"][effect.kind]["spec"]["kind"]
        return f"{effect.kind}: effect of {words(kind)} ablation on {words(effect.metric_name)}, {how}"
    return (
        f"{effect.kind}: {'denoising' if effect.direction == 'denoise' else 'noising'} effect on "
        f"{words(effect.metric_name)}, {how}"
    )


def node_of(kind: str, layer: str, head: str | None) -> str:
    """The node of the circuit graph that a cell is about; empty where there is none."""
    if kind == "mlp_out":
        return mlp_name(layer)
    if kind == EXPERT_OUT:
        return expert_name(layer, head) if head is not None else ""
    return head_name(layer, head) if head is not None and kind in ("z", "result", "q", "pattern") else ""


def _page_title(effect: Effect) -> str:
    task = effect.provenance.get("task", {})
    name = task.get("name", "") if isinstance(task, dict) else ""
    return f"{'Estimated' if effect.estimated else 'Measured'} effects{f' on {name}' if name else ''}"


def _subtitle(effect: Effect) -> str:
    ends = f"clean {signed(effect.baseline.clean)}, corrupt {signed(effect.baseline.corrupt)}"
    where = SITE_WORDS.get(effect.kind, effect.kind)
    return f"{where}; mean over {plural(len(effect.per_example), 'pair')}; {ends}"


def _panels(effect: Effect) -> list[tuple[str, Tensor, Tensor]]:
    """(panel title, values, standard errors), each ``[first axis, x]``, one per head when layers, positions and heads
    vary.
    """
    values, errors = effect.values, effect.standard_error() if len(effect.per_example) > 1 else effect.values * math.nan
    if len(effect.axes) == 2:
        return [("", values, errors)]
    last = effect.axes[-1]
    if effect.axes == ("layer", "pos", last) and last in ("head", "expert"):
        return [(f"{last} {one}", values[:, :, i], errors[:, :, i]) for i, one in enumerate(effect.labels[last])]
    raise InputError(f"heat maps are drawn of one or two axes, or of layer, pos and head or expert; got {effect.axes}")


def _cell_data(
    effect: Effect, panel: str, cells: Tensor, errors: Tensor, labels: tuple[str, ...], layers: tuple[str, ...]
) -> list[list[list[str]]]:
    """Per cell: where, how much, and the node it selects."""
    alone = effect.axes in (("layer", "head"), ("layer", "expert"))
    rows = []
    for y, layer in enumerate(layers):
        row = []
        for x, label in enumerate(labels):
            head = label if alone else panel.removeprefix("head ").removeprefix("expert ") or None
            named = head_name if effect.axes[-1] == "head" else expert_name
            place = named(layer, label) if alone else _place(effect, layer, label, panel)
            error = float(errors[y, x])
            spread = "" if math.isnan(error) else f" ± {signed(error).lstrip('+')} (SE)"
            row.append([place, f"{signed(float(cells[y, x]))}{spread}", node_of(effect.kind, layer, head)])
        rows.append(row)
    return rows


def _place(effect: Effect, row: str, column: str, panel: str) -> str:
    """A cell in words."""
    if effect.axes == ("writer", "reader"):
        return f"{row} -> {column}"
    first = effect.axes[0]
    return f"{plotly_text(column, 60)}, {f'layer {row}' if first == 'layer' else row}{f', {panel}' if panel else ''}"


def _bars(effect: Effect) -> Figure:
    """Effects with one axis: bars with their standard errors."""
    import plotly.graph_objects as go

    values, errors, layers = (
        effect.values.tolist(),
        effect.standard_error().nan_to_num().tolist(),
        effect.labels[effect.axes[0]],
    )
    axis = effect.axes[0]
    bars = go.Bar(
        x=list(range(len(layers))), y=values, marker={"color": [POSITIVE if v >= 0 else NEGATIVE for v in values]},
        error_y={"type": "data", "array": errors, "color": MUTED, "thickness": 1.2},
        hovertemplate="%{customdata[0]}<br>effect %{customdata[1]}<extra></extra>",
        customdata=[[(f"{AXIS_WORDS[axis]} "
                     f"{plotly_text(layer, 60)}"), signed(v),
                     node_of(effect.kind, layer, None) if axis == "layer" else ""] for layer,
                     v in zip(layers, values, strict=True)],
    )  # fmt: skip
    figure = go.Figure([bars])
    figure.update_xaxes(
        title={"text": AXIS_WORDS[axis]},
        tickmode="array",
        tickvals=list(range(len(layers))),
        ticktext=[plotly_text(layer, 16) for layer in layers],
        showgrid=False,
    )
    figure.update_yaxes(title={"text": f"effect on {words(effect.metric_name)}"}, zeroline=True, showgrid=True)
    figure.update_layout(margin={"l": 64, "r": 24, "t": 66, "b": 48}, bargap=0.35)
    return titled(
        figure,
        heading(effect),
        f"{_subtitle(effect)}; bars: standard error",
        width=max(430, 90 + 34 * len(layers)),
        height=300,
    )


def _axes(figure: Figure, effect: Effect, x_axis: str, *, n_rows: int, n_columns: int) -> None:
    labels, layers = effect.labels[x_axis], effect.labels[effect.axes[0]]
    step = max(1, math.ceil(len(layers) / 16))
    common = {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 3, "automargin": False}
    shown = [f"{show_token(label, 16)}" for label in labels]
    every = max(1, math.ceil(len(labels) / 60))
    figure.update_xaxes(
        **common,
        tickmode="array",
        tickvals=list(range(0, len(labels), every)),
        ticktext=[plotly_text(text, 16) for text in shown[::every]],
        tickangle=-55 if x_axis in ("pos", "reader") and max(map(len, shown), default=0) > 2 else 0,
        range=[-0.5, len(labels) - 0.5],
    )
    figure.update_yaxes(
        **common,
        tickmode="array",
        tickvals=list(range(0, len(layers), step)),
        ticktext=[plotly_text(layer, 16) for layer in layers[::step]],
        range=[-0.5, len(layers) - 0.5],
    )
    for row in range(1, n_rows + 1):
        figure.update_yaxes(title={"text": AXIS_WORDS[effect.axes[0]], "standoff": 6}, row=row, col=1)
    for column in range(1, n_columns + 1):
        figure.update_xaxes(title={"text": AXIS_WORDS[x_axis], "standoff": 10}, row=n_rows, col=column)


def _size(effect: Effect, labels: tuple[str, ...], *, n_rows: int, n_columns: int) -> tuple[int, int, int]:
    """Width, height and bottom margin: square-ish cells of readable size, within what a page holds."""
    n_layers = len(effect.labels[effect.axes[0]])
    cell_x = min(46, max(7, (1000 if n_columns == 1 else 240) // max(1, len(labels))))
    cell_y = min(34, max(9, 420 // max(1, n_layers)))
    longest = max((len(show_token(label, 16)) for label in labels), default=1)
    bottom = 52 + (int(5.2 * longest) if {"pos", "reader"} & set(effect.axes) else 0)
    width = max(430, 56 + 96 + n_columns * (cell_x * len(labels) + 14))
    height = 66 + bottom + n_rows * (cell_y * n_layers + 24)
    return int(width), int(height), bottom
