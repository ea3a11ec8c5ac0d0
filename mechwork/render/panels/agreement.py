"""How estimated effects agree with measured ones: every place as a point, the diagonal as the ideal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from ...patching.result import Agreement, Effect, Effects
from ..page.figure import MUTED, POSITIVE, figure_fragment, figures_page, plotly_text, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, number, percent, signed, words
from .heatmap import node_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def agreement_figure(estimate: Effects, truth: Effects) -> Figure:
    """Estimated against measured effects, one panel per kind of site, as a plotly figure.

    Raises:
        InputError: the two have no kind of site in common, or different axes or directions.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = estimate.agreement(truth)
    kinds = list(rows)
    titles = [
        f"{kind}<br>Pearson {number(rows[kind].pearson)}, Spearman {number(rows[kind].spearman)}" for kind in kinds
    ]
    figure = make_subplots(1, len(kinds), subplot_titles=titles, horizontal_spacing=min(0.09, 0.5 / len(kinds)))
    for column, kind in enumerate(kinds, start=1):
        x, y = truth[kind].values.flatten().tolist(), estimate[kind].values.flatten().tolist()
        low, high = min([*x, *y, 0.0]), max([*x, *y, 0.0])
        pad = 0.06 * (high - low or 1.0)
        ends = [low - pad, high + pad]
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=ends,
                mode="lines",
                line={"color": MUTED, "width": 1, "dash": "dash"},
                hoverinfo="skip",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
        points = go.Scatter(
            x=x, y=y, mode="markers", marker={"color": POSITIVE, "size": 6, "opacity": 0.65},
            customdata=_points(truth[kind], x, y),
            hovertemplate="%{customdata[0]}<br>measured %{customdata[1]}, estimated "
                          "%{customdata[2]}<extra></extra>", showlegend=False,
        )  # fmt: skip
        figure.add_trace(points, row=1, col=column)
        figure.update_xaxes(
            range=ends, title={"text": "measured effect"}, zeroline=True, showgrid=True, row=1, col=column
        )
        figure.update_yaxes(
            range=ends,
            title={"text": "estimated effect"} if column == 1 else None,
            zeroline=True,
            showgrid=True,
            row=1,
            col=column,
        )
    first = estimate[kinds[0]]
    figure.update_layout(margin={"l": 64, "r": 20, "t": 108, "b": 56})
    subtitle = (
        f"{words(first.metric_name)}, {'denoising' if first.direction == 'denoise' else 'noising'}; each point "
        "is one place, the dashed line is perfect agreement"
    )
    return titled(
        figure, "Estimated against measured effects", subtitle, width=min(1060, 90 + 310 * len(kinds)), height=430
    )


def agreement_fragment(estimate: Effects, truth: Effects) -> Fragment:
    """The scatter as part of a page; points of heads and MLPs select their node."""
    said = "; ".join(f"{kind}: Pearson {number(row.pearson)}" for kind, row in estimate.agreement(truth).items())
    return figure_fragment(agreement_figure(estimate, truth), f"Scatter of estimated against measured effects. {said}")


def agreement_table(named: list[tuple[str, Effects, Effects]]) -> str:
    """Correlation and error per method and kind of site; entries are (name of the method, estimate, truth)."""
    rows: list[tuple[str, Agreement]] = [
        (name, row) for name, estimate, truth in named for row in estimate.agreement(truth).values()
    ]
    columns = [
        Column("estimate", [name for name, _ in rows]),
        Column("site", [row.kind for _, row in rows]),
        Column("Pearson", [number(row.pearson) for _, row in rows], numeric=True),
        Column("Spearman", [number(row.spearman) for _, row in rows], numeric=True),
        Column("relative L2 error", [percent(row.relative_error) for _, row in rows], numeric=True),
        Column("places", [count(row.n_places) for _, row in rows], numeric=True),
    ]
    return table(columns, caption="Agreement of estimated with measured effects")


def render_agreement(estimate: Effects, truth: Effects) -> str:
    """One self-contained HTML page comparing estimated with measured effects."""
    if any(effect.estimated for effect in truth.values()):
        raise InputError("the second argument must be measured effects (mechwork.patch); these are estimated")
    name = method_name(estimate)
    return figures_page(
        "Estimated against measured effects",
        [agreement_fragment(estimate, truth), Fragment(agreement_table([(name, estimate, truth)]))],
    )


def method_name(estimate: Effects) -> str:
    """What the provenance says about how an estimate was made."""
    facts = estimate.provenance
    rules, steps = facts.get("rules"), facts.get("ig_steps")
    rules = rules.get("name") if isinstance(rules, dict) else rules
    name = str(rules or facts.get("method") or "estimate")
    return f"{name}, {steps} steps" if isinstance(steps, int) and steps > 1 else name


def _points(effect: Effect, x: list[float], y: list[float]) -> list[list[str]]:
    """Per place: its name, both effects, and the node it selects."""
    sizes = effect.values.shape
    found = []
    for i, (measured, estimated) in enumerate(zip(x, y, strict=True)):
        index, rest = [], i
        for size in reversed(sizes):
            rest, at = divmod(rest, size)
            index.append(at)
        place = {axis: effect.labels[axis][at] for axis, at in zip(effect.axes, reversed(index), strict=True)}
        said = ", ".join(f"{axis} {plotly_text(label, 40)}" for axis, label in place.items())
        found.append(
            [said, signed(measured), signed(estimated), node_of(effect.kind, place.get("layer", ""), place.get("head"))]
        )
    return found
