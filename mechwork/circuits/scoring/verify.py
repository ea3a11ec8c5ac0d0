"""Do the scores hold? Exact effects of the strongest edges, and of some that the scores call weak, beside their
estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...tasks.task import Task
from ..graph.writers import edge_space
from .exact import ExactEffects
from .methods import find_method
from .scores import EdgeScores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Verification(Result):
    """Estimates beside measured effects: of the `n_top` strongest edges, then of random others (what the scores may
    have missed).
    """

    edges: tuple[str, ...]
    estimated: Float[Tensor, " edge"]
    measured: Float[Tensor, " edge"]
    n_top: int
    provenance: Provenance

    @property
    def pearson(self) -> float:
        """Correlation over the strongest edges."""
        rows = torch.stack([self.estimated[: self.n_top], self.measured[: self.n_top]]).double()
        return float(torch.corrcoef(rows)[0, 1])

    @property
    def relative_error(self) -> float:
        """|estimated - measured| / |measured| in the Euclidean norm, over the strongest edges."""
        top, found = self.estimated[: self.n_top], self.measured[: self.n_top]
        return float((top - found).norm() / found.norm())

    @property
    def missed(self) -> float:
        """Largest measured effect among the random other edges, in absolute value (0 when none was measured)."""
        rest = self.measured[self.n_top :]
        return float(rest.abs().max()) if len(rest) else 0.0

    def _table(self) -> Table:
        """One row per edge."""
        return {"edge": self.edges, "estimated": self.estimated.tolist(), "measured": self.measured.tolist()}

    def __repr__(self) -> str:
        n = len(self.edges) - self.n_top
        return (
            f"{self.n_top} strongest edges: Pearson {self.pearson:.3f}, relative error {self.relative_error:.3f}; "
            f"largest effect among {n} random others {self.missed:.4g}"
        )


@borrows
def verify_edges(
    model: TransformerBridge, task: Task, scores: EdgeScores, n_top: int = 30, *, n_others: int = 30, seed: int = 0
) -> Verification:
    """Measure the `n_top` strongest edges and `n_others` random ones, each alone, in the scores' own direction.

    Cost: 2 forwards, and half a forward per edge on average. Raises `InputError` for fewer than two edges, more than
    the graph has, or scores of another model.

    >>> verify_edges(model, task.test, scores)
    """
    edge_space(model, task)
    space = scores.space
    if n_top < 2 or n_others < 0 or n_top + n_others > space.n_edges:
        raise InputError(f"2 to {space.n_edges} edges can be verified; got {n_top} and {n_others} others")
    scores.require_model(identify_model(model)["weights_sha256"])
    index = space.mask.nonzero()
    order = scores.values[space.mask].abs().argsort(descending=True, stable=True)
    rest = order[n_top:]
    others = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:n_others]]
    chosen = index[torch.cat([order[:n_top], others])]
    rows, columns = chosen.T
    mask = torch.zeros_like(space.mask)
    mask[rows, columns] = True
    method = find_method("exact", direction=scores.direction)
    measured = ExactEffects(model, task, space, method, mask=mask)(task).values.mean(dim=0).cpu()
    return Verification(
        tuple(space.edge_name(i, j) for i, j in chosen.tolist()),
        scores.values[rows, columns],
        measured[rows, columns],
        n_top,
        build_provenance(
            method="exact effects of edges",
            seed=seed,
            model=identify_model(model),
            task=task.provenance(),
            scores=scores.provenance,
        ),
    )
