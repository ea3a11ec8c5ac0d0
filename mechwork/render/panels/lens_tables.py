"""Tables of direct logit attribution, directions, head circuits and decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...display import draws
from ...lenses.contributions import LogitAttribution
from ...lenses.directions import DirectionReading
from ...lenses.generators import DecoderComparison
from ...lenses.heads import HeadCircuits
from ..page.figure import MUTED, NEGATIVE, POSITIVE, figure_fragment, figures_page, plotly_text, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import fixed, number, percent, plural, show_token, signed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BARS = 30
ROWS = 60


def attribution_figure(shares: LogitAttribution, n: int = BARS) -> Figure:
    """The `n` largest terms as bars, strongest on top, with 95 % intervals over prompts."""
    import plotly.graph_objects as go

    top = shares.top(n)[::-1]
    values = [value for _, value in top]
    error = None
    if len(shares.total) > 1:
        low, high = (bound.tolist() for bound in shares.interval())
        rows = [shares.terms.index(term) for term, _ in top]
        error = {
            "type": "data", "symmetric": False, "color": MUTED, "thickness": 1.2,
            "array": [high[k] - v for k, v in zip(rows, values, strict=True)],
            "arrayminus": [v - low[k] for k, v in zip(rows, values, strict=True)],
        }  # fmt: skip
    bars = go.Bar(
        x=values, y=[*range(len(top))], orientation="h",
        marker={"color": [POSITIVE if v > 0 else NEGATIVE for v in values]}, error_x=error,
        text=[f"{plotly_text(term)}: "
              f"{signed(value)}" for term, value in top], textposition="none", hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(bars)
    figure.update_yaxes(tickvals=[*range(len(top))], ticktext=[plotly_text(term) for term, _ in top])
    figure.update_xaxes(title={"text": f"share of the {shares.quantity}"}, zeroline=True)
    figure.update_layout(margin={"l": 110, "r": 24, "t": 66, "b": 60})
    cap = ", before the soft cap" if shares.before_cap else ""
    return titled(
        figure,
        f"What makes the {shares.quantity}",
        f"{signed(float(shares.total.mean()))}{cap}; mean of {plural(len(shares.total), 'prompt')}; exact shares of "
        f"this run{'; lines: 95 % intervals' if error else ''}",
        width=700,
        height=90 + 20 * len(top),
    )


@draws(LogitAttribution)
def render_attribution(shares: LogitAttribution) -> str:
    """One self-contained HTML page: the largest terms, all terms, and what they miss."""
    values = shares.values.tolist()
    columns = [Column("term", [*shares.terms, "rounding", "together"])]
    rest = float(shares.remainder.mean())
    columns.append(
        Column(
            "mean share",
            [signed(v) for v in (*values, rest, float(shares.total.mean()))],
            numeric=True,
            signs=[*values, rest, float(shares.total.mean())],
        )
    )
    strongest = "; ".join(f"{term} {signed(value)}" for term, value in shares.top(5))
    figure = figure_fragment(attribution_figure(shares), f"Largest shares of the {shares.quantity}: {strongest}")
    return figures_page(
        f"Direct attribution of a {shares.quantity}", [figure, Fragment(table(columns, caption="Every term"))]
    )


@draws(DirectionReading)
def render_directions(reading: DirectionReading) -> str:
    """One self-contained HTML page: per direction, the tokens it raises and lowers (the first 60)."""
    n = min(ROWS, len(reading.names))

    def cell(i: int, *, lowered: bool) -> str:
        return ", ".join(f"{show_token(text)} {signed(value)}" for text, value in reading.words(i, lowered=lowered))

    columns = [
        Column("direction", reading.names[:n]),
        Column("raises", [cell(i, lowered=False) for i in range(n)]),
        Column("lowers", [cell(i, lowered=True) for i in range(n)]),
    ]
    caption = (
        f"Effects in logits per unit over the final norm's scale, through the {reading.lens}; {n} of "
        f"{plural(len(reading.names), 'direction')}"
    )
    return figures_page("What directions say", [Fragment(table(columns, caption=caption))])


@draws(HeadCircuits)
def render_head(circuits: HeadCircuits) -> str:
    """One self-contained HTML page: scores, and what the head makes of each token."""
    chance = percent(circuits.chance)
    scores = table(
        [
            Column("score", ["copying (eigenvalues)", "copies", "suppresses", "looks for the predicted token"]),
            Column(
                "value",
                [
                    fixed(circuits.copying),
                    percent(circuits.copies),
                    percent(circuits.suppresses),
                    percent(circuits.attends_to_predicted),
                ],
                numeric=True,
            ),
            Column("chance", ["", chance, chance, chance], numeric=True),
        ],
        caption=f"{circuits.head} over {circuits.d_vocab:,} tokens, k = {circuits.k}",
    )
    names = [show_token(circuits.texts[i]) for i in circuits.tokens.tolist()]
    lists = [
        [", ".join(show_token(circuits.texts[t]) for t in row) for row in ids.tolist()]
        for ids in (circuits.top_ids, circuits.bottom_ids)
    ]
    tokens = table(
        [Column("attending to", names), Column("raises", lists[0]), Column("lowers", lists[1])], caption="OV circuit"
    )
    squares = [
        table(
            [
                Column("", names),
                *(
                    Column(name, [fixed(v, 2) for v in matrix[:, j].tolist()], numeric=True)
                    for j, name in enumerate(names)
                ),
            ],
            caption=caption,
        )
        for caption, matrix in (
            ("OV: row attended to, column logit (centred)", circuits.ov),
            ("QK: row query, column key", circuits.qk),
        )
    ]
    parts = [scores, *([tokens, *squares] if names else [])]
    return figures_page(f"Token circuits of {circuits.head}", [Fragment(part) for part in parts])


@draws(DecoderComparison)
def render_decoders(comparison: DecoderComparison) -> str:
    """One self-contained HTML page: surprisal and hits per decoder and place."""
    columns = [Column("place", comparison.places)]
    for name, surprisal, first in zip(comparison.decoders, comparison.surprisal, comparison.first, strict=True):
        columns.append(Column(f"{name}, bits", [number(float(v)) for v in surprisal.mean(dim=1)], numeric=True))
        columns.append(Column("first", [percent(float(v)) for v in first.mean(dim=1)], numeric=True))
    return figures_page(
        "Decoders", [Fragment(table(columns, caption=f"The text's token {comparison.ahead + 1} ahead"))]
    )
