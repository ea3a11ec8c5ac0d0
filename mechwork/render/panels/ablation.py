"""Pictures of ablation studies: cumulative curves, task x component maps, direct against total effects, interactions,
training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...ablation.cumulative import ORDERS, CumulativeAblation
from ...ablation.formation import BACK, CONDITIONS, Formation
from ...ablation.impairment import Impairment
from ...ablation.interactions import Interactions
from ...ablation.repair import SelfRepair
from ...ablation.telemetry_training import TelemetryOverTraining
from ...display import draws
from ..page.figure import MUTED, NEGATIVE, NEUTRAL, POSITIVE, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.text import number, percent, signed, words
from .ablation_tables import formation_table, impairment_table, repair_table, training_table
from .heatmap import SCALE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = (POSITIVE, NEGATIVE, NEUTRAL)
MORE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def cumulative_figure(study: CumulativeAblation) -> Figure:
    """The metric over the number of ablated targets: most and least important first with 95 % bands, random orders as
    one.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    x = list(study.sizes)
    for name, colour in zip(ORDERS, COLOURS, strict=False):
        low, high = study.interval(name).tolist()
        rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        figure.add_trace(
            go.Scatter(x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=f"rgba({rgb},0.18)",
            line={"width": 0}, hoverinfo="skip", showlegend=False)
        )  # fmt: skip
        figure.add_trace(_line(x, study.mean(name).tolist(), name, colour))
    randoms = [name for name in study.curves if name not in ORDERS]
    for i, name in enumerate(randoms):
        figure.add_trace(_line(x, study.mean(name).tolist(), "random orders", NEUTRAL, dash="dot", shown=i == 0))
    figure.add_hline(
        y=float(study.clean.mean()),
        line={"color": MUTED, "width": 1, "dash": "4px 3px"},
        annotation={"text": "intact", "font": {"size": 11, "color": MUTED}},
    )
    figure.update_xaxes(title={"text": "ablated targets"}, zeroline=False, showgrid=True)
    figure.update_yaxes(title={"text": words(study.metric_name)}, zeroline=True, showgrid=True)
    figure.update_layout(legend={"orientation": "h", "y": -0.2}, margin={"l": 64, "r": 24, "t": 66, "b": 80})
    subtitle = f"{study.kind} ablation, {len(study.clean)} pairs; bands: 95 % intervals over pairs; measured"
    return titled(figure, "Cumulative ablation", subtitle, width=760, height=420)


@draws(CumulativeAblation)
def render_cumulative(study: CumulativeAblation) -> str:
    """One page: the curves, and the order of importance."""
    halves = "; ".join(f"{name}: half is lost after {study.half(name) or 'more than all measured'}" for name in ORDERS)
    fragment = figure_fragment(cumulative_figure(study), f"Metric over the number of ablated targets. {halves}.")
    return figures_page(
        "Cumulative ablation", [fragment, Fragment(f"<p>Most important first: {', '.join(study.ranking)}</p>")]
    )


def impairment_figure(study: Impairment) -> Figure:
    """Task x component: what share of each task's metric is lost with each component."""
    values = study.drops.tolist()
    text = [
        [f"{task}, {name}: {percent(v)}, accuracy {signed(-float(study.accuracy_drops[i, j]))}, others of its kind "
         f"and layer {percent(float(study.controls[i, j]))}" for j,
         (name, v) in enumerate(zip(study.components, row, strict=True))]
        for i, (task, row) in enumerate(zip(study.tasks, values, strict=True))
    ]  # fmt: skip
    subtitle = (
        f"share of each task's own {words(study.metric_name)} lost when a component is {study.kind}-ablated; "
        "measured on held-out pairs"
    )
    return labelled_map(values, study.tasks, study.components, text, "Selective impairment", subtitle, limit=1.0)


@draws(Impairment)
def render_impairment(study: Impairment) -> str:
    """One page: the map, and the chosen sets beside matched random ones."""
    rows = "; ".join(f"{s.chosen_for} components on {s.task}: {percent(s.drop)}" for s in study.sets)
    return figures_page(
        "Selective impairment", [figure_fragment(impairment_figure(study), rows), Fragment(impairment_table(study))]
    )


def interactions_figure(study: Interactions) -> Figure:
    """Target x target: redundant positive, synergistic negative."""
    values = study.values.tolist()
    text = [
        [f"{a} and {b}: {signed(v)}" for b, v in zip(study.targets, row, strict=True)]
        for a, row in zip(study.targets, values, strict=True)
    ]
    subtitle = f"effect of both less the effects of each, {words(study.metric_name)}, {study.kind} ablation"
    return labelled_map(
        values,
        study.targets,
        study.targets,
        text,
        "Pairwise interactions: blue redundant, orange synergistic",
        subtitle,
    )


