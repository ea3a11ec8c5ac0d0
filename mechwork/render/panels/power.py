"""Power curves drawn: the share of samples decided as they should be, by number of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...circuits.testing.power import ALL, DAMAGED, GIVEN, PowerCurves
from ...circuits.testing.trials import POWER
from ...display import draws
from ..findings import reports
from ..page.figure import MUTED, NEGATIVE, POSITIVE, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, escape, fixed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@draws(PowerCurves)
def render_power(found: PowerCurves) -> str:
    """One page."""
    return figures_page("With how many pairs?", [power_section(found)])


@reports(PowerCurves, section="robustness")
def power_section(found: PowerCurves) -> Fragment:
    """The figure and a row per circuit and claim."""
    if found.reason:
        return Fragment(f"<p>{escape(f'Power: inconclusive: {found.reason}.')}</p>")
    keys = list(dict.fromkeys((row.circuit, row.claim) for row in found.rows))
    reached = [found.reached(circuit, claim) for circuit, claim in keys]
    columns = [
        Column("circuit", [circuit for circuit, _ in keys]),
        Column("claim", [claim for _, claim in keys]),
        Column("should", ["pass" if circuit == GIVEN else "fail" for circuit, _ in keys]),
    ]
    for i, n in enumerate(found.sizes):
        shares = [_shares(found, circuit, claim)[i] for circuit, claim in keys]
        columns.append(Column(f"{n} pairs", [fixed(share, 2) for share in shares], numeric=True))
    columns.append(Column("80 % from", [count(n) if n else "" for n in reached], numeric=True))
    lead = (
        f"Share of {found.n_samples} samples decided as they should be. The circuit has faithfulness "
        f"{fixed(found.faithfulness[0])}, damaged {fixed(found.faithfulness[1])} (without {', '.join(found.removed)})."
    )
    drawn = figure_fragment(power_figure(found), lead)
    body = f"<p>{escape(lead)}</p>{drawn.body}{table(columns, caption='Measured power by number of pairs')}"
    return Fragment(body, needs=drawn.needs)


def power_figure(found: PowerCurves) -> Figure:
    """Equivalence and all claims: passed by the given circuit, failed by the damaged one, with intervals."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for circuit, colour, said in ((GIVEN, POSITIVE, "circuit passes"), (DAMAGED, NEGATIVE, "damaged one fails")):
        for claim, dash in (("equivalence", "solid"), (ALL, "dot")):
            rows, shares = found.curve(circuit, claim), _shares(found, circuit, claim)
            above = [row.interval[1] - share for row, share in zip(rows, shares, strict=True)]
            below = [share - row.interval[0] for row, share in zip(rows, shares, strict=True)]
            figure.add_scatter(
                x=[row.n_pairs for row in rows], y=shares, mode="lines+markers", name=f"{said}: {claim}",
                line={"color": colour, "dash": dash},
                error_y={"type": "data", "symmetric": False, "thickness": 1, "array": above, "arrayminus": below},
            )  # fmt: skip
    figure.add_hline(y=POWER, line={"dash": "dash", "color": MUTED, "width": 1})
    figure.update_xaxes(title={"text": "pairs"}, zeroline=False)
    figure.update_yaxes(title={"text": "share of samples"}, range=[-0.03, 1.03], showgrid=True)
    figure.update_layout(margin={"l": 64, "r": 24, "t": 66, "b": 50}, legend={"orientation": "h", "y": -0.2})
    subtitle = f"{found.n_samples} samples per size; dashed: 80 %"
    return titled(figure, "With how many pairs is it decided?", subtitle, width=640, height=380)


def _shares(found: PowerCurves, circuit: str, claim: str) -> list[float]:
    return [row.passed if circuit == GIVEN else row.failed for row in found.curve(circuit, claim)]
