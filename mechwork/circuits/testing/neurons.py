"""How many neurons does a behaviour need? Neurons at positions, scored by relevance (RelP) and measured.

    study = study_neurons(model, task)            # rules="relp": 2 forwards and 1 backward per batch of pairs
    print(study)                                  # faithfulness against the number of neurons, random ones beside
    study.top(10)                                 # ("m3.n17@S2", score), strongest first

A unit is a neuron at a span of the prompt (`positions="spans"`), at a token (``"each"``) or everywhere (``"all"``). Its
score as a writer is

    sum over the span's positions of (clean - corrupt activation) . coefficient at mlp_post

with the coefficient of `score_neurons`; arXiv:2601.22594 scores neurons so. Kept units have the clean run's activation,
live, all others the paired corrupt run's; heads and the stream run live, so that the rest of the model reacts:

    faithfulness(C) = (m(C) - m(none)) / (m(M) - m(none)),    none = every neuron corrupt.

Scores are of the training pairs, faithfulness of the held-out ones. What reaches the answer past all neurons is in
`m(none)`: `share_of_neurons` = (m(M) - m(none)) / (m(M) - m(corrupt prompt)) says how much of the behaviour is theirs.
Pairs per pass are planned from `memory_budget`. Cost: the scores, and a forward per count and control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError, check_seed, check_whole
from ...execute.memory import MemoryBudget, items_that_fit, parse_budget, require_room
from ...execute.progress import Progress
from ...models.anatomy import device_of
from ...models.borrow import borrows, hooked
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...runs.record import check_task, record_run, run_to_metric
from ...runs.room import d_mlp_of, sizes_of
from ...sites import Site, hook_name
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET
from ..graph.writers import require_aligned
from ..scoring.methods import Method, find_method
from ..scoring.points import Passes, start_at
from .curves import bootstrap_faithfulness, faithfulness

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

COUNTS = (10, 30, 100, 300, 1000, 3000, 10_000)
N_TABLES = 6
"""Tables of all activations that one pass of scoring holds at a time."""


@dataclass(frozen=True)
class NeuronRow:
    """How faithful the model is with `n` units kept: the strongest ones, and as many random ones."""

    n: int
    n_neurons: int
    faithfulness: float
    low: float
    high: float
    random: float


@dataclass(frozen=True, eq=False)
class NeuronStudy(Result):
    """`scores` ``[cell, layer, neuron]``: mean estimated effects as writers; positive = the clean activation helps."""

    rows: tuple[NeuronRow, ...]
    cells: tuple[str, ...]
    scores: Float[Tensor, "cell layer neuron"]
    share_of_neurons: float
    rules: str
    metric_name: str
    provenance: Provenance

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` units of largest absolute score."""
        return [(name, score) for name, score, _ in self.strongest(n)]

    def strongest(self, n: int) -> list[tuple[str, float, tuple[int, int, int]]]:
        """Name, score and (cell, layer, neuron) of the `n` units of largest absolute score."""
        flat, (_, layers, width) = self.scores.flatten(), self.scores.shape
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        places = [(i // (width * layers), i // width % layers, i % width) for i in order]
        where = [f"@{cell}" if len(self.cells) > 1 else "" for cell in self.cells]
        return [
            (f"m{layer}.n{neuron}{where[cell]}", float(flat[i]), (cell, layer, neuron))
            for i, (cell, layer, neuron) in zip(order, places, strict=True)
        ]

    def needed(self, target: float = 0.8) -> int | None:
        """The smallest number of units that reaches a faithfulness, among those measured."""
        return next((row.n for row in self.rows if row.faithfulness >= target), None)

    def _table(self) -> Table:
        """One row per number of units."""
        return [vars(row) for row in self.rows]

    def __str__(self) -> str:
        units = self.scores.numel()
        lines = [
            (
                f"{units:,} units (neurons at {len(self.cells)} spans), {self.rules}; neurons carry "
                f"{self.share_of_neurons:.1%} of the behaviour"
            ),
            f"{'units':>7}{'neurons':>9}  faithfulness   [95 % interval]   random",
        ]
        lines += [
            f"{r.n:>7}{r.n_neurons:>9}  {r.faithfulness:12.3f}   [{r.low:6.3f}, {r.high:6.3f}]  {r.random:7.3f}"
            for r in self.rows
        ]
        lines.append("strongest: " + ", ".join(f"{name} {score:+.3f}" for name, score in self.top(6)))
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def study_neurons(
    model: TransformerBridge,
    task: Task,
    *,
    rules: str = "relp",
    ig_steps: int | None = None,
    positions: str = "spans",
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> NeuronStudy:
    """Faithfulness against the number of neurons kept (at spans, or at all positions).

    Counts beyond the number of units are left out. Raises `InputError` for mixtures of experts, pairs of unequal
    length, an unknown way to cut positions, a budget that does not hold one pair; `MetricError` where neurons carry
    nothing of the behaviour.

    >>> study_neurons(model, task, positions="all", counts=(10, 100)).needed(0.5)
    """
    check_seed(seed)
    if not counts or any(check_whole("count", n) < 1 for n in counts):
        raise InputError(f"counts are numbers of neurons, from 1; got {list(counts)}")
    method = find_method(rules=rules, ig_steps=ig_steps)
    anatomy = check_task(model, task)
    anatomy.check_site(Site("mlp_post", 0))
    require_aligned(task)
    size = pairs_that_fit(model, task, memory_budget)
    names = task.train.pairs.cells(positions)[0]
    if names != task.test.pairs.cells(positions)[0]:
        raise InputError("training and held-out pairs have different spans; use positions='all'")
    scores = _score(model, task.train, method, positions, size, progress)
    flat = scores.flatten().abs()
    kept = [n for n in sorted(set(counts)) if n <= len(flat)] or [len(flat)]
    order = flat.argsort(descending=True, stable=True)
    lot = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    masks = [torch.zeros_like(flat, dtype=torch.bool)]
    for n in kept:
        for ranking in (order, lot):
            mask = torch.zeros_like(flat, dtype=torch.bool)
            mask[ranking[:n]] = True
            masks.append(mask)
    found = measure_units(model, task.test, [m.view_as(scores) for m in masks], positions, size, progress)
    whole, corrupt, none, *rest = found
    rows = []
    for i, n in enumerate(kept):
        own, random = rest[2 * i], rest[2 * i + 1]
        low, high = bootstrap_faithfulness(own, none, whole, seed=seed)
        n_neurons = int(masks[1 + 2 * i].view_as(scores).any(dim=0).sum())
        rows.append(
            NeuronRow(n, n_neurons, faithfulness(own, none, whole), low, high, faithfulness(random, none, whole))
        )
    share = 1 - faithfulness(none, corrupt, whole)
    facts = build_provenance(
        method="neurons", **method.to_json(), positions=positions, seed=seed, model=identify_model(model),
        task=task.provenance(),
    )  # fmt: skip
    return NeuronStudy(tuple(rows), names, scores, share, method.rules.name, task.metric.name, facts)


def pairs_that_fit(model: TransformerBridge, task: Task, memory_budget: MemoryBudget) -> int:
    """Pairs per pass: activations of both runs, coefficients and what the backward pass keeps of every block."""
    anatomy, width = check_task(model, task), d_mlp_of(model)
    sizes = sizes_of(anatomy, width, task.pairs, task.pairs.n_tail, 4)
    tables = N_TABLES * 4 * anatomy.n_layers * sizes.activation("mlp_post")
    graph = 4 * anatomy.n_layers * sizes.n_pos * (40 * anatomy.d_model + 4 * anatomy.n_heads * sizes.n_pos)
    one = tables + graph + sizes.run(sizes.n_pos, sizes.n_tail)
    budget = parse_budget(memory_budget)
    require_room(budget, one, "the neurons of one pair", "Give more, or use shorter prompts.")
    return task.pairs.whole(items_that_fit(budget, one, len(task)))


def _score(
    model: TransformerBridge, task: Task, method: Method, positions: str, size: int, progress: Progress | None
) -> Float[Tensor, "cell layer neuron"]:
    """Mean score over pairs of every neuron at every cell."""
    _, cells = task.pairs.cells(positions)
    total = torch.zeros(())
    for start in range(0, len(task), size):
        piece = task[start : start + size]
        passes = Passes.of(model, piece, method.rules, method.direction)
        host, donor = (passes.plain(("resid_pre", "mlp_post"), donor=d) for d in (False, True))
        first, last = (run.layers["resid_pre"][0] for run in (host, donor))
        here = cells[:, start : start + len(piece)]
        for fraction in method.fractions:
            put = [] if fraction == 0 else [start_at(first + fraction * (last - first))]
            point = passes.point(("mlp_post",), (), put, fraction)
            rows = []
            for new, old, coefficient in zip(
                donor.layers["mlp_post"], host.layers["mlp_post"], point.coefficients["mlp_post"], strict=True
            ):
                product = ((new - old) * coefficient).detach()
                where = here[:, :, : product.shape[1]].to(product)
                rows.append(torch.einsum("bpn,cbp->cn", product, where).cpu())
            total = total + torch.stack(rows, dim=1) / (len(method.fractions) * len(task))
        if progress is not None:
            progress(min(start + size, len(task)), len(task), "scoring neurons")
    return total if method.direction == "denoise" else -total


@borrows
def measure_units(
    model: TransformerBridge,
    task: Task,
    kept: Sequence[Bool[Tensor, "cell layer neuron"]],
    positions: str,
    size: int,
    progress: Progress | None = None,
) -> Float[Tensor, "choice batch"]:
    """The metric of the clean prompts, of the corrupt ones, and of the clean ones with only the `kept` units clean."""
    _, cells = task.pairs.cells(positions)
    columns: list[Tensor] = []
    for start in range(0, len(task), size):
        pairs = task.pairs[start : start + size].to(device_of(model))
        here = cells[:, start : start + len(pairs), : pairs.clean_tokens.shape[1]].to(device_of(model))
        corrupt = record_run(model, pairs, ("mlp_post",), corrupt=True, n_tail=1).layers["mlp_post"]
        plain = [
            task.measure(run_to_metric(model, task, pairs, tokens), pairs).cpu()
            for tokens in (pairs.clean_tokens, pairs.corrupt_tokens)
        ]
        for mask in kept:
            hooks = [(hook_name(Site("mlp_post", i)), _only(mask[:, i], here, row)) for i, row in enumerate(corrupt)]
            with hooked(model, hooks), torch.no_grad():
                plain.append(_metric(model, task, pairs))
        columns.append(torch.stack(plain))
        if progress is not None:
            progress(min(start + size, len(task)), len(task), "measuring neurons")
    return task.pairs.per_question(torch.cat(columns, dim=1).T).T


def _metric(model: TransformerBridge, task: Task, pairs: PromptPairs) -> Tensor:
    return task.measure(run_to_metric(model, task, pairs, pairs.clean_tokens), pairs).cpu()


def _only(kept: Bool[Tensor, "cell neuron"], cells: Bool[Tensor, "cell batch pos"], other: Tensor) -> Any:
    """Keeps the live activation of a neuron at the positions of the cells it is kept at."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        where = torch.einsum("cbp,cn->bpn", cells.float(), kept.to(cells.device).float()) > 0
        return torch.where(where[:, : activation.shape[1]], activation, other[:, : activation.shape[1]])

    return hook
