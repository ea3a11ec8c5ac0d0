"""Scores of MLP neurons: the estimators of edges at finer grain, one unit per micro-batch of pairs.

A neuron's score is (clean - other run's activation) . coefficient at `mlp_post`. Selecting neurons gives a mask that
`measure_neurons` tests. Cost as for edges, without the products with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError
from ...execute import ModelRef, Unit, Work
from ...execute.drive import run_units
from ...execute.memory import cut
from ...execute.task import pack_task, unpack_task, why_not_sent
from ...execute.unit import Run, Tensors
from ...models.anatomy import device_of
from ...models.borrow import borrows, hooked
from ...provenance import Provenance
from ...relevance import Composite, Rule
from ...result import Result, Table
from ...runs.record import Baseline, check_task, record_run, run_to_metric
from ...shapes import PerExample
from ...sites import Site, hook_name
from ...tasks.task import Task
from ..graph.writers import edge_space, require_aligned
from .methods import Method, find_method
from .nodes import score_provenance
from .points import Passes, start_at
from .score import join_baselines
from .units import pack_baseline, pack_method, unpack_method

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "neurons.batch"


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
    facts, tensors = pack_task(task)
    settings = {"task": facts, **pack_method(method)}
    work = Work(OPERATION, ModelRef.of(model), settings, {"task": tensors}, why_not_sent([task.metric]))
    units = (work.unit(rows) for rows in cut(len(task), task.pairs.whole(batch_size)))
    found = [values for _, values in run_units(work, units, _runner(model, task, method))]
    ends = [Baseline(values["clean"], values["corrupt"]) for values in found]
    baseline = join_baselines(ends).by(task.pairs.per_question)
    baseline.require_gap()
    provenance = score_provenance("neuron scores", method, model, task)
    scores = task.pairs.per_question(torch.cat([values["values"] for values in found]))
    return NeuronScores(scores, method.rules.name, task.metric.name, baseline, provenance)


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the batches in a process that has the work's data and the model alone."""
    return _runner(model, unpack_task(work.settings["task"], work.data["task"]), unpack_method(work.settings))


def _runner(model: TransformerBridge, task: Task, method: Method) -> Run:
    def run(unit: Unit) -> Tensors:
        passes = Passes.of(model, task[slice(*unit.rows)], method.rules, method.direction)
        host, donor = (passes.plain(("resid_pre", "mlp_post"), donor=d) for d in (False, True))
        delta = torch.stack(donor.layers["mlp_post"]) - torch.stack(host.layers["mlp_post"])
        first, last = (run.layers["resid_pre"][0] for run in (host, donor))
        total = torch.zeros(())
        for fraction in method.fractions:
            put = [] if fraction == 0 else [start_at(first + fraction * (last - first))]
            point = passes.point(("mlp_post",), (), put, fraction)
            product = (delta * torch.stack(point.coefficients["mlp_post"])).sum(dim=2)  # layer batch neuron
            total = total.to(product) + product / len(method.fractions)
        values = (total if method.direction == "denoise" else -total).transpose(0, 1).cpu()
        metrics = passes.measure(host).cpu(), passes.measure(donor, donor=True).cpu()
        ends = Baseline(*(metrics[::-1] if method.direction == "denoise" else metrics))
        return {"values": values, **pack_baseline(ends)}

    return run


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
