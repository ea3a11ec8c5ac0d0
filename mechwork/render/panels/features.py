"""Features drawn: faithfulness of their circuits over size, how good they are as a code, how well they tell concepts
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...display import draws
from ...features import FeatureCurves, FeatureEffects, FeatureEvaluation, FeatureScores, Separability, SuppressionStudy
from ..page.figure import MUTED, NEUTRAL, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, fixed, number, percent, plural, signed, words
from .steering import COLOURS, SYMBOLS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROWS = 40
"""Nodes in a table of scores."""


def feature_curves_figure(curves: FeatureCurves) -> Figure:
    """Faithfulness over the number of nodes (log scale), one line per method with its interval, random
    circuits beside.
    """
    import plotly.graph_objects as go

    x = list(curves.sizes)
    figure = go.Figure()
    for i, method in enumerate(curves.methods):
        colour, y = COLOURS[i % len(COLOURS)], curves.faithfulness(method).tolist()
        low, high = (list(side) for side in zip(*curves.intervals(method), strict=True))
        bars = {
            "array": [b - v for b, v in zip(high, y, strict=True)],
            "arrayminus": [v - a for v, a in zip(y, low, strict=True)],
        }
        figure.add_trace(
            go.Scatter(
                x=x, y=y, mode="lines+markers", name=f"{method} (area {number(curves.area(method))})",
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 8, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                error_y={"type": "data", **bars, "thickness": 1, "width": 3, "color": colour},
                hovertemplate=f"{method}: %{{y:.3f}} with %{{x}} nodes<extra></extra>",
            )
        )  # fmt: skip
    if len(curves.random_per_example):
        figure.add_trace(
            go.Scatter(
                x=x, y=curves.random.tolist(), mode="lines+markers", name="random circuits (area "
                                                                          f"{number(curves.random_area)})",
                line={"color": NEUTRAL, "dash": "dot", "width": 2},
                marker={"color": NEUTRAL, "size": 6, "symbol": "diamond-open"},
                hovertemplate="random: %{y:.3f} with %{x} nodes<extra></extra>",
            )
        )  # fmt: skip
    for height, name in ((0.0, "nothing kept"), (1.0, "whole model")):
        figure.add_hline(
            y=height, line={"color": MUTED, "width": 1, "dash": "4px 3px"},
            annotation={"text": name, "font": {"size": 11, "color": MUTED}, "xanchor": "left", "x": 0.004,
            "yanchor": "bottom"},
        )  # fmt: skip
    errors = "features and errors" if curves.errors == "ranked" else "features, errors cut"
    figure.update_xaxes(
        type="log", title={"text": f"nodes kept ({errors}; log scale)"}, tickvals=x, showgrid=True, zeroline=False
    )
    figure.update_yaxes(title={"text": "faithfulness"}, zeroline=False, showgrid=True)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.22, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 66, "b": 130},
    )
    subtitle = (
        f"{curves.task_name}, {words(curves.ablation)} ablation of all other nodes, "
        f"{plural(len(curves.model_per_example), 'pair')}; bars: 95 %"
    )
    return titled(figure, "Faithfulness of feature circuits", subtitle, width=760, height=500)


def _by_place(places: Sequence[str], sides: Sequence[tuple[str, Sequence[float], str, str]], what: str) -> Figure:
    """One marker per place and side (name, values, colour, symbol), on a scale from 0 to 1."""
    import plotly.graph_objects as go

    figure = go.Figure(
        [
            go.Scatter(
                x=list(places), y=list(values), mode="markers", name=name,
                marker={"color": colour, "size": 9, "symbol": symbol, "line": {"color": colour, "width": 2}},
                hovertemplate=f"{name} at %{{x}}: %{{y:.3f}}<extra></extra>",
            )
            for name, values, colour, symbol in sides
        ]
    )  # fmt: skip
    figure.update_xaxes(title={"text": "place"}, tickangle=-45, showgrid=True, type="category")
    figure.update_yaxes(title={"text": what}, range=[0, 1.05], zeroline=False, showgrid=True)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.36, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 66, "b": 150},
    )
    return figure


def separability_figure(found: Separability) -> Figure:
    """The held-out distance at every place: best feature, best dimension, best random direction, chance."""
    places = [row.place for row in found.rows]
    lines = (
        ("best feature", [row.distance for row in found.rows], COLOURS[0], "circle"),
        ("best dimension", [row.dimension for row in found.rows], COLOURS[1], "square"),
        ("best random direction", [row.random for row in found.rows], COLOURS[2], "diamond"),
        ("chance (95 %)", [row.chance for row in found.rows], NEUTRAL, "line-ew-open"),
    )
    figure = _by_place(places, lines, "Jensen-Shannon distance")
    subtitle = (
        f"chosen on {found.n_fit} prompts, measured on {found.n_held_out} others; 1 is told apart without overlap"
    )
    return titled(figure, f"How well {found.concept} is told apart", subtitle, width=820, height=480)


def reconstruction_figure(measured: FeatureEvaluation) -> Figure:
    """The share of variance that every place's code misses, beside as many random directions."""
    places = list(measured.places)
    sides = (
        ("features", measured.unexplained, COLOURS[0], "circle"),
        ("random directions", measured.random_unexplained, NEUTRAL, "diamond-open"),
    )
    figure = _by_place(places, sides, "share of variance missed")
    subtitle = (
        f"{count(int(measured.n_tokens.sum()))} positions of {plural(len(measured.plain), 'row')} of text; measured"
    )
    return titled(figure, "What the features leave out", subtitle, width=820, height=480)


