"""Circuits of one graph side by side: do two tasks, or two models of one shape, use the same nodes and edges?

Overlap is the Jaccard index; chance is what two random sets of those sizes would have. Reuse of components across
tasks: Merullo et al. 2024. For models of different shape only shares of a kind of node could be compared, which is not
done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import InputError
from ...result import Result, Table
from .circuit import Circuit
from .space import INPUT, INPUT_PARTS, LOGITS


@dataclass(frozen=True)
class Overlap:
    """Two circuits: how much their nodes and edges overlap, and how much random circuits of these sizes would."""

    first: str
    second: str
    edges: float
    edges_by_chance: float
    nodes: float
    nodes_by_chance: float
    shared_nodes: tuple[str, ...]
    n_shared_edges: int
    share_of_first: float
    share_of_second: float


@dataclass(frozen=True, eq=False)
class CircuitComparison(Result):
    """All pairs of several circuits."""

    circuits: dict[str, Circuit]
    overlaps: tuple[Overlap, ...]

    def _table(self) -> Table:
        """One row per pair of circuits."""
        return [{**vars(o), "shared_nodes": " ".join(o.shared_nodes)} for o in self.overlaps]

    def __str__(self) -> str:
        lines = ["circuits                                edges  chance   nodes  chance   shared nodes"]
        for o in self.overlaps:
            names = f"{o.first} / {o.second}"
            lines.append(
                f"{names:<38}{o.edges:7.3f}{o.edges_by_chance:8.3f}{o.nodes:8.3f}{o.nodes_by_chance:8.3f}   "
                f"{' '.join(o.shared_nodes[:8])}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def compare_circuits(circuits: Mapping[str, Circuit]) -> CircuitComparison:
    """Overlap of every two of the named circuits; raises `InputError` for fewer than two or for different graphs.

    >>> compare_circuits(
    ...     {"ioi": score_edges(model, ioi).circuit(80), "colours": score_edges(model, colours).circuit(80)}
    ... )
    """
    names = list(circuits)
    if len(names) < 2:
        raise InputError(f"at least two named circuits can be compared; got {names}")
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return CircuitComparison(dict(circuits), tuple(_overlap(a, circuits[a], b, circuits[b]) for a, b in pairs))


def _overlap(first: str, a: Circuit, second: str, b: Circuit) -> Overlap:
    edges = a.overlap(b)  # raises for different graphs
    n = a.space.n_writers - a.space.n_inputs  # the input and the logits are in every circuit
    mine, theirs = (set(c.nodes) - {INPUT, *INPUT_PARTS, LOGITS} for c in (a, b))
    both = len(mine) * len(theirs) / n
    union = len(mine) + len(theirs) - both
    shared = tuple(node for node in a.nodes if node in mine & theirs)
    n_shared = int((a.mask & b.mask).sum())
    return Overlap(
        first=first,
        second=second,
        edges=edges,
        edges_by_chance=a.expected_overlap(b),
        nodes=len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0,
        nodes_by_chance=both / union if union else 1.0,
        shared_nodes=shared,
        n_shared_edges=n_shared,
        share_of_first=n_shared / max(1, a.n_edges),
        share_of_second=n_shared / max(1, b.n_edges),
    )
