"""Test circuits: faithfulness on pairs that were not used to find them, beside random and empty circuits.

Ablation says what a cut edge carries (see `ablated`): with ``"corrupt"``, the source's write in the paired corrupt run,
the empty circuit computes the corrupt logits. The ablated run is shared by all circuits and sizes; each circuit then
costs one forward (about 1.5 times a plain one), whatever the number of its edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from ...errors import InputError, UnknownNameError, check_seed, check_whole
from ...execute.progress import Progress
from ...models.anatomy import heads_share_scale
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...shapes import EdgeMask
from ...tasks.task import Task
from ..graph.ablated import ABLATIONS, find_ablation
from ..graph.budget import DEFAULT_BUDGET, parse_bytes
from ..graph.circuit import Circuit
from ..graph.prune import effective, prune
from ..graph.select import Ranking, select, select_random, select_random_same_degree
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from ..scoring.scores import EdgeScores
from .curves import MIB_FRACTIONS, CircuitEvaluation, FaithfulnessCurve, faithfulness
from .units import Measured, SharedRuns, run_circuits

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


SELECTIONS: dict[str, tuple[Ranking, Ranking]] = {
    "top": ("absolute", "signed"), "greedy": ("greedy", "greedy_signed"), "positive": ("positive", "signed"),
    "integer": ("integer", "integer_signed"),
}  # fmt: skip
"""How a curve's circuits are chosen by absolute and by signed score (see `select`)."""
RANDOM_EVERY = 3
"""Of ten sizes four then have random circuits beside them: one in a decade."""


@overload
def evaluate(
    model: TransformerBridge,
    task: Task,
    subject: EdgeScores,
    *,
    ablation: str = ...,
    fractions: Sequence[float] = ...,
    selection: str = ...,
    n_random: int = ...,
    random_every: int = ...,
    n_same_degree: int = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    memory_budget: int | str = ...,
    source: Task | None = ...,
    across_tasks: bool = ...,
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
    n_same_degree: int = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    memory_budget: int | str = ...,
    source: Task | None = ...,
    across_tasks: bool = ...,
    progress: Progress | None = ...,
) -> CircuitEvaluation: ...
@borrows
def evaluate(
    model: TransformerBridge,
    task: Task,
    subject: EdgeScores | Circuit,
    *,
    ablation: str = "corrupt",
    fractions: Sequence[float] = MIB_FRACTIONS,
    selection: str = "top",
    n_random: int = 3,
    random_every: int = RANDOM_EVERY,
    n_same_degree: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    memory_budget: int | str = DEFAULT_BUDGET,
    source: Task | None = None,
    across_tasks: bool = False,
    progress: Progress | None = None,
) -> FaithfulnessCurve | CircuitEvaluation:
    """Faithfulness of one circuit, or of the circuits that scores select over `fractions` of the graph's edges.

    Beside each: the whole model, the empty circuit, `n_random` random circuits of the same size (on a curve at every
    `random_every`-th size, counted from the largest) and `n_same_degree` that also keep every node's number of edges;
    accuracy and KL beside the metric. `selection` is ``"top"``, ``"greedy"``, ``"positive"`` or ``"integer"`` (see
    `select`); `source` is the task whose prompts means and learned constants come from (default: the tested one).
    Cost per batch of pairs: 1 forward, and 1 per circuit.

    In pairs of unequal length a cut edge carries the corrupt run's write at the corresponding token (by spans), and at
    tokens that only the clean prompt has the clean run's own: the empty circuit is then not the corrupt run.

    Raises:
        InputError: scores or a circuit of another graph or model, or (unless `across_tasks`) scores of another task or
            metric; an unknown ablation; a mean over fewer than 8 prompts.
        MetricError: the model and the empty circuit have the same metric, or a metric is not finite.

    >>> curve = evaluate(model, task.test, scores)
    >>> evaluate(model, task.test, scores.circuit(80), ablation="mean", source=task.train).faithfulness
    """
    if not isinstance(task, Task) or not isinstance(subject, EdgeScores | Circuit):
        said = f"{type(task).__name__}, {type(subject).__name__}"
        raise InputError(f"evaluate takes (model, task, scores or circuit), in this order; got (model, {said})")
    check_seed(seed)
    if check_whole("random_every", random_every) < 1:
        raise InputError(f"random circuits run at every random_every-th size, from 1; got {random_every}")
    if check_whole("n_random", n_random) < 0 or check_whole("n_same_degree", n_same_degree) < 0:
        raise InputError(f"n_random and n_same_degree count circuits, from 0; got {n_random} and {n_same_degree}")
    if ablation not in ABLATIONS:
        raise UnknownNameError("ablation", ablation, ABLATIONS)
    space = edge_space(model, task, **subject.space.splits, aligned=None)
    if subject.space != space:
        raise InputError(
            f"the {type(subject).__name__} belongs to another graph, {subject.space}; this model's is {space}"
        )
    if ablation == "corrupt":
        task.pairs.require_corrupt()
    identity = identify_model(model)
    if isinstance(subject, EdgeScores):
        subject.require_model(identity["weights_sha256"])
        if not across_tasks:
            subject.require_task(task.name, task.metric.name)
    provenance = build_provenance(
        method="circuit evaluation",
        ablation=ablation,
        seed=seed,
        n_random=n_random,
        model=identity,
        task=task.provenance(),
        subject=subject.provenance,
    )
    settings = EvaluationSettings(ablation, batch_size, parse_bytes(memory_budget), seed, source, progress)
    bench = _Bench(model, task, settings, n_random, random_every, n_same_degree, provenance)
    if isinstance(subject, Circuit):
        return bench.evaluate_circuit(subject)
    return bench.evaluate_scores(subject, tuple(fractions), _sizes(space, fractions), _rankings(selection))


