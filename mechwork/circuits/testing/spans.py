"""Circuits by span: which edges matter at which tokens, run and judged.

    scores = score_positions(model, task.train, positions="spans")
    circuit = find_span_circuit(scores, n_edges=300)
    print(evaluate_spans(model, task.test, circuit))

An edge u -> v at a span carries u's write to v's input at the tokens of that span. Between spans information moves
through attention: an edge to a head's k or v at a span is about tokens that are looked at, one to its q about tokens
that look (Haklay et al. 2025, PEAP, whose nodes at positions these are). Cut, it carries the corrupt run's write at the
corresponding token, by live differences as in every circuit; a token without a partner keeps the clean run's write. A
circuit that has the same edges at all spans is the circuit without spans.

Faithfulness as everywhere: (m(C) - m(empty)) / (m(M) - m(empty)), with every edge cut at every span in `empty`. Cost
per batch of pairs: 2 forwards (3 where lengths differ), and about 1.5 per circuit and span.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import InputError, check_whole
from ...execute.memory import MemoryBudget
from ...execute.progress import Progress
from ...models.anatomy import device_of
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...runs.record import run_to_metric
from ...shapes import PerExample
from ...tasks.task import Task
from ..graph.ablated import find_ablation
from ..graph.budget import DEFAULT_BUDGET, parse_bytes
from ..graph.run import as_circuit
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from ..scoring.positions import PositionScores
from .curves import bootstrap_faithfulness, faithfulness
from .evaluate import EvaluationSettings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class SpanCircuit(Result):
    """Edges at spans: `mask` is ``[span, writer, reader]``."""

    space: EdgeSpace
    labels: tuple[str, ...]
    mask: Bool[Tensor, "span writer reader"]
    provenance: Provenance

    @property
    def n_edges(self) -> int:
        """Edges, counted once per span."""
        return int(self.mask.sum())

    @property
    def share(self) -> float:
        """Of all edges at all spans."""
        return self.n_edges / (len(self.labels) * self.space.n_edges)

    def _table(self) -> Table:
        """One row per span and edge."""
        rows = (self.mask & self.space.mask).nonzero().tolist()
        return {"at": [self.labels[s] for s, _, _ in rows], "edge": [self.space.edge_name(i, j) for _, i, j in rows]}


@dataclass(frozen=True, eq=False)
class SpanEvaluation(Result):
    """How a span circuit does on some pairs, beside random ones of its size. Metrics are per pair (or question)."""

    n_edges: int
    share: float
    per_example: PerExample
    empty_per_example: PerExample
    model_per_example: PerExample
    random: tuple[float, ...]
    metric_name: str
    provenance: Provenance

    @property
    def faithfulness(self) -> float:
        """Share of the metric's gap that the circuit keeps."""
        return faithfulness(self.per_example, self.empty_per_example, self.model_per_example)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval of the faithfulness over pairs."""
        return bootstrap_faithfulness(self.per_example, self.empty_per_example, self.model_per_example, level=level)

    def _table(self) -> Table:
        """One row."""
        random = sum(self.random) / len(self.random) if self.random else float("nan")
        return [{"n_edges": self.n_edges, "share": self.share, "faithfulness": self.faithfulness, "random": random}]


def find_span_circuit(scores: PositionScores, n_edges: int) -> SpanCircuit:
    """The `n_edges` edges at spans of largest absolute score. Raises `InputError` for more than there are."""
    every = len(scores.labels) * scores.space.n_edges
    if not 1 <= check_whole("n_edges", n_edges) <= every:
        raise InputError(f"these scores have {every} edges at spans; got n_edges={n_edges}")
    values = scores.values.abs().masked_fill(~scores.space.mask, -1.0).flatten()
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[values.argsort(descending=True, stable=True)[:n_edges]] = True
    provenance = {**scores.provenance, "selection": "spans", "n_edges": n_edges}
    return SpanCircuit(scores.space, scores.labels, mask.view(scores.values.shape), provenance)


@borrows
def evaluate_spans(
    model: TransformerBridge,
    task: Task,
    circuit: SpanCircuit,
    *,
    n_random: int = 3,
    seed: int = 0,
    batch_size: int | None = None,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> SpanEvaluation:
    """Faithfulness of a span circuit under ``corrupt`` ablation, beside `n_random` random ones of its size.

    Raises `InputError` for a circuit of another graph, or of spans that the task does not have.
    """
    space = edge_space(model, task, **circuit.space.splits, aligned=None)
    task.pairs.require_corrupt()
    if circuit.space != space:
        raise InputError(f"the circuit belongs to another graph, {circuit.space}; this model's is {space}")
    names, cells = task.pairs.cells("each" if _numbered(circuit.labels, task) else "spans")
    labels = task.position_labels(names)
    if set(labels) != set(circuit.labels):
        raise InputError(
            f"the circuit is of the spans {', '.join(circuit.labels)}; task {task.name!r} has {', '.join(labels)}"
        )
    cells = cells[[labels.index(label) for label in circuit.labels]]
    generator = torch.Generator().manual_seed(seed)
    every = space.mask.expand_as(circuit.mask)
    randoms = [_random(every, circuit.n_edges, generator) for _ in range(check_whole("n_random", n_random))]
    masks = [torch.zeros_like(circuit.mask), circuit.mask, *randoms]
    size = EvaluationSettings("corrupt", batch_size, parse_bytes(memory_budget)).n_pairs(
        space, task, int(model.cfg.d_model)
    )
    ablation = find_ablation(model, task, space, "corrupt")
    parts: list[Tensor] = []
    done = 0
    for pairs in task.pairs.batches(size):
        here = cells[:, done : done + len(pairs), : pairs.clean_tokens.shape[1]].to(device_of(model))
        done += len(pairs)
        pairs = pairs.to(device_of(model))
        metrics = [task.measure(run_to_metric(model, task, pairs), pairs).cpu()]
        ablated = ablation.writes(pairs, 0)
        for mask in masks:
            with torch.no_grad(), as_circuit(model, space, mask, ablated, cells=here):
                metrics.append(task.measure(run_to_metric(model, task, pairs), pairs).cpu())
        parts.append(torch.stack(metrics, dim=1))
        if progress is not None:
            progress(done, len(task), "evaluating circuits by span")
    whole, empty, found, *others = task.pairs.per_question(torch.cat(parts)).unbind(dim=1)
    return SpanEvaluation(
        circuit.n_edges, circuit.share, found, empty, whole,
        tuple(faithfulness(other, empty, whole) for other in others), task.metric.name,
        build_provenance(
            method="span circuit evaluation", seed=seed, model=identify_model(model), task=task.provenance(),
            subject=circuit.provenance,
        ),
    )  # fmt: skip


def _numbered(labels: tuple[str, ...], task: Task) -> bool:
    return task.pairs.one_length and len(labels) == int(task.pairs.lengths[0]) and labels[0][:1].isdigit()


def _random(every: Tensor, n: int, generator: torch.Generator) -> Tensor:
    chosen = every.flatten().nonzero().flatten()
    mask = torch.zeros(every.numel(), dtype=torch.bool)
    mask[chosen[torch.randperm(len(chosen), generator=generator)[:n]]] = True
    return mask.view(every.shape)
