"""One mechanism or several: the verdict, the clusters of pairs, and what exchanging their circuits costs."""

from __future__ import annotations

from ...circuits.testing.mechanisms import Mechanisms
from ...display import draws
from ..findings import reports
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, escape, fixed, signed


@draws(Mechanisms)
def render_mechanisms(found: Mechanisms) -> str:
    """One page."""
    return figures_page("One mechanism or several", [mechanisms_fragment(found)])


@reports(Mechanisms, section="robustness")
def mechanisms_fragment(found: Mechanisms) -> Fragment:
    """The verdict in words, and a row per circuit and part of the held-out pairs."""
    lead = f"Mechanisms: {found.verdict}: {found.reason}."
    if found.hides:
        lead += " The circuit of all pairs is faithful and hides this."
    rows = found.rows
    costs = [f"{signed(r.cost)} [{signed(r.cost_interval[0])}, {signed(r.cost_interval[1])}]" for r in rows]
    columns = [
        Column("circuit of", [r.circuit for r in rows]),
        Column("tested on", [r.pairs for r in rows]),
        Column("pairs", [count(r.n_pairs) for r in rows], numeric=True),
        Column("edges", [count(r.n_edges) for r in rows], numeric=True),
        Column("faithfulness", [fixed(r.faithfulness) for r in rows], numeric=True),
        Column("95 % interval", [f"[{fixed(r.low)}, {fixed(r.high)}]" for r in rows], numeric=True),
        Column(
            "further from 1 than the own circuit",
            [said if r.cost == r.cost else "" for r, said in zip(rows, costs, strict=True)],
            numeric=True,
        ),
    ]
    drawn = table(columns, caption="Circuits of all pairs and of kinds of pairs, measured on held-out ones")
    return Fragment(f"<p>{escape(lead)}</p>{drawn if rows else ''}")
