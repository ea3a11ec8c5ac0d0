"""The review of a circuit: its claims as a table, each edge, and the null task beside them."""

from __future__ import annotations

from ...circuits.testing.referee import CircuitReview
from ...circuits.testing.trials import CLAIMS
from ...display import draws
from ..findings import reports
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, escape, fixed, percent, plural

N_EDGES = 60
MARKS = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive"}


@draws(CircuitReview)
def render_review(review: CircuitReview) -> str:
    """One page."""
    return figures_page("What a referee asks of this circuit", [review_fragment(review)])


@reports(CircuitReview, section="robustness")
def review_fragment(review: CircuitReview) -> Fragment:
    """The verdict in words, the claims, and the edges least sure first."""
    lead = (
        f"Formal tests, measured: {review.verdict}. {plural(review.circuit.n_edges, 'edge')} on "
        f"{plural(review.n_pairs, 'pair')}, {review.ablation} ablation, level {review.level:g} after correction for "
        "the number of claims. Inconclusive means that neither the claim nor its opposite was shown."
    )
    trials = review.trials
    columns = [
        Column("claim", [f"{t.name}: {CLAIMS.get(t.name, '')}" for t in trials]),
        Column("verdict", [MARKS[t.verdict] for t in trials]),
        Column("estimate", [fixed(t.estimate) if t.estimate == t.estimate else "" for t in trials], numeric=True),
        Column("p for", [_p(t.q_for) for t in trials], numeric=True),
        Column("p against", [_p(t.q_against) for t in trials], numeric=True),
        Column("pairs to decide", [count(t.n_needed) if t.n_needed else "" for t in trials], numeric=True),
        Column("detail", [t.reason for t in trials]),
    ]
    if review.null:
        null = {t.name: t.verdict for t in review.null}
        columns.insert(
            2, Column(f"on the null task ({review.null_kind})", [MARKS.get(null.get(t.name, ""), "") for t in trials])
        )
    if review.random:
        shuffled = {t.name: t.verdict for t in review.random}
        columns.insert(-4, Column("with shuffled weights", [MARKS.get(shuffled.get(t.name, ""), "") for t in trials]))
    verdict = f"<p><b>{escape(MARKS[review.verdict])}</b></p>"
    parts = [
        "<h3>What a referee asks</h3>",
        verdict,
        f"<p>{escape(lead)}</p>",
        table(columns, caption="Claims about the circuit, measured"),
    ]
    if review.null_reason:
        parts.append(f"<p>{escape(f'Null task: {review.null_reason}.')}</p>")
    if review.edges:
        parts.append(_edges(review))
    return Fragment("".join(parts))


def _edges(review: CircuitReview) -> str:
    order = sorted(review.edges, key=lambda row: (["fail", "inconclusive", "pass"].index(row.verdict), abs(row.effect)))
    shown = order[:N_EDGES]
    columns = [
        Column("edge", [row.edge for row in shown]),
        Column("share of the gap", [percent(row.effect, 2) for row in shown], numeric=True),
        Column("verdict", [MARKS[row.verdict] for row in shown]),
        Column("p for", [_p(row.q_for) for row in shown], numeric=True),
        Column("p against", [_p(row.q_against) for row in shown], numeric=True),
    ]
    rows = table(columns, caption="What removing one edge from the circuit costs: superfluous and undecided ones first")
    return f'<details class="mw-fallback"><summary>By edge ({len(shown)} of {len(order)})</summary>{rows}</details>'


def _p(value: float) -> str:
    return "" if value != value else "<.001" if value < 0.001 else fixed(value)
