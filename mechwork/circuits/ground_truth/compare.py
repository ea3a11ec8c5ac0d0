"""Compare a ranking of edges with a known circuit: AUROC and AUPRC from exact ranks, precision at |T|, errors by name.

Edges are ranked by absolute value. With T the true edges and F the others,

    AUROC = P(|s(t)| > |s(f)|) + P(|s(t)| = |s(f)|) / 2         over t in T, f in F  (Mann & Whitney 1947)
    AUPRC = sum over distinct values v, from the top, of recall gained at v x precision of everything >= v
    precision = expected share of T among the |T| best, ties broken at random

so ties are shared, never decided by the order of the graph. No thresholds are sampled and nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import InputError, MetricError
from ...result import Result, Table, table_rows
from ...shapes import EdgeMatrix
from ..graph.circuit import Circuit
from ..scoring.exact_edges import EdgeEffects
from ..scoring.scores import EdgeScores

RESOLUTION = 1e-6
"""Values below this share of the largest one count as zero: floating point leaves such values of what is nothing."""

EQUAL = 1e-9
"""Values whose relative difference is below this are tied."""


@dataclass(frozen=True)
class TruthComparison(Result):
    """How well a ranking of edges finds a known circuit. 1 is perfect; a random ranking has AUROC 0.5 and AUPRC about
    |T| / edges.

    `false_edges` do not belong and reach the value of the |T|-th best edge; `missed_edges` belong and stay below it, or
    are zero. Both strongest first.
    """

    auroc: float
    auprc: float
    precision: float
    false_edges: tuple[str, ...]
    missed_edges: tuple[str, ...]
    n_true: int
    n_edges: int

    def _table(self) -> Table:
        """One row."""
        return table_rows([self])

    def __str__(self) -> str:
        errors = [f"not in the circuit: {', '.join(self.false_edges)}"] if self.false_edges else []
        errors += [f"missed: {', '.join(self.missed_edges)}"] if self.missed_edges else []
        numbers = (
            f"AUROC {self.auroc:.3f}, AUPRC {self.auprc:.3f}, precision at {self.n_true} of {self.n_edges} "
            f"edges {self.precision:.3f}"
        )
        return "; ".join([numbers, *errors])


def compare(
    scores: EdgeScores | EdgeEffects | EdgeMatrix, truth: Circuit, *, resolution: float = RESOLUTION
) -> TruthComparison:
    """Rank edges by absolute score and compare with the true circuit. No forward pass.

    Raises:
        InputError: scores of another graph, or a truth that is empty or holds every edge.
        MetricError: a score that is not finite.

    >>> case = find_case("induction")
    >>> print(compare(score_edges(case.model, case.task, rules="gradient", direction=case.direction), case.truth()))
    """
    space = truth.space
    values = scores if isinstance(scores, Tensor) else scores.values
    if tuple(values.shape) != (space.n_writers, space.n_readers) or (
        not isinstance(scores, Tensor) and scores.space != space
    ):
        raise InputError(
            f"scores and truth must be of one graph; got scores {tuple(values.shape)} for a graph of "
            f"{(space.n_writers, space.n_readers)}"
        )
    if not 0 < truth.n_edges < space.n_edges:
        raise InputError(
            f"a truth to compare with has some but not all of the {space.n_edges} edges; got {truth.n_edges}"
        )
    if not bool(values.isfinite().all()):
        raise MetricError("edge scores must be finite to be ranked; got NaN or infinity")
    index = space.mask.nonzero()
    true = truth.mask[space.mask].cpu()
    levels = find_levels(values.detach().cpu()[space.mask], resolution)
    cut = int(levels.sort(descending=True).values[truth.n_edges - 1])
    order = levels.argsort(descending=True, stable=True).tolist()

    def names(wrong: Bool[Tensor, " edge"]) -> tuple[str, ...]:
        return tuple(space.edge_name(*index[i].tolist()) for i in order if bool(wrong[i]))

    return TruthComparison(
        auroc=find_auroc(levels, true),
        auprc=find_auprc(levels, true),
        precision=find_precision(levels, true),
        false_edges=names(~true & (levels >= cut) & (levels > 0)),
        missed_edges=names(true & ((levels < cut) | (levels == 0))),
        n_true=truth.n_edges,
        n_edges=space.n_edges,
    )


def find_levels(values: Float[Tensor, " edge"], resolution: float = RESOLUTION) -> Int[Tensor, " edge"]:
    """Ranks by absolute value, from 0 (nothing) upwards; equal values share one."""
    size = values.double().abs()
    size = torch.where(size <= resolution * size.max(), 0.0, size)
    ordered, order = size.sort()
    new = torch.cat([ordered[:1] > 0, ordered.diff() > EQUAL * ordered[1:]])
    levels = torch.empty_like(order)
    levels[order] = new.long().cumsum(0)
    return levels


def find_auroc(levels: Int[Tensor, " edge"], true: Bool[Tensor, " edge"]) -> float:
    """Probability that a true edge ranks above another one, ties counting half."""
    above = (levels[true][:, None] > levels[~true]).double()
    equal = (levels[true][:, None] == levels[~true]).double()
    return float((above + equal / 2).mean())


def find_auprc(levels: Int[Tensor, " edge"], true: Bool[Tensor, " edge"]) -> float:
    """Average precision; edges of one level enter together."""
    area = 0.0
    for level in levels.unique().tolist():
        gained = float((true & (levels == level)).sum()) / float(true.sum())
        area += gained * float(true[levels >= level].double().mean())
    return area


def find_precision(levels: Int[Tensor, " edge"], true: Bool[Tensor, " edge"]) -> float:
    """Expected share of true edges among the |T| best when ties are broken at random."""
    n = int(true.sum())
    cut = int(levels.sort(descending=True).values[n - 1])
    sure, tied = levels > cut, levels == cut
    places = n - int(sure.sum())
    return (float(true[sure].sum()) + places * float(true[tied].double().mean())) / n
