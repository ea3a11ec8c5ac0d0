"""Pages of screened sweeps (estimates beside what was verified) and of illusion checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...display import draws
from ...patching.illusion import IllusionCheck
from ...patching.screen import ScreenedEffects
from ..page.figure import MUTED, NEGATIVE, POSITIVE, figure_fragment, figures_page, titled
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import escape, number, signed, words
from .heatmap import heatmap_fragment

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_SHOWN = 20


@draws(ScreenedEffects)
def render_screened(screened: ScreenedEffects) -> str:
    """One page: what was measured and what that says about the rest, the verified places, heat maps of the
    estimates.
    """
    rows = screened.strongest(N_SHOWN)
    columns = [
        Column("verified place", [place for place, _, _ in rows]),
        Column("measured effect", [signed(x) for _, x, _ in rows], numeric=True, signs=[x for _, x, _ in rows]),
        Column("estimated", [signed(x) for _, _, x in rows], numeric=True),
    ]
    agreement = [
        Column("measured cells", ["verified", "control"]),
        Column("Pearson", [number(screened.agreement(name).pearson) for name in ("verified", "control")], numeric=True),
        Column(
            "Spearman", [number(screened.agreement(name).spearman) for name in ("verified", "control")], numeric=True
        ),
        Column("places", [str(screened.agreement(name).n_places) for name in ("verified", "control")], numeric=True),
    ]
    said = str(screened).splitlines()
    words_first = "".join(f"<p>{escape(line)}</p>" for line in (said[0], said[-1]))
    return figures_page(
        "Screened effects",
        [
            Fragment(words_first),
            Fragment(table(columns, caption="Verified places, strongest first")),
            Fragment(table(agreement, caption="Agreement of the estimate with exact effects")),
            *(heatmap_fragment(effect) for effect in screened.estimate.values()),
        ],
    )


@draws(IllusionCheck)
def render_illusion(check: IllusionCheck) -> str:
    """One page: the verdict in words, and the effect of every part as a bar."""
    return figures_page("Illusion check", [Fragment(f"<p>{escape(check.verdict)}</p>"), _illusion_fragment(check)])


def illusion_figure(check: IllusionCheck) -> Figure:
    """The effect of the subspace, its parts and its controls as bars with standard errors."""
    import plotly.graph_objects as go

    frame = check.to_dataframe()
    values = frame["effect"].tolist()
    bars = go.Bar(
        x=frame["patched"].tolist(),
        y=values,
        marker={"color": [POSITIVE if value >= 0 else NEGATIVE for value in values]},
        error_y={"type": "data", "array": frame["standard_error"].fillna(0).tolist(), "color": MUTED, "thickness": 1.2},
    )
    figure = go.Figure([bars])
    figure.update_yaxes(title={"text": f"effect on {words(check.metric_name)}"}, zeroline=True, showgrid=True)
    figure.update_layout(margin={"l": 64, "r": 24, "t": 66, "b": 90}, bargap=0.35)
    subtitle = f"{check.name} at {check.site}; bars: standard error"
    return titled(figure, "Subspace, its parts and controls", subtitle, width=640, height=360)


def _illusion_fragment(check: IllusionCheck) -> Fragment:
    return figure_fragment(illusion_figure(check), check.verdict)
