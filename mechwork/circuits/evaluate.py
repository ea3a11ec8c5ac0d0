"""Test circuits: faithfulness on pairs that were not used to find them, beside random and empty circuits.

Ablation says what a cut edge carries: ``"corrupt"`` the source's write in the paired corrupt run (the empty circuit then
computes the corrupt logits), ``"zero"`` nothing, ``"mean"`` its mean over the pairs and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..runs.record import check_task, run_to_metric
from ..shapes import EdgeMask, PerExample
from ..tasks.metrics import accuracy
from ..tasks.task import Task
from .ablated import ABLATIONS, find_ablation
from .circuit import Circuit, prune
from .curves import MIB_FRACTIONS, CircuitEvaluation, FaithfulnessCurve, faithfulness
from .run import as_circuit
from .score import require_aligned
from .scores import EdgeScores
from .select import select_random, select_top
from .space import EdgeSpace
from .writers import check_edges

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Progress = Callable[[int, int, str], None]


@overload
def evaluate(
    model: TransformerBridge,
    task: Task,
    subject: EdgeScores,
    *,
    ablation: str = ...,
    fractions: Sequence[float] = ...,
    n_random: int = ...,
    seed: int = ...,
    batch_size: int = ...,
    progress: Progress | None = ...,
) -> FaithfulnessCurve: ...
@overload
def evaluate(
    model: TransformerBridge,
    task: Task,
    subject: Circuit,
    *,
    ablation: str = ...,
    n_random: int = ...,
    seed: int = ...,
    batch_size: int = ...,
    progress: Progress | None = ...,
) -> CircuitEvaluation: ...
def evaluate(
    model: TransformerBridge,
    task: Task,
    subject: EdgeScores | Circuit,
    *,
    ablation: str = "corrupt",
    fractions: Sequence[float] = MIB_FRACTIONS,
    n_random: int = 3,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> FaithfulnessCurve | CircuitEvaluation:
    """Faithfulness of one circuit, or of the circuits that scores select over `fractions` of the graph's edges.

    Beside each: the whole model, the empty circuit and `n_random` random circuits of the same size. Cost per batch of
    pairs: 2 forwards, and one forward per circuit.

    Raises:
        InputError: scores or a circuit of another graph or model, or an unknown ablation.
        MetricError: the model and the empty circuit have the same metric, or a metric is not finite.

    >>> curve = evaluate(model, task.test, scores)
    >>> evaluate(model, task.test, scores.circuit(80)).faithfulness
    """
    if ablation not in ABLATIONS:
        raise UnknownNameError("ablation", ablation, ABLATIONS)
    anatomy = check_task(model, task)
    check_edges(model, anatomy)
    require_aligned(task)
    space = EdgeSpace.of(anatomy)
    if subject.space != space:
        raise InputError(
            f"the {type(subject).__name__} belongs to another graph, {subject.space}; this model's is {space}"
        )
    identity = identify_model(model)
    if isinstance(subject, EdgeScores):
        subject.require_model(identity["weights_sha256"])
    provenance = build_provenance(
        method="circuit evaluation",
        ablation=ablation,
        seed=seed,
        n_random=n_random,
        model=identity,
        task=task.provenance(),
        subject=subject.provenance,
    )
    bench = _Bench(model, task, ablation, batch_size, progress, provenance)
    if isinstance(subject, Circuit):
        return bench.evaluate_circuit(subject, _random_masks(space, [subject.n_edges], n_random, seed))
    sizes = _sizes(space, fractions)
    return bench.evaluate_scores(subject, tuple(fractions), sizes, _random_masks(space, sizes, n_random, seed))


def _sizes(space: EdgeSpace, fractions: Sequence[float]) -> tuple[int, ...]:
    """Nominal numbers of edges; at least one."""
    if not fractions or any(not 0 < f <= 1 for f in fractions) or list(fractions) != sorted(fractions):
        raise InputError(f"fractions of the edges are increasing numbers in (0, 1]; got {fractions}")
    return tuple(max(1, int(f * space.n_edges)) for f in fractions)


def _random_masks(space: EdgeSpace, sizes: Sequence[int], n_random: int, seed: int) -> list[EdgeMask]:
    """`n_random` times one random circuit per size."""
    return [select_random(space, n, seed + i) for i in range(n_random) for n in sizes if n]


@dataclass(frozen=True, eq=False)
class _Bench:
    """Where circuits are tested: model, pairs, and how cut edges are ablated."""

    model: TransformerBridge
    task: Task
    ablation: str
    batch_size: int
    progress: Progress | None
    provenance: Provenance

    def measure(self, space: EdgeSpace, masks: Sequence[EdgeMask]) -> tuple[Tensor, Tensor]:
        """Metric and accuracy ``[circuit, batch]`` of the whole model, the empty circuit, and the circuits `masks`."""
        controls = [space.mask, torch.zeros_like(space.mask)]
        return measure_circuits(
            self.model,
            self.task,
            space,
            [*controls, *masks],
            ablation=self.ablation,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def evaluate_circuit(self, circuit: Circuit, randoms: list[EdgeMask]) -> CircuitEvaluation:
        metrics, correct = self.measure(circuit.space, [circuit.mask, *randoms])
        return CircuitEvaluation(
            circuit=circuit,
            per_example=metrics[2],
            empty_per_example=metrics[1],
            model_per_example=metrics[0],
            random=tuple(faithfulness(row, metrics[1], metrics[0]) for row in metrics[3:]),
            accuracy=float(correct[2].mean()),
            model_accuracy=float(correct[0].mean()),
            ablation=self.ablation,
            metric_name=self.task.metric.name,
            provenance=self.provenance,
        )

    def evaluate_scores(
        self, scores: EdgeScores, fractions: tuple[float, ...], sizes: tuple[int, ...], randoms: list[EdgeMask]
    ) -> FaithfulnessCurve:
        space, values, n = scores.space, scores.values, len(sizes)
        chosen = [prune(space, select_top(space, values, size)) for size in sizes]
        signed = [prune(space, select_top(space, values, size, by="signed")) for size in sizes]
        metrics, _ = self.measure(space, [*chosen, *signed, *randoms])
        faithfulness(metrics[0], metrics[1], metrics[0])  # refuses when undefined
        return FaithfulnessCurve(
            fractions=fractions,
            sizes=sizes,
            n_kept=tuple(int(mask.sum()) for mask in chosen),
            per_example=metrics[2 : 2 + n],
            signed_per_example=metrics[2 + n : 2 + 2 * n],
            random_per_example=metrics[2 + 2 * n :].unflatten(0, (-1, n)),
            empty_per_example=metrics[1],
            model_per_example=metrics[0],
            ablation=self.ablation,
            metric_name=self.task.metric.name,
            provenance=self.provenance,
        )


def measure_circuits(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    masks: Sequence[EdgeMask],
    *,
    ablation: str = "corrupt",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "circuit batch"], Float[Tensor, "circuit batch"]]:
    """The metric, and whether the answer is right, of every circuit on every pair. The ablated run is shared by all circuits."""
    metrics: list[Tensor] = []
    correct: list[Tensor] = []
    found = find_ablation(model, task, space, ablation)
    n_batches = -(-len(task) // batch_size)
    for i, pairs in enumerate(task.pairs.batches(batch_size)):
        pairs = pairs.to(device_of(model))
        ablated = found.writes(pairs, i * batch_size)
        rows: list[PerExample] = []
        hits: list[Tensor] = []
        for j, mask in enumerate(masks):
            with torch.no_grad(), as_circuit(model, space, mask, ablated):
                logits = run_to_metric(model, task, pairs, pairs.clean_tokens)
            rows.append(task.measure(logits, pairs).cpu())
            hits.append(accuracy(logits, pairs).cpu())
            if progress is not None:
                progress(i * len(masks) + j + 1, n_batches * len(masks), "evaluating circuits")
        metrics.append(torch.stack(rows))
        correct.append(torch.stack(hits))
    return torch.cat(metrics, dim=1), torch.cat(correct, dim=1).float()
