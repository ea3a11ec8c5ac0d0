"""Scores of nodes (heads, MLPs): the same estimators at coarser grain than edges.

A node's score is the sum of its outgoing edges' scores: the estimated effect of its whole write. Selecting nodes gives
a `Circuit` with every edge between them. Cost: the passes of edges, without a product per edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...relevance import Composite, Rule
from ...result import Result, Table
from ...runs.record import Baseline
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET
from ..graph.circuit import Circuit
from ..graph.select import select_top_nodes
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .methods import Method, find_method
from .score import Progress, batch_rows, check_correspondence, join_baselines, plan_batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class NodeScores(Result, strongest="score"):
    """Estimated effects of nodes, per pair: ``[batch, writer]``; positive = the clean write raises the metric."""

    space: EdgeSpace
    per_example: Float[Tensor, "batch writer"]
    method: str
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, " writer"]:
        """Mean score over pairs."""
        return self.per_example.mean(dim=0)

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` nodes of largest absolute score, strongest first."""
        order = self.values.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.space.writers[i], float(self.values[i])) for i in order]

    def circuit(self, n_nodes: int) -> Circuit:
        """Every edge between the input, the `n_nodes` nodes of largest absolute score, and the logits."""
        mask = select_top_nodes(self.space, self.values, n_nodes)
        provenance = {**self.provenance, "selection": "nodes", "n_nodes": n_nodes}
        return Circuit(self.space, mask, provenance=provenance).pruned()

    def _table(self) -> Table:
        """One row per node, strongest first."""
        error = self.per_example.std(dim=0) / len(self.per_example) ** 0.5
        return {"node": self.space.writers, "score": self.values.tolist(), "standard_error": error.tolist()}


@borrows
def score_nodes(
    model: TransformerBridge,
    task: Task,
    *,
    preset: str | None = None,
    rules: str | Composite | Sequence[str | Rule] | None = None,
    ig_steps: int | None = None,
    path: str | None = None,
    direction: str | None = None,
    ablation: str = "corrupt",
    split_experts: bool = False,
    memory_budget: int | str = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> NodeScores:
    """Scores of all nodes, ``[batch, writer]``: what the scores of a node's edges add up to; arguments and errors as
    for `score_edges`. Cost: its passes; there is no product per edge.

    >>> score_nodes(model, task.train, rules="gradient").top(5)
    """
    method = find_method(preset, rules=rules, ig_steps=ig_steps, path=path, direction=direction, ablation=ablation)
    space = edge_space(model, task, split_experts=split_experts, aligned=None)
    check_correspondence(method, task)
    plan = plan_batches(model, task, space, method, memory_budget, None)
    rows = list(_summed(batch_rows(model, task, space, method, plan, 0, progress, nodes=True)))
    per_question = task.pairs.per_question
    baseline = join_baselines([baseline for _, baseline in rows]).by(per_question)
    baseline.require_gap()
    return NodeScores(
        space, per_question(torch.cat([values for values, _ in rows])), method.rules.name, task.metric.name, baseline,
        score_provenance("node scores", method, model, task),
    )  # fmt: skip


def _summed(rows: Any) -> Any:
    for row in rows:
        yield row.values.sum(dim=2).cpu(), row.baseline


def score_provenance(what: str, method: Method, model: TransformerBridge, task: Task) -> Provenance:
    """Where scores of nodes or neurons come from."""
    return build_provenance(method=what, **method.to_json(), model=identify_model(model), task=task.provenance())
