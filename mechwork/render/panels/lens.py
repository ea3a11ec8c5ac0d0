"""Pictures of lenses: the token x layer table with the top-k on hover, trajectories, and bits per layer.

The table's columns are positions, never token strings, so equal tokens stay apart. Cells and their numbers stand in the
page as HTML and JSON; scripts only colour and answer the pointer. Settled cells (from the prediction depth on) are
underlined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...display import draws
from ...lenses.evaluate import LensEvaluation
from ...lenses.table import LensTable
from ...lenses.trajectory import MEASURES, UNITS, Trajectory, TrajectoryComparison
from ..page.figure import NEGATIVE, NEUTRAL, POSITIVE, figure_fragment, figures_page, plotly_text, titled
from ..page.page import Fragment, assemble, embed_json
from ..page.table import Column, table
from ..page.text import escape, fixed, number, percent, plural, show_token

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROWS = 16
"""Prompts drawn on one page."""

LABELS = {
    "top": "probability of the top token",
    "probability": "probability of the target",
    "entropy": "entropy",
    "kl": "KL to the model's output",
}

TITLES = {"rank": "rank", "probability": "probability", "entropy": "entropy", "kl": "KL"}


@draws(LensTable)
def render_lens(lens_table: LensTable) -> str:
    """One self-contained HTML page: the lens table of each prompt, and the trajectory of their last positions."""
    from ...lenses.trajectory import trajectory

    title = f"What every layer says: {lens_table.lens}"
    head = Fragment(f'<main class="mw-page"><h1>{escape(title)}</h1>')
    path = trajectory(lens_table)
    return assemble(
        title,
        [head, lens_fragment(lens_table), trajectory_fragment([path]), Fragment("</main>")],
        body_class="mw-standalone",
    )


def lens_fragment(lens_table: LensTable) -> Fragment:
    """The table as part of a page; the first 16 prompts."""
    n = min(ROWS, len(lens_table.tokens))
    prompts = [_prompt(lens_table, row) for row in range(n)]
    data = {"places": list(lens_table.places), "prompts": prompts}
    options = "".join(f'<option value="{name}">{escape(label)}</option>' for name, label in LABELS.items())
    choose = ""
    if n > 1:
        rows = "".join(
            f'<option value="{i}">{i + 1}: {escape(" ".join(p["tokens"]))}</option>' for i, p in enumerate(prompts)
        )
        choose = f"<label>prompt <select data-lens-row>{rows}</select></label>"
    more = f" The first {n} of {len(lens_table.tokens)} prompts." if n < len(lens_table.tokens) else ""
    says = (
        "Rows are places of the residual stream, the model's own output on top; each cell shows the most probable "
        "token there. Underlined: from here up "
        "the first choice is already the model's. Hover or move with the arrow keys for the "
        f"{plural(lens_table.top_ids.shape[-1], 'most probable token')}.{more}"
    )
    tables = "".join(_grid(lens_table, row, prompt, hidden=row > 0) for row, prompt in enumerate(prompts))
    body = (
        f'<div class="mw-lens" data-mw-lens>{embed_json(data)}<p class="mw-muted">{escape(says)}</p>'
        '<div class="mw-lens-controls" data-lens-controls hidden><label>colour <select '
        f"data-lens-measure>{options}</select></label>{choose}"
        '<span class="mw-muted"><span class="mw-lens-key"></span>'
        "<span data-lens-range></span></span></div>"
        f"{tables}</div>"
    )
    return Fragment(body, needs=("lens",))


def _prompt(t: LensTable, row: int) -> dict[str, Any]:
    """One prompt's cells: ``[place][pos]``."""
    n = int(t.mask[row].sum())

    def short(values: Any) -> list[list[float]]:
        return [[float(f"{v:.4g}") for v in place] for place in values[:, row, :n].tolist()]

    def shown(token: int) -> str:
        return show_token(t.texts[token], 24)

    return {
        "tokens": [shown(i) for i in t.tokens[row, :n].tolist()],
        "targets": [shown(i) for i in t.targets[row, :n].tolist()],
        "words": [[[[show_token(text, 24), round(p, 4)] for text,
        p in t.words(k, row, pos)] for pos in range(n)] for k in range(len(t.places))],
        "rank": [[int(v) for v in place] for place in t.rank[:, row, :n].tolist()],
        "probability": short(t.probability), "top": short(t.top_probabilities[..., 0]), "entropy": short(t.entropy),
        "kl": short(t.kl),
    }  # fmt: skip


