"""Stability card: would other pairs, templates, corruptions, seeds or settings have chosen the same circuit?

    card = study_stability(model, task, n_edges=100)
    print(card)                 # Jaccard indices per axis beside chance and a null, core edges, sizes
    card.core                   # the circuit of the edges that every axis chooses in 95 % of its selections

A *selection* is the circuit of the `n_edges` edges of largest absolute mean score under one change:

| axis | a selection |
|---|---|
| ``resamples`` | bootstrap resamples of the pairs |
| ``templates`` | one template's pairs alone |
| ``corruptions`` | cut edges carry zero or a mean, not the corrupt run (`ablations`); another task (`variants`) |
| ``seeds`` | pairs drawn again (`again`) |
| ``settings`` | other presets of scores |

Each is compared with the circuit of all pairs: Jaccard indices of edges and of nodes (input and logits left out). The
null is the same figure after every pair's scores got a random sign (half of them -1), which is what shuffled answers do
to a logit difference: no edge matters there, so what selections share is what the procedure brings with it. An edge is
*core* when every axis has it in at least `CORE` of its selections, *contingent* when it is chosen but not core. Size at
equal faithfulness: the smallest of a ladder of sizes whose circuit reaches `target` on the held-out pairs. Bars such as
"Jaccard > .8" (arXiv:2510.00845) are uncalibrated: read the index beside the null's.

Cost: one `score_edges` per ablation, variant, seed and setting; a forward of about 1.5 per sized circuit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError, UnknownNameError, check_seed, check_whole
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...shapes import EdgeMask
from ...statistics import bootstrap_weights
from ...tasks.task import Task
from ..graph.circuit import Circuit
from ..graph.compare import compare_circuits
from ..graph.prune import prune
from ..graph.select import select
from ..graph.space import EdgeSpace
from ..scoring.methods import SCORE_ABLATIONS, find_method
from ..scoring.score import score_edges
from ..scoring.scores import EdgeScores
from .evaluate import EvaluationSettings, measure_circuits
from .null_task import draw_signs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

AXES = ("resamples", "templates", "corruptions", "seeds", "settings")
CORE = 0.95
N_SIZED = 3
"""Resamples whose size at equal faithfulness is measured."""
N_SAID = 4
"""Sizes of an axis that are printed one by one."""
LADDER = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Sizes that are tried, in units of `n_edges`."""


@dataclass(frozen=True)
class SelectionRow:
    """One selection beside the circuit of all pairs; `size` is the one at equal faithfulness: None where it was not
    measured, 0 where no size reached the target.
    """

    axis: str
    label: str
    edges: float
    nodes: float
    null_edges: float
    null_nodes: float
    size: int | None = None