@draws(Interactions)
def render_interactions(study: Interactions) -> str:
    """One page with the map."""
    top = "; ".join(f"{a} and {b} {signed(v)}" for a, b, v, _ in study.top(5))
    return figures_page("Pairwise interactions", [figure_fragment(interactions_figure(study), f"Largest: {top}")])


def _free_labels(names: Sequence[str], x: list[float], y: list[float], wide: float) -> list[str]:
    """Names of the points far from the middle; of points that lie close together only that of the farthest."""
    order = sorted(range(len(names)), key=lambda i: -max(abs(x[i]), abs(y[i])))
    kept: list[int] = []
    for i in order:
        far = max(abs(x[i]), abs(y[i])) > 0.15 * wide
        if far and all(abs(x[i] - x[j]) > 0.16 * wide or abs(y[i] - y[j]) > 0.08 * wide for j in kept):
            kept.append(i)
    return [name if i in kept else "" for i, name in enumerate(names)]


def repair_figure(study: SelfRepair) -> Figure:
    """Direct against total effect of every head; on the line nothing is repaired, below it the rest of the model makes
    up.
    """
    import plotly.graph_objects as go

    direct, total = study.direct.mean(dim=1).tolist(), study.total.mean(dim=1).tolist()
    n = study.direct.shape[1] ** 0.5
    error = [float(row.std()) / n if len(row) > 1 else 0.0 for row in study.total]
    wide = max(abs(v) for v in (*direct, *total, 1e-9)) * 1.25
    labels = _free_labels(study.ablated, direct, total, wide)
    said = [
        f"{name}<br>direct {signed(d)}<br>total {signed(t)}"
        for name, d, t in zip(study.ablated, direct, total, strict=True)
    ]
    figure = go.Figure(
        [
            go.Scatter(x=[-wide, wide], y=[-wide, wide], mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"},
            hoverinfo="skip", name="no repair"),
            go.Scatter(
                x=direct, y=total, mode="markers+text", text=labels, textposition="top center", textfont={"size": 11},
                name="heads",
                customdata=said, hovertemplate="%{customdata}<extra></extra>", marker={"color": POSITIVE, "size": 8},
                error_y={"type": "data", "array": error, "color": MUTED, "thickness": 1},
            ),
        ]
    )  # fmt: skip
    figure.update_xaxes(title={"text": "direct effect"}, range=[-wide, wide], zeroline=True, showgrid=True)
    figure.update_yaxes(title={"text": "total effect of ablating"}, range=[-wide, wide], zeroline=True, showgrid=True)
    figure.update_layout(margin={"l": 64, "r": 24, "t": 66, "b": 60}, showlegend=False)
    subtitle = (
        f"{study.kind} ablation, logit difference {number(study.clean)}; below the line: repaired, above: "
        "others lose with it; bars: SE"
    )
    return titled(figure, "Direct against total effect", subtitle, width=620, height=560)


@draws(SelfRepair)
def render_repair(study: SelfRepair) -> str:
    """One page: the scatter, and the split of what is repaired."""
    fragment = figure_fragment(repair_figure(study), f"{percent(study.share(), 0)} of the direct effects is repaired.")
    return figures_page("Self-repair", [fragment, Fragment(repair_table(study))])