def suppression_figure(study: SuppressionStudy) -> Figure:
    """What is left of the concept against what is left of the other class: good is left and up; open marks are random
    features.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, method in enumerate(dict.fromkeys(row.method for row in study.rows)):
        for control in (False, True):
            rows = [row for row in study.rows if row.method == method and row.control == control]
            symbol = SYMBOLS[i % len(SYMBOLS)] + ("-open" if control else "")
            figure.add_trace(
                go.Scatter(
                    x=[r.concept for r in rows], y=[r.other_class for r in rows], mode="markers",
                    name=f"{method}{', random features' if control else ''}",
                    marker={"color": COLOURS[i % len(COLOURS)], "size": 10, "symbol": symbol},
                    text=[f"{method}, share {number(r.share)}{', random features' if control else ''}, KL on others "
                          f"{r.kl:.4f}" for r in rows],
                    hovertemplate="%{text}<br>concept %{x:.3f}, other class %{y:.3f}<extra></extra>",
                )
            )  # fmt: skip
    figure.update_xaxes(
        title={"text": "metric left on prompts of the concept (1 = all)"}, showgrid=True, zeroline=False
    )
    figure.update_yaxes(title={"text": "metric left on prompts of the other class"}, showgrid=True, zeroline=False)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.2, "x": 0, "xanchor": "left", "yanchor": "top"},
        margin={"l": 64, "r": 24, "t": 66, "b": 130},
    )
    subtitle = (
        f"{plural(len(study.chosen), 'feature')} of {study.place}; other tasks: {', '.join(study.others) or 'none'}"
    )
    return titled(figure, f"Suppressing {study.concept}", subtitle, width=760, height=520)


def render_features(measured: FeatureEvaluation, concepts: Sequence[Separability] = ()) -> str:
    """One self-contained page: reconstruction and loss, then every concept."""
    fragments = [*_evaluation(measured)]
    for found in concepts:
        fragments += _separability(found)
    return figures_page("Features", fragments)


@draws(FeatureEvaluation)
def _draw_evaluation(measured: FeatureEvaluation) -> str:
    return render_features(measured)


@draws(Separability)
def render_separability(found: Separability) -> str:
    """One page: the figure, and every number."""
    return figures_page("Separability", _separability(found))


@draws(FeatureCurves)
def render_feature_curves(curves: FeatureCurves) -> str:
    """One page: the curves, and every number."""
    best = max(curves.methods, key=curves.area)
    said = (
        f"Mean faithfulness over log size: {', '.join(f'{m} {number(curves.area(m))}' for m in curves.methods)}, "
        f"random {number(curves.random_area)}. "
        f"Largest: {best}."
    )
    if len(curves.methods) > 1:
        gap, low, high = curves.difference(curves.methods[0], curves.methods[1])
        said += f" {curves.methods[0]} less {curves.methods[1]}: {signed(gap)} [{signed(low)}, {signed(high)}]."
    columns = [Column("nodes", [count(n) for n in curves.sizes], numeric=True)]
    for method in curves.methods:
        cells = [
            f"{fixed(v)} [{fixed(a)}, {fixed(b)}]"
            for v, (a, b) in zip(curves.faithfulness(method).tolist(), curves.intervals(method), strict=True)
        ]
        columns.append(Column(method, cells, numeric=True))
    columns.append(Column("random", [fixed(v) for v in curves.random.tolist()], numeric=True))
    caption = (
        f"Faithfulness of the strongest of {count(curves.n_varying)} nodes that vary, 95 % interval over pairs; "
        "0 = nothing kept, 1 = whole model"
    )
    figure = figure_fragment(feature_curves_figure(curves), said)
    return figures_page(
        "Feature circuits", [Fragment(f"<p>{said}</p>"), figure, Fragment(table(columns, caption=caption))]
    )


@draws(SuppressionStudy)
def render_suppression(study: SuppressionStudy) -> str:
    """One page: the figure, and every number."""
    rows = study.rows
    columns = [
        Column("method", [r.method for r in rows]),
        Column("features", ["random" if r.control else "chosen" for r in rows]),
        Column("share", [number(r.share) for r in rows], numeric=True),
        Column(
            "concept",
            [f"{fixed(r.concept)} [{fixed(r.concept_interval[0])}, {fixed(r.concept_interval[1])}]" for r in rows],
            numeric=True,
        ),
        Column("accuracy", [fixed(r.concept_accuracy) for r in rows], numeric=True),
        Column("other class", [fixed(r.other_class) for r in rows], numeric=True),
        Column("accuracy there", [fixed(r.other_class_accuracy) for r in rows], numeric=True),
        Column("accuracy on other tasks", [fixed(r.other_tasks) for r in rows], numeric=True),
        Column("KL on other tasks", [f"{r.kl:.4f}" for r in rows], numeric=True),
    ]
    said = (
        f"Metric as a share of the unsuppressed model's: {number(study.plain['concept'])} on prompts of the "
        f"concept, {number(study.plain['other_class'])} on the others."
    )
    figure = figure_fragment(suppression_figure(study), said)
    caption = f"{study.concept}: {', '.join(f'f{i}' for i in study.chosen)} of {study.place}"
    return figures_page("Suppression", [Fragment(f"<p>{said}</p>"), figure, Fragment(table(columns, caption=caption))])


@draws(FeatureScores)
def render_feature_scores(scores: FeatureScores) -> str:
    """One page: the strongest nodes."""
    top = scores.top(ROWS)
    columns = [
        Column("node", [name for name, _ in top]),
        Column("score", [signed(v) for _, v in top], numeric=True, signs=[v for _, v in top]),
    ]
    caption = (
        f"{scores.method}, estimated effects on {words(scores.metric_name)}; {count(int(scores.varies.sum()))} "
        f"of {count(len(scores.nodes))} nodes vary"
    )
    return figures_page("Scores of features", [Fragment(table(columns, caption=caption))])


@draws(FeatureEffects)
def render_feature_effects(effects: FeatureEffects) -> str:
    """One page: the nodes that were measured."""
    values = effects.values.tolist()
    columns = [
        Column("node", list(effects.names)),
        Column("effect", [signed(v) for v in values], numeric=True, signs=values),
    ]
    return figures_page(
        "Effects of features",
        [Fragment(table(columns, caption=f"Measured, {effects.direction}, on {words(effects.metric_name)}"))],
    )


def _evaluation(measured: FeatureEvaluation) -> list[Fragment]:
    intervals, n = measured.intervals(), len(measured.places)
    places = [*measured.places, "all places"]
    columns = [
        Column("place", places),
        Column("features", [count(v) for v in (*measured.n_features, sum(measured.n_features))], numeric=True),
        Column("variance missed", [*(fixed(v) for v in measured.unexplained), ""], numeric=True),
        Column("random directions", [*(fixed(v) for v in measured.random_unexplained), ""], numeric=True),
        Column("L0", [*(fixed(v, 1) for v in measured.l0), ""], numeric=True, title="features above 0 per position"),
        Column("dead", [*(percent(v) for v in measured.dead), ""], numeric=True, title="features that are 0 "
                                                                                       "everywhere"),
        Column(
            "loss recovered", [f"{fixed(v)} [{fixed(a)}, "
                               f"{fixed(b)}]" for v, (a, b) in zip(measured.recovered, intervals, strict=True)],
                               numeric=True
        ),
        Column("with random directions", [fixed(v) for v in measured.random_recovered], numeric=True),
        Column("loss, bits", [fixed(v) for v in measured.loss("spliced")], numeric=True),
    ]  # fmt: skip
    said = (
        f"The model's loss is {number(measured.loss('plain')[0])} bits per token; with every reconstruction in "
        f"place {number(measured.loss('spliced')[n])}."
    )
    caption = (
        "Loss recovered: 0 = each position has the place's mean, 1 = nothing is lost; 95 % interval over rows of text"
    )
    figure = figure_fragment(reconstruction_figure(measured), said)
    return [Fragment(f"<p>{said}</p>"), figure, Fragment(table(columns, caption=caption))]


def _separability(found: Separability) -> list[Fragment]:
    rows = found.rows
    columns = [
        Column("place", [r.place for r in rows]),
        Column("best feature", [f"f{r.feature}" for r in rows]),
        Column("distance", [fixed(r.distance) for r in rows], numeric=True),
        Column("best dimension", [fixed(r.dimension) for r in rows], numeric=True),
        Column("best random direction", [fixed(r.random) for r in rows], numeric=True),
        Column("chance", [fixed(r.chance) for r in rows], numeric=True),
        Column("passes", ["yes" if r.passes else "no" for r in rows]),
    ]
    best = found.best
    said = (
        f"{found.concept} is told apart best by f{best.feature} of {best.place}, at a distance of "
        f"{fixed(best.distance)}."
    )
    caption = "Jensen-Shannon distance on held-out prompts; passes: above chance and at least the best dimension"
    return [
        Fragment(f"<p>{said}</p>"),
        figure_fragment(separability_figure(found), said),
        Fragment(table(columns, caption=caption)),
    ]