@dataclass(frozen=True, eq=False)
class StabilityCard(Result):
    """How much the circuit depends on choices. `inclusion` is how often each edge (in the graph's order) is chosen,
    per axis; `null_inclusion` the same on the null.
    """

    rows: tuple[SelectionRow, ...]
    circuit: Circuit
    axes: tuple[str, ...]
    inclusion: Float[Tensor, "axis edge"]
    null_inclusion: Float[Tensor, "axis edge"]
    chance: float
    target: float
    size: int
    missing: dict[str, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=dict)

    @property
    def core(self) -> Circuit:
        """Edges that every axis has in at least 95 % of its selections."""
        return self._of((self.inclusion >= CORE).all(dim=0))

    @property
    def contingent(self) -> Circuit:
        """Edges of the circuit that are not core."""
        return self.circuit - self.core

    @property
    def null_core(self) -> Circuit:
        """What would be core on the null."""
        return self._of((self.null_inclusion >= CORE).all(dim=0))

    def mean(self, axis: str, column: str = "edges") -> float:
        """Mean of a column (``"edges"``, ``"nodes"``, ``"null_edges"``, ``"null_nodes"``) over an axis' selections."""
        found = self._column(axis, column)
        return sum(found) / len(found) if found else float("nan")

    def interval(self, axis: str, column: str = "edges", level: float = 0.95) -> tuple[float, float]:
        """The central `level` of a column over an axis' selections: of few ones nearly their range."""
        tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        found = torch.tensor(self._column(axis, column), dtype=torch.float64)
        low, high = found.quantile(tail).tolist() if len(found) else (float("nan"), float("nan"))
        return low, high

    def sizes(self, axis: str) -> tuple[int, ...]:
        """Sizes at equal faithfulness that were measured on an axis."""
        return tuple(row.size for row in self.rows if row.axis == axis and row.size is not None)

    def _column(self, axis: str, column: str) -> list[float]:
        if axis not in self.axes:
            raise UnknownNameError("axis of this card", axis, self.axes)
        return [float(getattr(row, column)) for row in self.rows if row.axis == axis]

    def _of(self, edges: Bool[Tensor, " edge"]) -> Circuit:
        mask = torch.zeros_like(self.circuit.mask)
        mask[self.circuit.space.mask] = edges
        return Circuit(self.circuit.space, mask, self.circuit.scores, provenance=self.circuit.provenance)

    def _table(self) -> Table:
        """One row per selection."""
        return [vars(row) for row in self.rows]

    def __str__(self) -> str:
        of = f"size at faithfulness {self.target:g}"
        lines = [
            f"circuit of {self.circuit.n_edges} edges; by chance two share {self.chance:.3f}; {of}: {self.size or '-'}",
            f"{'axis':<13}{'n':>4}  {'edges':>6} {'central 95 %':<15}{'nodes':>6}  {'null edges':>10} {'':<15}  {of}",
        ]
        for axis in self.axes:
            mean, null = self.interval(axis), self.interval(axis, "null_edges")
            found = self.sizes(axis)
            sizes = ", ".join(str(size or "-") for size in found)
            if len(found) > N_SAID:
                sizes = f"{min(found) or '-'} to {max(found) or '-'} (median {sorted(found)[len(found) // 2] or '-'})"
            lines.append(
                f"{axis:<13}{len(self._column(axis, 'edges')):>4}  {self.mean(axis):6.3f} [{mean[0]:.3f}, "
                f"{mean[1]:.3f}] {self.mean(axis, 'nodes'):6.3f}  {self.mean(axis, 'null_edges'):10.3f} "
                f"[{null[0]:.3f}, {null[1]:.3f}]  {sizes}"
            )
        lines += [f"{axis:<13}not measured: {why}" for axis, why in self.missing.items()]
        lines.append(
            f"core edges (in {CORE:.0%} of every axis): {self.core.n_edges}; contingent: {self.contingent.n_edges}; "
            f"core on the null: {self.null_core.n_edges}"
        )
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def study_stability(
    model: TransformerBridge,
    task: Task,
    *,
    n_edges: int = 100,
    preset: str = "eap-ig",
    settings: Sequence[str] = ("eap", "relp", "clean-corrupt"),
    ablations: Sequence[str] = ("mean", "zero"),
    variants: Mapping[str, Task] | None = None,
    again: Callable[[int], Task] | None = None,
    n_seeds: int = 3,
    n_resamples: int = 200,
    target: float = 0.8,
    seed: int = 0,
    progress: Progress | None = None,
) -> StabilityCard:
    """The card of a task's circuit, found on the training pairs and sized on the held-out ones.

    `variants` are tasks with other corruptions, `again` draws pairs with a seed (``lambda s: tasks.ioi(model, n=64,
    seed=s)``). An axis that has nothing to vary is left out, and `missing` says why.

    Raises:
        InputError: fewer than two pairs, a size or target out of range, tasks of another graph.
        UnknownNameError: a preset or ablation that does not exist.

    >>> study_stability(model, task, n_edges=80).core
    """
    check_seed(seed)
    for name, value in (("n_resamples", n_resamples), ("n_seeds", n_seeds), ("n_edges", n_edges)):
        check_whole(name, value, least=1)
    if not 0 < target < 1:
        raise InputError(f"target is a faithfulness between 0 and 1; got {target}")
    for name in (preset, *settings):
        find_method(name)
    for name in ablations:
        if name not in SCORE_ABLATIONS:
            raise UnknownNameError("ablation of scores", name, SCORE_ABLATIONS)
    train, test = task.train, task.test
    if len(train) < 2:
        raise InputError(f"stability is asked of at least two pairs; got {len(train)}. Give more.")
    base = score_edges(model, train, preset=preset, keep="pairs", seed=seed)
    space = base.space
    if n_edges > space.n_edges:
        raise InputError(f"this graph has {space.n_edges} edges; got n_edges={n_edges}")
    wanted = [("corruptions", name, _scorer(model, train, preset, seed, ablation=name)) for name in ablations]
    wanted += [
        ("corruptions", name, _scorer(model, other.train, preset, seed)) for name, other in (variants or {}).items()
    ]
    for i in range(n_seeds if again is not None else 0):
        assert again is not None
        wanted.append(("seeds", f"seed {seed + 1 + i}", _scorer(model, again(seed + 1 + i).train, preset, seed)))
    wanted += [("settings", name, _scorer(model, train, name, seed)) for name in settings]
    found = [("settings", "", base)]
    for done, (axis, label, score) in enumerate(wanted):
        found.append((axis, label, score()))
        if progress is not None:
            progress(done + 1, len(wanted), f"scoring: {label}")
    missing = {} if again is not None else {"seeds": "no way to draw pairs again was given (again=)"}
    n_templates = len(set(base.templates))
    if n_templates < 2:
        missing["templates"] = f"the pairs have {n_templates} template(s)"
    chosen = _selections(found, n_edges, n_resamples, seed, signed=False)
    null = _selections(found, n_edges, n_resamples, seed, signed=True)
    reference, null_reference = chosen.pop(0)[2], null.pop(0)[2]
    axes = tuple(axis for axis in AXES if any(row[0] == axis for row in chosen))
    ladder = sorted({min(space.n_edges, max(1, round(step * n_edges))) for step in LADDER})
    sized = _size(model, test, space, chosen, base, ladder, target)
    rows = tuple(
        SelectionRow(
            axis, label, _jaccard(mask, reference), _node_jaccard(space, mask, reference),
            _jaccard(other, null_reference), _node_jaccard(space, other, null_reference), sized.get((axis, label)),
        )
        for (axis, label, mask, _), (_, _, other, _) in zip(chosen, null, strict=True)
    )  # fmt: skip
    inclusion, null_inclusion = (
        torch.stack([torch.stack([m for a, _, m, _ in part if a == axis]).float().mean(dim=0) for axis in axes])
        for part in (chosen, null)
    )
    mask = torch.zeros_like(space.mask)
    mask[space.mask] = reference
    provenance = build_provenance(
        method="stability card", preset=preset, seed=seed, n_resamples=n_resamples, model=identify_model(model),
        task=task.provenance(),
    )  # fmt: skip
    circuit = Circuit(space, mask, base.values, n_requested=n_edges, provenance=base.provenance)
    chance = n_edges / (2 * space.n_edges - n_edges)
    return StabilityCard(
        rows, circuit, axes, inclusion, null_inclusion, chance, target, sized["", ""], missing, provenance
    )