def _sizes(space: EdgeSpace, fractions: Sequence[float]) -> tuple[int, ...]:
    """Nominal numbers of edges; at least one."""
    if not fractions or any(not 0 < f <= 1 for f in fractions) or list(fractions) != sorted(fractions):
        raise InputError(f"fractions of the edges are increasing numbers in (0, 1]; got {fractions}")
    return tuple(max(1, int(f * space.n_edges)) for f in fractions)


def _rankings(selection: str) -> tuple[Ranking, Ranking]:
    """How circuits are chosen by absolute and by signed score."""
    if selection not in SELECTIONS:
        raise InputError(f"circuits of a curve are selected by {', '.join(map(repr, SELECTIONS))}; got {selection!r}")
    return SELECTIONS[selection]


@dataclass(frozen=True, eq=False)
class EvaluationSettings:
    """How circuits are run: what cut edges carry, and how many pairs at a time."""

    ablation: str = "corrupt"
    batch_size: int | None = None
    memory_budget: int = DEFAULT_BUDGET
    seed: int = 0
    source: Task | None = None
    progress: Progress | None = None

    def n_pairs(self, space: EdgeSpace, task: Task, d_model: int) -> int:
        """Pairs per pass: ablated and live writes and one layer's readers must fit the budget."""
        per_pair = 4 * task.pairs.clean_tokens.shape[1] * d_model * (2 * space.n_writers + 2 * space.readers_per_layer)
        return self.batch_size or max(1, min(len(task), self.memory_budget // per_pair))


@dataclass(frozen=True, eq=False)
class _Bench:
    """Where circuits are tested, and beside what."""

    model: TransformerBridge
    task: Task
    settings: EvaluationSettings
    n_random: int
    random_every: int
    n_same_degree: int
    provenance: Provenance

    def measure(self, space: EdgeSpace, masks: Sequence[EdgeMask]) -> Measured:
        """The whole model, the empty circuit, and the circuits `masks`."""
        controls = [space.mask, torch.zeros_like(space.mask)]
        return measure_circuits(self.model, self.task, space, [*controls, *masks], self.settings)

    def randoms(self, space: EdgeSpace, sizes: Sequence[int]) -> list[EdgeMask]:
        """`n_random` times one random circuit per size."""
        return [select_random(space, n, self.settings.seed + i) for i in range(self.n_random) for n in sizes if n]

    def same_degrees(self, space: EdgeSpace, masks: Sequence[EdgeMask]) -> list[EdgeMask]:
        """`n_same_degree` times one shuffled form of each circuit."""
        seeds = range(self.settings.seed, self.settings.seed + self.n_same_degree)
        return [select_random_same_degree(space, mask, seed) for seed in seeds for mask in masks]

    def evaluate_circuit(self, circuit: Circuit) -> CircuitEvaluation:
        space = circuit.space
        randoms, shuffled = self.randoms(space, [circuit.n_edges]), self.same_degrees(space, [circuit.mask])
        found = self.measure(space, [circuit.mask, *randoms, *shuffled])
        ratios = [faithfulness(row, found.metric[1], found.metric[0]) for row in found.metric[2:]]
        return CircuitEvaluation(
            circuit=circuit,
            per_example=found.metric[2],
            empty_per_example=found.metric[1],
            model_per_example=found.metric[0],
            random=tuple(ratios[1 : 1 + len(randoms)]),
            accuracy=float(found.correct[2].mean()),
            model_accuracy=float(found.correct[0].mean()),
            ablation=self.settings.ablation,
            metric_name=self.task.metric.name,
            provenance=self.provenance,
            same_degree=tuple(ratios[1 + len(randoms) :]),
            kl_per_example=found.kl[2],
            empty_kl=float(found.kl[1].mean()),
        )

    def evaluate_scores(
        self,
        scores: EdgeScores,
        fractions: tuple[float, ...],
        sizes: tuple[int, ...],
        rankings: tuple[Ranking, Ranking],
    ) -> FaithfulnessCurve:
        space, values, n = scores.space, scores.values, len(sizes)
        chosen, signed = ([prune(space, select(space, values, size, by=by)) for size in sizes] for by in rankings)
        random_at = tuple(range(n - 1, -1, -self.random_every))[::-1]
        randoms = self.randoms(space, [sizes[i] for i in random_at])
        shuffled = self.same_degrees(space, chosen)
        found = self.measure(space, [*chosen, *signed, *randoms, *shuffled])
        metrics = found.metric
        faithfulness(metrics[0], metrics[1], metrics[0])  # refuses when undefined
        end = 2 + 2 * n + len(randoms)
        return FaithfulnessCurve(
            fractions=fractions,
            sizes=sizes,
            n_kept=tuple(int(mask.sum()) for mask in chosen),
            per_example=metrics[2 : 2 + n],
            signed_per_example=metrics[2 + n : 2 + 2 * n],
            random_per_example=metrics[2 + 2 * n : end].unflatten(0, (-1, len(random_at))),
            empty_per_example=metrics[1],
            model_per_example=metrics[0],
            ablation=self.settings.ablation,
            metric_name=self.task.metric.name,
            provenance=self.provenance,
            same_degree_per_example=metrics[end:].unflatten(0, (-1, n)) if shuffled else None,
            accuracy=found.correct[2 : 2 + n].mean(dim=1),
            kl=found.kl[2 : 2 + n].mean(dim=1),
            random_at=random_at,
        )


def measure_circuits(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    masks: Sequence[EdgeMask],
    settings: EvaluationSettings | None = None,
    shared: SharedRuns | None = None,
) -> Measured:
    """Every circuit on every pair; the ablated run is shared by all.

    Circuits that differ only in edges that cannot matter (see `prune.effective`) are run once; the full circuit is the
    model, and the empty one, where cut edges carry one other run, that run. Under ``corrupt`` first columns that both
    prompts of every pair share run once. Cost per batch of pairs: 2 forwards (none where `shared` has them from an
    earlier call), and at most 1 per circuit.
    """
    settings = settings or EvaluationSettings()
    size = task.pairs.whole(settings.n_pairs(space, task, int(model.cfg.d_model)))
    ablation = find_ablation(model, task, space, settings.ablation, seed=settings.seed, source=settings.source)
    paired = ablation.paired and (ablation.kind != "corrupt" or task.pairs.aligned)
    coupled = tuple(heads_share_scale(model, layer) for layer in range(space.n_layers))
    keys: list[bytes] = []
    wanted: dict[bytes, EdgeMask] = {}
    for mask in masks:
        reduced = effective(space, mask, coupled, paired=paired)
        keys.append(np.packbits(reduced.numpy()).tobytes())
        wanted.setdefault(keys[-1], reduced)
    measured = run_circuits(
        model, task, space, list(wanted.values()), ablation, size, settings.seed, settings.progress, shared
    )  # one row per circuit that differs
    place = {key: i for i, key in enumerate(wanted)}
    rows = [place[key] for key in keys]
    return Measured(*(task.pairs.per_question(column.T).T[rows] for column in measured))
