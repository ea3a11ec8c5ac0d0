"""Does the circuit depend on the data it was found on? Jaccard indices of selections over resamples, templates, seeds.

A Jaccard index is |A and B| / |A or B|: 1 for the same edges, 0 for none in common; two random circuits of n of N edges
have about n / (2N - n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import InputError
from ...result import Result, Table

if TYPE_CHECKING:
    from ..graph.circuit import Circuit


@dataclass(frozen=True)
class Stability(Result):
    """Jaccard indices of the circuits of parts of the data to the circuit of all of it.

    `over` says which parts (``"resamples"``, ``"templates"``, ``"selections"``: all pairs of several circuits),
    `expected` is the index of two random circuits of that size, `labels` names the parts where they have names.
    """

    over: str
    n_edges: int
    jaccards: tuple[float, ...]
    expected: float
    labels: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return sum(self.jaccards) / len(self.jaccards)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The central `level` of the indices."""
        tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.quantile(torch.tensor(self.jaccards, dtype=torch.float64), tail).tolist()
        return low, high

    def _table(self) -> Table:
        """One row per part."""
        return {
            "part": self.labels or [*range(len(self.jaccards))],
            "jaccard": self.jaccards,
            "expected": self.expected,
        }

    def __repr__(self) -> str:
        low, high = self.interval()
        return (
            f"Jaccard {self.mean:.3f} [{low:.3f}, {high:.3f}] over {len(self.jaccards)} {self.over} for circuits of "
            f"{self.n_edges} edges; random circuits {self.expected:.3f}"
        )


def jaccard(a: Bool[Tensor, "*cell"], b: Bool[Tensor, "*cell"]) -> float:
    """Jaccard index of two sets (1 for two empty ones)."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def compare_selections(circuits: Sequence[Circuit]) -> Stability:
    """All pairs of several circuits (other seeds, templates, settings) of one graph.

    >>> compare_selections([score_edges(model, t).circuit(80) for t in (task_a, task_b, task_c)])
    """
    if len(circuits) < 2:
        raise InputError(f"at least two circuits can be compared; got {len(circuits)}")
    pairs = [(a, b) for i, a in enumerate(circuits) for b in circuits[i + 1 :]]
    n = round(sum(c.n_edges for c in circuits) / len(circuits))
    expected = sum(a.expected_overlap(b) for a, b in pairs) / len(pairs)
    return Stability("selections", n, tuple(a.overlap(b) for a, b in pairs), expected)