def _grid(t: LensTable, row: int, prompt: dict[str, Any], *, hidden: bool) -> str:
    """The HTML table of one prompt, last place first."""
    heads = "".join(
        f"<th scope=col><small>{pos}</small><bdi>{escape(token)}</bdi></th>"
        for pos, token in reversed(list(enumerate(prompt["tokens"])))
    )
    depth = t.prediction_depth[row].tolist()
    lines = []
    for k in reversed(range(len(t.places))):
        cells = []
        for pos in reversed(range(len(prompt["tokens"]))):  # from the answer backwards
            settled = " class=is-settled" if k >= depth[pos] else ""
            cells.append(f"<td{settled}><bdi>{escape(prompt['words'][k][pos][0][0])}</bdi>")  # the script says which
        lines.append(f"<tr><th scope=row>{escape(t.places[k])}</th>{''.join(cells)}</tr>")
    off = " hidden" if hidden else ""
    caption = f"prompt {row + 1}"
    return (
        f'<div class="mw-scroll" tabindex="0" role="region" aria-label="{caption}"{off}><table class="mw-lens-grid" '
        f'data-lens-table="{row}">'
        f"<thead><tr><th scope=col>place</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def trajectory_figure(paths: list[Trajectory]) -> Figure:
    """Four panels over depth: rank, probability, entropy and divergence; mean over prompts, one line per trajectory."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        2,
        2,
        subplot_titles=[f"{TITLES[name]}, {UNITS[name]}".rstrip(", ") for name in MEASURES],
        horizontal_spacing=0.12,
        vertical_spacing=0.2,
    )
    for path, colour, dash in zip(paths, (POSITIVE, NEGATIVE, NEUTRAL), ("solid", "dash", "dot"), strict=False):
        for i, name in enumerate(MEASURES):
            mean = path.mean(name).tolist()
            figure.add_trace(
                go.Scatter(
                    x=path.share.tolist(), y=[v + 1 for v in mean] if name == "rank" else mean, mode="lines+markers",
                    name=plotly_text(path.label), showlegend=i == 0,
                    text=[f"{place}: {number(v)}" for place, v in zip(path.places, mean, strict=True)],
                    hovertemplate="%{text}<extra></extra>",
                    line={"color": colour, "dash": dash, "width": 2}, marker={"color": colour, "size": 6},
                ),
                row=i // 2 + 1, col=i % 2 + 1,
            )  # fmt: skip
    figure.update_yaxes(type="log", title={"text": "rank + 1 (log)"}, row=1, col=1)
    figure.update_xaxes(title={"text": "depth (1 = output)"}, row=2)
    figure.update_layout(legend={"orientation": "h", "y": -0.16, "x": 0}, margin={"l": 64, "r": 24, "t": 84, "b": 90})
    n = len(paths[0].depth)
    return titled(
        figure,
        "How the prediction forms",
        f"mean over {plural(n, 'prompt')}, one position each; measured",
        width=820,
        height=560,
    )


def trajectory_fragment(paths: list[Trajectory]) -> Fragment:
    """The panels and their numbers."""
    parts = []
    for path in paths:
        columns = [Column("place", path.places)]
        columns += [
            Column(TITLES[name], [number(v) for v in path.mean(name).tolist()], numeric=True) for name in MEASURES
        ]
        parts.append(table(columns, caption=f"{path.label}: mean over prompts"))
    alternative = (
        f"Trajectories over depth of {', '.join(path.label for path in paths)}; the folded tables below "
        "have the numbers."
    )
    figure = figure_fragment(trajectory_figure(paths), alternative)
    numbers = f'<details class="mw-fallback"><summary>The numbers by place</summary>{"".join(parts)}</details>'
    return Fragment(figure.body + numbers, needs=figure.needs)


@draws(Trajectory)
def render_trajectory(path: Trajectory) -> str:
    """One self-contained HTML page with one trajectory."""
    return figures_page("How the prediction forms", [trajectory_fragment([path])])


@draws(TrajectoryComparison)
def render_comparison(comparison: TrajectoryComparison) -> str:
    """One self-contained HTML page with both trajectories and their difference."""
    head = Column("depth", [fixed(v, 2) for v in comparison.share.tolist()], numeric=True)
    columns = [
        Column(TITLES[name], [number(v) for v in comparison.difference[name].mean(dim=1).tolist()], numeric=True)
        for name in MEASURES
    ]
    difference = table(
        [head, *columns],
        caption=f"{comparison.second.label} minus {comparison.first.label} (rank as log2(rank + 1)), mean over prompts",
    )
    return figures_page(
        "Two trajectories", [trajectory_fragment([comparison.first, comparison.second]), Fragment(difference)]
    )


def bits_figure(measured: LensEvaluation) -> Figure:
    """Divergence per place of the lens and the logit lens, with intervals over rows of text."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for column, name, colour, dash, symbol in (
        ("kl", measured.lens, POSITIVE, "solid", "circle"),
        ("logit_kl", "logit lens", NEGATIVE, "dash", "square"),
    ):
        mean, (low, high) = measured.mean(column), measured.interval(column)
        figure.add_trace(
            go.Scatter(
                x=list(range(len(measured.places))), y=mean.tolist(), mode="lines+markers", name=plotly_text(name, 40),
                error_y={"type": "data", "symmetric": False, "array": (high - mean).tolist(),
                "arrayminus": (mean - low).tolist(), "color": colour, "thickness": 1.2},
                text=[f"{place}: {number(v)} "
                      "bits" for place, v in zip(measured.places, mean.tolist(), strict=True)],
                      hovertemplate="%{text}<extra></extra>",
                line={"color": colour, "dash": dash, "width": 2}, marker={"color": colour, "size": 6, "symbol": symbol},
            )
        )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(measured.places))), ticktext=list(measured.places), tickangle=-40)
    figure.update_yaxes(title={"text": "D(model || reading), bits"}, rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.34, "x": 0}, margin={"l": 64, "r": 24, "t": 66, "b": 130})
    return titled(
        figure,
        "Bits per layer",
        f"{plural(len(measured.n), 'row')} of text, {int(measured.n.sum()):,} positions; 95 % intervals over rows; "
        "measured",
        width=820,
        height=460,
    )


