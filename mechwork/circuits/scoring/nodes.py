"""Scores of nodes (heads, MLPs) and of MLP neurons: the same estimators at coarser and finer grain than edges.

A node's score is the sum of its outgoing edges' scores: the estimated effect of its whole write. A neuron's is (clean -
other run's activation) . coefficient at `mlp_post`. Selecting nodes gives a `Circuit` with every edge between them;
selecting neurons a mask that `measure_neurons` tests. Cost as for edges; neurons need no products with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError
from ...models.anatomy import device_of
from ...models.borrow import borrows, hooked
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...relevance import Composite, Rule
from ...result import Result, Table
from ...runs.record import Baseline, check_task, record_run, run_to_metric
from ...shapes import PerExample
from ...sites import Site, hook_name
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET
from ..graph.circuit import Circuit
from ..graph.select import select_top_nodes
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space, require_aligned
from .methods import Method, find_method
from .points import Passes, start_at
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


@dataclass(frozen=True, eq=False)
class NeuronScores(Result):
    """Estimated effects of MLP neurons, per pair: ``[batch, layer, neuron]``."""

    per_example: Float[Tensor, "batch layer neuron"]
    method: str
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, "layer neuron"]:
        """Mean score over pairs."""
        return self.per_example.mean(dim=0)

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` neurons of largest absolute score, as ``m3.n17``, strongest first."""
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        width = self.values.shape[1]
        return [(f"m{i // width}.n{i % width}", float(flat[i])) for i in order]

    def _table(self) -> Table:
        """One row per neuron, strongest first."""
        places, scores = zip(*self.top(self.values.numel()), strict=True)
        return {"neuron": places, "score": scores}

    def select(self, n_neurons: int) -> Bool[Tensor, "layer neuron"]:
        """The `n_neurons` of largest absolute score; raises `InputError` for more than there are."""
        flat = self.values.flatten().abs()
        if not 0 < n_neurons <= len(flat):
            raise InputError(f"this model has {len(flat)} neurons; got {n_neurons}")
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.argsort(descending=True, stable=True)[:n_neurons]] = True
        return chosen.view_as(self.values)


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
    memory_budget: int | str = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> NodeScores:
    """Scores of all nodes, ``[batch, writer]``: what the scores of a node's edges add up to; arguments and errors as
    for `score_edges`. Cost: its passes; there is no product per edge.

    >>> score_nodes(model, task.train, rules="gradient").top(5)
    """
    method = find_method(preset, rules=rules, ig_steps=ig_steps, path=path, direction=direction, ablation=ablation)
    space = edge_space(model, task, aligned=None)
    check_correspondence(method, task)
    plan = plan_batches(model, task, space, method, memory_budget, None)
    rows = list(_summed(batch_rows(model, task, space, method, plan, 0, progress, nodes=True)))
    per_question = task.pairs.per_question
    baseline = join_baselines([baseline for _, baseline in rows]).by(per_question)
    baseline.require_gap()
    return NodeScores(
        space, per_question(torch.cat([values for values, _ in rows])), method.rules.name, task.metric.name, baseline,
        _provenance("node scores", method, model, task),
    )  # fmt: skip


def _summed(rows: Any) -> Any:
    for row in rows:
        yield row.values.sum(dim=2).cpu(), row.baseline


@borrows
def score_neurons(
    model: TransformerBridge,
    task: Task,
    *,
    rules: str | Composite | Sequence[str | Rule] | None = None,
    ig_steps: int | None = None,
    direction: str | None = None,
    batch_size: int = 16,
) -> NeuronScores:
    """Scores of all MLP neurons, ``[batch, layer, neuron]``, along the path between the two inputs.

    Raises `InputError` for mixtures of experts, whose insides have no sites. Cost: 2 forwards + `ig_steps` (forward +
    backward).
    """
    method = find_method(rules=rules, ig_steps=ig_steps, direction=direction)
    edge_space(model, task)
    check_task(model, task).check_site(Site("mlp_post", 0))
    scores, ends, batch_size = [], [], task.pairs.whole(batch_size)
    for start in range(0, len(task), batch_size):
        piece = task[start : start + batch_size]
        passes = Passes.of(model, piece, method.rules, method.direction)
        host, donor = (passes.plain(("resid_pre", "mlp_post"), donor=d) for d in (False, True))
        delta = torch.stack(donor.layers["mlp_post"]) - torch.stack(host.layers["mlp_post"])
        first, last = (run.layers["resid_pre"][0] for run in (host, donor))
        total = torch.zeros(())
        for fraction in method.fractions:
            put = [] if fraction == 0 else [start_at(first + fraction * (last - first))]
            point = passes.point(("mlp_post",), (), put, fraction)
            product = (delta * torch.stack(point.coefficients["mlp_post"])).sum(dim=2)  # layer batch neuron
            total = total.to(product) + product / len(method.fractions)
        scores.append((total if method.direction == "denoise" else -total).transpose(0, 1).cpu())
        metrics = passes.measure(host).cpu(), passes.measure(donor, donor=True).cpu()
        ends.append(Baseline(*(metrics[::-1] if method.direction == "denoise" else metrics)))
    baseline = join_baselines(ends).by(task.pairs.per_question)
    baseline.require_gap()
    provenance = _provenance("neuron scores", method, model, task)
    return NeuronScores(
        task.pairs.per_question(torch.cat(scores)), method.rules.name, task.metric.name, baseline, provenance
    )


def measure_neurons(
    model: TransformerBridge, task: Task, kept: Sequence[Bool[Tensor, "layer neuron"]], *, batch_size: int = 32
) -> Float[Tensor, "choice batch"]:
    """The metric when all neurons but the `kept` ones have the corrupt run's activations, for several choices.

    Heads and the stream run live. Cost per batch: 1 forward, and 1 per choice.
    """
    require_aligned(task)
    rows: list[Tensor] = []
    for pairs in task.pairs.batches(batch_size):
        pairs = pairs.to(device_of(model))
        corrupt = record_run(model, pairs, ("mlp_post",), corrupt=True, n_tail=1).layers["mlp_post"]
        metrics: list[PerExample] = []
        for mask in kept:
            hooks = [(hook_name(Site("mlp_post", i)), _mix(row, corrupt[i])) for i, row in enumerate(mask)]
            with hooked(model, hooks):
                metrics.append(task.measure(run_to_metric(model, task, pairs, pairs.clean_tokens), pairs).cpu())
        rows.append(torch.stack(metrics))
    return task.pairs.per_question(torch.cat(rows, dim=1).T).T


def _mix(kept: Bool[Tensor, " neuron"], other: Tensor) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        return torch.where(kept.to(activation.device), activation, other)

    return hook


def _provenance(what: str, method: Method, model: TransformerBridge, task: Task) -> Provenance:
    return build_provenance(method=what, **method.to_json(), model=identify_model(model), task=task.provenance())
