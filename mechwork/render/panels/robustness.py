"""Would another choice have given another circuit? Other ablations, resamples, templates, seeds; completeness,
minimality.

Every number of this section is measured (faithfulness, completeness, minimality) or is the overlap of selections by
estimated scores (stability), and its table says which.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...circuits.scoring.stability import Stability
from ...circuits.testing.completeness import Completeness, Minimality
from ...circuits.testing.curves import CircuitEvaluation
from ..findings import Findings, reports
from ..page.page import Fragment
from ..page.table import Column, RowLinks, table
from ..page.text import count, escape, fixed, percent, plural, shorten
from .circuit_tables import completeness_table

OVER = {
    "resamples": "bootstrap resamples of the pairs",
    "templates": "each template's pairs alone",
    "seeds": "other pairs, drawn with other seeds",
    "selections": "several selections, all pairs of them",
}
N_MINIMAL = 24


@reports(Stability, section="robustness", together=True, called="stability")
@reports(Completeness, section="robustness", together=True, called="completeness")
@reports(Minimality, section="robustness", together=True, called="minimality")
def robustness_fragments(findings: Findings) -> list[Fragment]:
    """Everything about robustness that was found; empty when nothing was."""
    circuit = findings.circuit
    same = [e for e in findings.evaluations if circuit is not None and findings.is_of(e, circuit)]
    parts: list[str] = []
    if len({evaluation.ablation for evaluation in same}) > 1:
        parts.append(ablation_table(same))
    if stabilities := findings.of(Stability):
        parts.append(stability_table(stabilities))
        parts += [template_table(stability) for stability in stabilities if stability.labels]
    parts += [completeness_table(found) for found in findings.of(Completeness)]
    parts += [minimality_table(found) for found in findings.of(Minimality)]
    return [Fragment("".join(parts), needs=("heads",))] if parts else []


def ablation_table(evaluations: Sequence[CircuitEvaluation]) -> str:
    """The same circuit under every ablation it was tested with."""
    columns = [
        Column("ablation of all other edges", [e.ablation for e in evaluations]),
        Column("faithfulness", [fixed(e.faithfulness) for e in evaluations], numeric=True),
        Column("95 % interval", [_range(e.interval()) for e in evaluations], numeric=True),
        Column(
            "random circuits",
            [fixed(sum(e.random) / len(e.random)) if e.random else "" for e in evaluations],
            numeric=True,
        ),
        Column("accuracy", [percent(e.accuracy) for e in evaluations], numeric=True),
        Column("empty circuit's metric", [fixed(e.empty, 2) for e in evaluations], numeric=True),
    ]
    return table(
        columns,
        caption="Measured: the circuit under other ablations, on the same pairs. Each has its own empty circuit, so a "
        "value is comparable with those beside it, not with another row's",
    )


def stability_table(stabilities: Sequence[Stability]) -> str:
    """How much the selected edges depend on the data, beside what random circuits would share."""
    columns = [
        Column("selected again from", [OVER.get(s.over, s.over) for s in stabilities]),
        Column("selections", [count(len(s.jaccards)) for s in stabilities], numeric=True),
        Column("edges each", [count(s.n_edges) for s in stabilities], numeric=True),
        Column("mean Jaccard index", [fixed(s.mean, 2) for s in stabilities], numeric=True),
        Column("central 95 %", [_range(s.interval(), 2) for s in stabilities], numeric=True),
        Column("random circuits", [fixed(s.expected, 2) for s in stabilities], numeric=True),
    ]
    caption = "Overlap of the edges selected by estimated scores: 1 for the same edges, 0 for none in common"
    return table(columns, caption=caption)


def template_table(stability: Stability) -> str:
    """One row per part of the data, least alike first."""
    order = sorted(range(len(stability.jaccards)), key=lambda i: stability.jaccards[i])
    columns = [
        Column(stability.over.removesuffix("s"), [shorten(stability.labels[i], 90) for i in order]),
        Column("Jaccard index", [fixed(stability.jaccards[i], 2) for i in order], numeric=True),
    ]
    found = table(columns, caption="Overlap with the circuit of all pairs, least alike first")
    return (
        f'<details class="mw-fallback"><summary>By {escape(stability.over.removesuffix("s"))} '
        f"({len(order)})</summary>{found}</details>"
    )


def minimality_table(found: Minimality) -> str:
    """Nodes that matter least first: those could perhaps go."""
    n = min(N_MINIMAL, len(found.nodes))
    columns = [
        Column("node", list(found.nodes[:n])),
        Column("minimality", [fixed(score) for score in found.scores[:n]], numeric=True),
    ]
    spare = found.superfluous()
    said = f"{plural(len(spare), 'node')} below 0.01" + (f": {', '.join(spare[:12])}" if spare else "")
    lead = (
        "Minimality, measured: what removing a node changes at most, as a share of the gap between model and "
        f"empty circuit; {said}."
    )
    rows = table(columns, caption="Least first", links=RowLinks(list(found.nodes[:n])))
    return f'<p>{escape(lead)}</p><details class="mw-fallback"><summary>By node ({n})</summary>{rows}</details>'


def _range(ends: tuple[float, float], digits: int = 3) -> str:
    return f"[{fixed(ends[0], digits)}, {fixed(ends[1], digits)}]"