def transfer_figure(measured: LensEvaluation) -> Figure:
    """Divergence of every translator at every place."""
    import plotly.graph_objects as go

    assert measured.transfer is not None
    names = list(measured.places[:-1])
    z = measured.transfer.clamp(min=1e-4).log10()
    text = [
        [f"translator of {a}<br>at {b}: {number(v)} bits" for b, v in zip(names, row, strict=True)]
        for a, row in zip(names, measured.transfer.tolist(), strict=True)
    ]
    places = list(range(len(names)))
    bar = {"title": {"text": "log10 bits", "side": "top"}, "thickness": 12, "outlinewidth": 0}
    figure = go.Figure(
        go.Heatmap(
            z=z.tolist(),
            x=places,
            y=places,
            text=text,
            hovertemplate="%{text}<extra></extra>",
            colorscale="Blues",
            colorbar=bar,
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(tickvals=places, ticktext=names, tickangle=-40, title={"text": "states of"})
    figure.update_yaxes(tickvals=places, ticktext=names, title={"text": "translator of"})
    figure.update_layout(margin={"l": 110, "r": 90, "t": 66, "b": 110})
    return titled(
        figure,
        "How far translators can be exchanged",
        "D(model || reading), log scale; measured",
        width=640,
        height=560,
    )


@draws(LensEvaluation)
def render_evaluated_lens(measured: LensEvaluation) -> str:
    """One self-contained HTML page: bits per layer, the transfer matrix where there is one, and the numbers."""
    low, high = measured.interval("kl")
    mean = {name: measured.mean(name).tolist() for name in (*measured.sums, "gain")}
    columns = [
        Column("place", measured.places), Column("KL, bits", [fixed(v) for v in mean["kl"]], numeric=True),
        Column("95 % interval", [f"[{fixed(a)}, "
                                 f"{fixed(b)}]" for a, b in zip(low.tolist(), high.tolist(), strict=True)],
                                 numeric=True),
        Column("logit lens", [fixed(v) for v in mean["logit_kl"]], numeric=True),
        Column("gain", [fixed(v) for v in mean["gain"]], numeric=True),
        Column("CE, bits", [fixed(v) for v in mean["ce"]], numeric=True),
        Column("logit lens", [fixed(v) for v in mean["logit_ce"]], numeric=True),
        Column("top-1", [percent(v) for v in mean["top1"]], numeric=True),
        Column("logit lens", [percent(v) for v in mean["logit_top1"]], numeric=True),
    ]  # fmt: skip
    alternative = "; ".join(
        f"{place} {number(a)} bits (logit lens {number(b)})"
        for place, a, b in zip(measured.places, mean["kl"], mean["logit_kl"], strict=True)
    )
    fragments = [figure_fragment(bits_figure(measured), alternative), Fragment(table(columns, caption=measured.lens))]
    if measured.transfer is not None:
        fragments.append(figure_fragment(transfer_figure(measured), "Transfer matrix of translators between places"))
    return figures_page(f"Evaluation of a lens: {measured.lens}", fragments)