def _scorer(
    model: TransformerBridge, task: Task, preset: str, seed: int, ablation: str = "corrupt"
) -> Callable[[], EdgeScores]:
    if ablation == "corrupt":
        return lambda: score_edges(model, task, preset=preset, keep="pairs", seed=seed)
    return lambda: score_edges(
        model, task, preset=preset, keep="pairs", seed=seed, ablation=ablation, direction="noise"
    )


Selected = tuple[str, str, Tensor, Tensor]
"""Axis, label, which edges (packed), mean scores (packed)."""


def _selections(
    scores: Sequence[tuple[str, str, EdgeScores]], n_edges: int, n_resamples: int, seed: int, *, signed: bool
) -> list[Selected]:
    """The circuit of all pairs, then every selection; `signed`: on the null."""
    found: list[Selected] = []
    for axis, label, one in scores:
        assert one.per_example is not None
        edges = one.per_example[:, one.space.mask]
        if edges.shape[1] != scores[0][2].space.n_edges:
            raise InputError(f"selections of one card are of one graph; {label or axis} has another one")
        if signed:
            edges = edges * draw_signs(len(edges), seed)[:, None].to(edges)
        mean = edges.mean(dim=0)
        found.append((axis, label, strongest(mean, n_edges), mean))
        if label:
            continue
        for i, row in enumerate(bootstrap_weights(len(edges), n_resamples, seed).to(edges)):
            drawn = row @ edges
            found.append(("resamples", f"resample {i}", strongest(drawn, n_edges), drawn))
        names = list(dict.fromkeys(one.templates))
        for name in names if len(names) > 1 else ():
            part = edges[[i for i, template in enumerate(one.templates) if template == name]].mean(dim=0)
            found.append(("templates", name, strongest(part, n_edges), part))
    return found


def strongest(values: Float[Tensor, " edge"], n: int) -> Bool[Tensor, " edge"]:
    """The `n` edges of largest absolute value, as `select` chooses them."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.abs().argsort(descending=True, stable=True)[:n]] = True
    return chosen


def _size(
    model: TransformerBridge, task: Task, space: EdgeSpace, chosen: Sequence[Selected], base: EdgeScores,
    ladder: Sequence[int], target: float,
) -> dict[tuple[str, str], int]:  # fmt: skip
    """(axis, label) -> the smallest size that reaches the target, 0 for none; ``("", "")`` is the circuit itself."""
    wanted: dict[tuple[str, str], Tensor] = {("", ""): base.values[space.mask]}
    for axis, label, _, values in chosen:
        if axis != "resamples" or sum(key[0] == axis for key in wanted) < N_SIZED:
            wanted[axis, label] = values
    masks: list[EdgeMask] = [space.mask, torch.zeros_like(space.mask)]
    masks += [prune(space, select(space, base.unpack(v), size)) for v in wanted.values() for size in ladder]
    metric = measure_circuits(model, task, space, masks, EvaluationSettings()).metric.double().mean(dim=1)
    shares = ((metric[2:] - metric[1]) / (metric[0] - metric[1])).view(len(wanted), len(ladder))
    return {
        key: next((size for size, share in zip(ladder, row.tolist(), strict=True) if share >= target), 0)
        for key, row in zip(wanted, shares, strict=True)
    }


def _jaccard(a: Tensor, b: Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def _node_jaccard(space: EdgeSpace, a: Bool[Tensor, " edge"], b: Bool[Tensor, " edge"]) -> float:
    circuits = {}
    for name, edges in (("a", a), ("b", b)):
        mask = torch.zeros_like(space.mask)
        mask[space.mask] = edges
        circuits[name] = Circuit(space, mask)
    return compare_circuits(circuits).overlaps[0].nodes
