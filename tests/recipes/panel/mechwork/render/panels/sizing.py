"""How a circuit's size was chosen, drawn: faithfulness of every size that was tried (an example of a panel)."""

from __future__ import annotations

from ...discovery.size import Sizing
from ...display import draws
from ..findings import reports
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table


@draws(Sizing)
def render_sizing(found: Sizing) -> str:
    """One self-contained HTML page."""
    return figures_page("Sizes that were tried", [sizing_fragment(found)])


@reports(Sizing, section="evaluation")
def sizing_fragment(found: Sizing) -> Fragment:
    """A row per size; in every report's evaluation."""
    frame = found.to_dataframe()
    columns = [Column(str(name), [f"{value:.4g}" for value in frame[name]], numeric=True) for name in frame.columns]
    return Fragment(table(columns, caption="Sizes that were tried"))
