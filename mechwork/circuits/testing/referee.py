"""What a referee asks of a circuit, answered with p-values: see `trials` for the claims and their tests.

    review = referee(model, task.test, circuit)
    print(review)                       # six claims, each pass, fail or inconclusive, and why
    review.verdict                      # "fail" when one fails, "pass" when all pass

Test on pairs that the circuit was not found on. Beside the task the same claims are judged on a null task (see
`null_task`) and in the model with shuffled weights; a circuit that passes there too has passed nothing. Random circuits
are connected ones (grown from the logits), a stricter control than random edges, most of which lead nowhere. Cost per
batch of pairs: 4 forwards, and 4 + 2 `n_random` + `n_random_edges` + min(`max_edges`, edges) circuits of about 1.5
forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import InputError, UnknownNameError, check_seed, check_whole
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table, table_rows
from ...shapes import EdgeMask
from ...tasks.task import Task
from ..graph.ablated import ABLATIONS
from ..graph.budget import DEFAULT_BUDGET, parse_bytes
from ..graph.circuit import Circuit
from ..graph.prune import living, useful
from ..graph.select import select_greedy
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .evaluate import EvaluationSettings, measure_circuits
from .null_task import NULLS, draw_signs, null_task, shuffled_weights
from .trials import (
    CLAIMS,
    N_LEAST,
    Bounds,
    EdgeTrial,
    Sample,
    Trial,
    Verdict,
    judge,
    over_rows,
    try_edges,
    try_gap,
    undecided,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_SHOWN = 8


@dataclass(frozen=True, eq=False)
class CircuitReview(Result):
    """The claims about a circuit, its edges one by one, and the same claims on the null task.

    `n_pairs` counts different pairs (identical ones are dropped). `null_reason` says why there is no null task.
    `random` are the claims on the model with shuffled weights.
    """

    trials: tuple[Trial, ...]
    edges: tuple[EdgeTrial, ...]
    null: tuple[Trial, ...]
    circuit: Circuit
    n_pairs: int
    n_random: int
    level: float
    margin: float
    ablation: str
    metric_name: str
    null_kind: str = ""
    null_reason: str = ""
    random: tuple[Trial, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """``"fail"`` when a claim fails; ``"pass"`` when all pass here and not all on the null task or in the random
        model.
        """
        found = [trial.verdict for trial in self.trials]
        if "fail" in found:
            return "fail"
        controls = [control for control in (self.null, self.random) if control]
        fooled = any(all(trial.verdict == "pass" for trial in control) for control in controls)
        return "pass" if set(found) == {"pass"} and not fooled else "inconclusive"

    def trial(self, name: str) -> Trial:
        """The claim of that name; raises `UnknownNameError`."""
        found = {trial.name: trial for trial in self.trials}
        if name not in found:
            raise UnknownNameError("claim", name, found)
        return found[name]

    def edges_that(self, verdict: Verdict) -> tuple[str, ...]:
        """Edges of that verdict: ``"fail"`` are superfluous."""
        return tuple(row.edge for row in self.edges if row.verdict == verdict)

    def _table(self) -> Table:
        """One row per claim, then those of the null task and of the random model."""
        parts = {"task": self.trials, "null": self.null, "random model": self.random}
        return [row for name, trials in parts.items() for row in table_rows(trials, task=name)]

    def __str__(self) -> str:
        lines = [
            (
                f"{self.verdict}: {self.circuit.n_edges} of {self.circuit.space.n_edges} edges on {self.n_pairs} pairs "
                f"({self.ablation} ablation, level {self.level:g}, {self.n_random} random circuits)"
            ),
            f"{'claim':<14}{'verdict':<14}{'estimate':>9}  {'95 % interval':<17}{'q for':>8}{'q against':>11}  detail",
        ]
        for t in self.trials:
            ends = "" if t.interval[0] != t.interval[0] else f"[{t.interval[0]:.3f}, {t.interval[1]:.3f}]"
            lines.append(
                f"{t.name:<14}{t.verdict:<14}{_cell(t.estimate, '.3f'):>9}  {ends:<17}{_cell(t.q_for, '.2g'):>8}"
                f"{_cell(t.q_against, '.2g'):>11}  {t.reason}{_power(t)}"
            )
        if spare := self.edges_that("fail"):
            more = f" and {len(spare) - N_SHOWN} more" if len(spare) > N_SHOWN else ""
            lines.append(f"superfluous: {', '.join(spare[:N_SHOWN])}{more}")
        said = ", ".join(f"{t.name} {t.verdict}" for t in self.null) or self.null_reason
        lines.append(f"null task{f' ({self.null_kind})' if self.null_kind else ''}: {said}")
        if self.random:
            shown = [t for t in self.random if t.verdict != "inconclusive" or t.name == "gap"]
            said = ", ".join(f"{t.name} {t.verdict}" for t in shown)
            lines.append(f"random model (weights shuffled): {said}{_gap_of(self.random[0])}")
        return "\n".join(lines)

    __repr__ = __str__


def _cell(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def _gap_of(trial: Trial) -> str:
    return "" if trial.estimate != trial.estimate else f" (gap {trial.estimate:.3g})"


def _power(trial: Trial) -> str:
    lead = " " if trial.reason else ""
    if trial.detectable != trial.detectable or trial.name == "independence":
        return f"{lead}({trial.n_needed} pairs would do)" if trial.n_needed else ""
    needed = f", {trial.n_needed} pairs to decide at this estimate" if trial.n_needed else ""
    return f"{lead}(80 % power from {trial.detectable:.3g} beyond the bound{needed})"


@borrows
def referee(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    *,
    ablation: str = "corrupt",
    level: float = 0.05,
    margin: float = 0.1,
    least: float = 0.005,
    n_random: int = 99,
    n_random_edges: int = 39,
    max_edges: int = 100,
    null: str | None = "answers",
    random_model: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    memory_budget: int | str = DEFAULT_BUDGET,
    source: Task | None = None,
    progress: Progress | None = None,
) -> CircuitReview:
    """Judge what is claimed of a circuit: pass, fail or inconclusive, with p-values and the power of this many pairs.

    `level` holds for each claim after Benjamini and Hochberg's correction; `margin` is how far the faithfulness may be
    from 1, `least` the share of the gap below which an edge does not count (or, if larger, the 90 % quantile of
    `n_random_edges` random edges added to the circuit). Of more than `max_edges` edges as many are drawn at random.
    `null` is ``"answers"``, ``"corruption"`` or None. `random_model`: judge the circuit in the model with shuffled
    weights too (2 forwards where no gap is shown there, else as many as here less those of the edges).

    Too few or identical pairs, an empty circuit or the whole model, a metric that does not vary, a null that cannot be
    built: the claims concerned are inconclusive, and `reason` says why; never an error, never a pass.

    Raises:
        InputError: a circuit of another graph; a level, margin or count out of range.
        UnknownNameError: an ablation or null task that does not exist.
        MetricError: a metric that is not finite.

    >>> referee(model, task.test, circuit).verdict
    """
    for name, value in (("level", level), ("margin", margin)):
        if not 0 < value < 1:
            raise InputError(f"{name} is between 0 and 1; got {value}")
    if not 0 <= least < 1:
        raise InputError(f"least is a share of the gap, from 0 to 1; got {least}")
    counts = {"n_random": n_random, "n_random_edges": n_random_edges, "max_edges": max_edges}
    for name, value in counts.items():
        check_whole(name, value, least=1)
    check_seed(seed)
    if ablation not in ABLATIONS:
        raise UnknownNameError("ablation", ablation, ABLATIONS)
    if null is not None and null not in NULLS:
        raise UnknownNameError("null task", null, NULLS)
    if ablation == "corrupt":
        task.pairs.require_corrupt()
    space = edge_space(model, task, **circuit.space.splits, aligned=None)
    if circuit.space != space:
        raise InputError(f"the circuit belongs to another graph, {circuit.space}; this model's is {space}")
    task = different_pairs(task)
    bounds = Bounds(level, margin, least, seed=seed)
    settings = EvaluationSettings(ablation, batch_size, parse_bytes(memory_budget), seed, source, progress)
    provenance = build_provenance(
        method="referee", ablation=ablation, seed=seed, level=level, margin=margin, least=least, **counts,
        model=identify_model(model), task=task.provenance(), circuit=circuit.provenance,
    )  # fmt: skip
    blank = CircuitReview(
        (), (), (), circuit, len(task) // task.pairs.n_per_question, n_random, level, margin, ablation,
        task.metric.name, null or "", "" if null else "none was asked for", provenance=provenance,
    )  # fmt: skip
    if why := _why_not(circuit, blank.n_pairs):
        return replace(blank, trials=undecided(list(CLAIMS), why), null_kind="", null_reason=why)
    drawn = draw_masks(circuit, n_random, n_random_edges, max_edges, seed)
    sample = drawn.measure(model, task, settings)
    trials = judge(sample, bounds)
    if trials[0].verdict == "pass":
        rows, minimality = try_edges(sample, [space.edge_name(i, j) for i, j in drawn.edges], bounds)
        of = f"of {circuit.n_edges} edges, drawn: " if len(rows) < circuit.n_edges else ""
        minimality = replace(minimality, reason=of + minimality.reason)
    else:
        rows, minimality = (), undecided(["minimality"], trials[1].reason)[0]
    review = replace(blank, trials=(*trials, minimality), edges=rows)
    if random_model:
        review = replace(review, random=judge_random_model(model, task, drawn, settings, bounds))
    if null is None:
        return review
    try:
        other = null_sample(model, task, drawn, sample, settings, null, seed)
    except InputError as error:
        return replace(review, null_kind="", null_reason=f"no null task: {error}")
    return replace(review, null=judge(other, bounds))


def different_pairs(task: Task) -> Task:
    """Without pairs that occur before: they say nothing new. Answers of several tokens are left as they are."""
    pairs = task.pairs
    if pairs.continuations is not None:
        return task
    columns = [pairs.clean_tokens, pairs.corrupt_tokens, pairs.correct, pairs.incorrect]
    _, inverse = torch.cat([*columns, pairs.lengths[:, None]], dim=1).unique(dim=0, return_inverse=True)
    first: dict[int, int] = {}
    for row, kind in enumerate(inverse.tolist()):
        first.setdefault(kind, row)
    return task if len(first) == len(pairs) else task[list(first.values())]


def _why_not(circuit: Circuit, n_pairs: int) -> str:
    """Why nothing can be said; empty when it can."""
    if not circuit.n_edges:
        return "the circuit is empty"
    if circuit.n_edges == circuit.space.n_edges:
        return "the circuit is the whole model: nothing is left out that a test could be about"
    if n_pairs < N_LEAST:
        return f"{n_pairs} different pairs have no power at any effect; {N_LEAST} would do, 32 are better"
    return ""


@dataclass(frozen=True, eq=False)
class Masks:
    """The circuits that are run; None where the graph is too small for random ones."""

    circuit: Circuit
    edges: list[list[int]]
    randoms: list[EdgeMask]
    knocked: list[EdgeMask] | None
    added: list[EdgeMask]

    def measure(self, model: TransformerBridge, task: Task, settings: EvaluationSettings) -> Sample:
        """All of them on all pairs."""
        space, mask = self.circuit.space, self.circuit.mask
        groups: list[Sequence[EdgeMask]] = [
            [space.mask, torch.zeros_like(mask), mask, space.mask & ~mask],
            self.randoms, self.knocked or [], [_without(mask, edge) for edge in self.edges], self.added,
        ]  # fmt: skip
        found = measure_circuits(model, task, space, [one for group in groups for one in group], settings).metric
        first, randoms, knocked, cut, added = found.split([len(group) for group in groups])
        whole, empty, own, rest = first.unbind()
        return Sample(whole, empty, own, rest, randoms, knocked if self.knocked else None, cut, added)


def draw_masks(circuit: Circuit, n_random: int, n_random_edges: int, max_edges: int, seed: int) -> Masks:
    """Random connected circuits of the circuit's size, as many from the rest of the graph, its edges, and random edges
    on paths through it.
    """
    space, mask = circuit.space, circuit.mask
    generator = torch.Generator().manual_seed(seed)
    randoms = [grow(space, circuit.n_edges, generator) for _ in range(n_random)]
    knocked = None
    if space.n_edges - circuit.n_edges >= circuit.n_edges:
        found = [grow(space, circuit.n_edges, generator, without=mask) for _ in range(n_random)]
        knocked = None if any(bool((one & mask).any()) for one in found) else [space.mask & ~one for one in found]
    edges = mask.nonzero().tolist()
    if len(edges) > max_edges:
        edges = [edges[i] for i in sorted(torch.randperm(len(edges), generator=generator)[:max_edges].tolist())]
    near = (space.mask & ~mask & living(space, mask)[:, None] & useful(space, mask)[None, :]).nonzero()
    near = near[torch.randperm(len(near), generator=generator)[:n_random_edges]]
    added = []
    for i, j in near.tolist():
        one = mask.clone()
        one[i, j] = True
        added.append(one)
    return Masks(circuit, edges, randoms, knocked, added)


def grow(space: EdgeSpace, n: int, generator: torch.Generator, without: EdgeMask | None = None) -> EdgeMask:
    """A random circuit of `n` edges grown from the logits; edges of `without` come last."""
    values = torch.rand(space.n_writers, space.n_readers, generator=generator)
    return select_greedy(space, values if without is None else values.masked_fill(without, 0.0), n)


def null_sample(
    model: TransformerBridge, task: Task, drawn: Masks, sample: Sample, settings: EvaluationSettings, kind: str,
    seed: int,
) -> Sample:  # fmt: skip
    """The same circuits on the null task. Shuffled answers turn the sign of a logit difference: no forward pass."""
    other = null_task(task, kind, seed=seed)
    if kind == "answers" and task.metric.name == "logit_difference":
        signs = draw_signs(len(task), seed)

        def turned(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows * signs

        return over_rows(sample, turned)
    return replace(drawn, edges=[], added=[]).measure(model, other, settings)


def judge_random_model(
    model: TransformerBridge, task: Task, drawn: Masks, settings: EvaluationSettings, bounds: Bounds
) -> tuple[Trial, ...]:
    """The claims but minimality in the model with shuffled weights: the gap first, the others where it is shown."""
    space = drawn.circuit.space
    with shuffled_weights(model, bounds.seed):
        whole, empty = measure_circuits(model, task, space, [space.mask, torch.zeros_like(space.mask)], settings).metric
        gap = try_gap(Sample(whole, empty, empty, empty), bounds)
        if gap.verdict == "pass":
            return judge(replace(drawn, edges=[], added=[]).measure(model, task, settings), bounds)
    others = [name for name in CLAIMS if name not in ("gap", "minimality")]
    return (gap, *undecided(others, f"the random model does not show the behaviour (gap: {gap.verdict})"))


def _without(mask: EdgeMask, edge: list[int]) -> EdgeMask:
    found = mask.clone()
    found[edge[0], edge[1]] = False
    return found