def formation_figure(study: Formation) -> Figure:
    """Scores and loss over steps of training, and the loss with activations clamped to the last checkpoint's."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        1, 2, horizontal_spacing=0.1, subplot_titles=("scores of the best head", "loss at the repetition, nats")
    )
    steps = [row.step for row in study.rows]
    for (name, key), colour in zip(
        (("previous token", "previous_token"), ("induction", "induction")), COLOURS, strict=False
    ):
        figure.add_trace(_line(steps, [getattr(row, key) for row in study.rows], f"{name} score", colour), row=1, col=1)
    figure.add_trace(_line(steps, [row.loss for row in study.rows], "loss", "#1b1f24"), row=1, col=2)
    for name, colour in zip((CONDITIONS[0], CONDITIONS[1], CONDITIONS[2], CONDITIONS[4]), MORE, strict=True):
        figure.add_trace(
            _line(
                steps, [row.clamped[name] for row in study.rows], f"clamped to the last: {name}", colour, dash="dash"
            ),
            row=1,
            col=2,
        )
    figure.add_trace(_line(steps, [row.clamped[BACK] for row in study.rows], BACK, MUTED, dash="dot"), row=1, col=2)
    figure.update_xaxes(title={"text": "step of training"}, zeroline=False, showgrid=True)
    figure.update_yaxes(zeroline=False, showgrid=True, rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "x": 0}, margin={"l": 56, "r": 24, "t": 92, "b": 130})
    said = ", ".join(f"{what} {head}" for what, head in study.heads.items())
    return titled(
        figure, "Formation of induction", f"{study.model}; {said}; random lists said again", width=980, height=480
    )


@draws(Formation)
def render_formation(study: Formation) -> str:
    """One page: the curves and their numbers."""
    first, last = study.rows[0], study.rows[-1]
    words_ = (
        f"Induction score from {number(first.induction)} to {number(last.induction)}, loss from "
        f"{number(first.loss)} to {number(last.loss)}."
    )
    return figures_page(
        "Formation of induction", [figure_fragment(formation_figure(study), words_), Fragment(formation_table(study))]
    )


TRACED = ("perplexity", "norm", "ratio_to_median", "mean_sink", "entropy")
"""What is drawn of telemetry over training."""


def telemetry_figure(study: TelemetryOverTraining) -> Figure:
    """One panel per quantity over steps of training, one line per layer."""
    from plotly.subplots import make_subplots

    frame = study.to_dataframe()
    titles = (
        "perplexity",
        "norm of the stream",
        "largest / median",
        "attention to the first",
        "entropy, share of uniform",
    )
    figure = make_subplots(1, len(TRACED), horizontal_spacing=0.06, subplot_titles=titles)
    for at, name in enumerate(TRACED, start=1):
        for layer, rows in frame.groupby("layer"):
            if name == "perplexity" and layer:
                continue
            colour = NEUTRAL if name == "perplexity" else (POSITIVE, NEGATIVE, *MORE)[int(str(layer)) % 6]
            line = _line(rows["step"].tolist(), rows[name].tolist(), f"layer {layer}", colour, shown=name == TRACED[1])
            figure.add_trace(line, row=1, col=at)
        figure.update_xaxes(title={"text": "step"}, row=1, col=at)
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_layout(legend={"orientation": "h", "y": -0.25}, margin={"l": 48, "r": 24, "t": 90, "b": 90})
    return titled(figure, "Telemetry over training", f"{study.model}; means over real tokens", width=1180, height=400)


@draws(TelemetryOverTraining)
def render_telemetry_over_training(study: TelemetryOverTraining) -> str:
    """One page: the curves and their numbers."""
    first, last = study.found[0], study.found[-1]
    said = (
        f"Perplexity from {number(first.perplexity)} to {number(last.perplexity)} over {len(study.steps)} checkpoints."
    )
    return figures_page(
        "Telemetry over training",
        [figure_fragment(telemetry_figure(study), said), Fragment(training_table(study))],
    )


def _line(
    x: Sequence[float], y: Sequence[float], name: str, colour: str, *, dash: str = "solid", shown: bool = True
) -> object:
    import plotly.graph_objects as go

    return go.Scatter(
        x=list(x), y=list(y), name=name, mode="lines+markers", showlegend=shown,
        hovertemplate=f"{name}: %{{y:.3g}}<br>at %{{x}}<extra></extra>",
        line={"color": colour, "width": 2, "dash": dash}, marker={"color": colour, "size": 5},
    )  # fmt: skip


def labelled_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    text: Sequence[Sequence[str]],
    title: str,
    subtitle: str,
    *,
    limit: float | None = None,
) -> Figure:
    """A labelled heat map, blue positive, symmetric around zero."""
    import plotly.graph_objects as go

    bound = limit or max((abs(v) for row in values for v in row), default=1.0) or 1.0
    trace = go.Heatmap(
        z=[list(row) for row in values], x=list(range(len(columns))), y=list(range(len(rows))),
        customdata=[list(row) for row in text],
        hovertemplate="%{customdata}<extra></extra>", colorscale=SCALE, zmid=0, zmin=-bound, zmax=bound, xgap=1, ygap=1,
        colorbar={"thickness": 12, "outlinewidth": 0},
    )  # fmt: skip
    figure = go.Figure([trace])
    every = max(1, len(columns) // 60)
    common = {"showgrid": False, "zeroline": False, "ticks": "outside", "tickmode": "array"}
    figure.update_xaxes(
        **common, tickvals=list(range(0, len(columns), every)), ticktext=list(columns[::every]), tickangle=-55
    )
    figure.update_yaxes(**common, tickvals=list(range(len(rows))), ticktext=list(rows), autorange="reversed")
    figure.update_layout(margin={"l": 110, "r": 24, "t": 66, "b": 70})
    return titled(figure, title, subtitle, width=max(560, 170 + 24 * len(columns)), height=160 + 30 * len(rows))
