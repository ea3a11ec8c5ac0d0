"""How targets work together: pairwise interactions, and knock-out against knock-in.

E(S)         = m(model) - m(model with S ablated)
interaction  = E({a, b}) - E({a}) - E({b})
               positive: redundancy, each covers for the other (of an OR, both must go before anything is lost)
               negative: synergy, they do one thing together (of an AND, losing either loses it already)
knock-out    = E({a})
knock-in     = m(everything but a ablated) - m(everything ablated): what a does alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, some_or_all
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..statistics import holm, sign_flip_p
from ..tasks.task import Task
from .run import ensure_fitted
from .sets import Progress, run_sets
from .spec import AblationSpec
from .targets import all_heads, all_mlps

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Interactions(Result):
    """Interactions of every pair of `targets`, per example ``[target, target, batch]`` (0 on the diagonal), and each
    one's own effect.
    """

    targets: tuple[str, ...]
    per_example: Float[Tensor, "target target batch"]
    alone: Float[Tensor, "target batch"]
    kind: str
    metric_name: str
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, "target target"]:
        """Mean interaction: positive = redundant, negative = synergistic."""
        return self.per_example.mean(dim=-1)

    def p_values(self) -> Float[Tensor, "target target"]:
        """Sign-flip p-values corrected for the number of pairs (Holm)."""
        rows, columns = torch.triu_indices(len(self.targets), len(self.targets), 1)
        p = torch.ones_like(self.values)
        corrected = holm(sign_flip_p(self.per_example[rows, columns].T))
        p[rows, columns], p[columns, rows] = corrected, corrected
        return p

    def top(self, n: int = 10) -> list[tuple[str, str, float, float]]:
        """The `n` pairs of largest absolute interaction: both names, interaction, corrected p-value."""
        rows, columns = torch.triu_indices(len(self.targets), len(self.targets), 1).tolist()
        p, values = self.p_values(), self.values
        found = [
            (self.targets[i], self.targets[j], float(values[i, j]), float(p[i, j]))
            for i, j in zip(rows, columns, strict=True)
        ]
        return sorted(found, key=lambda row: -abs(row[2]))[:n]

    def _table(self) -> Table:
        """One row per pair."""
        return [dict(zip(("a", "b", "interaction", "p"), row, strict=True)) for row in self.top(len(self.targets) ** 2)]

    def __str__(self) -> str:
        lines = [f"interactions under {self.kind} ablation, {self.metric_name}; + redundant, - synergistic"]
        for a, b, value, p in self.top():
            effects = [float(self.alone[self.targets.index(name)].mean()) for name in (a, b)]
            lines.append(f"  {a:<7} {b:<7} {value:+8.3f}   alone {effects[0]:+.3f}, {effects[1]:+.3f}   p {p:.3f}")
        return "\n".join(lines)


@borrows
def study_interactions(
    model: TransformerBridge,
    task: Task,
    targets: Sequence[str],
    *,
    kind: str = "mean",
    reference: Task | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interactions:
    """The interaction of every pair of targets. Cost: one forward per target and per pair of targets, from the first
    touched block on.

    >>> study_interactions(model, task, ["a1.h0", "a1.h3", "m2"]).top(1)
    """
    names = tuple(targets)
    if len(names) < 2:
        raise InputError(f"interactions are between at least two targets; got {list(names)}")
    fitted = ensure_fitted(model, task, AblationSpec(names, kind, seed=seed), reference)
    pairs = list(combinations(range(len(names)), 2))
    sets = [*((name,) for name in names), *((names[i], names[j]) for i, j in pairs)]
    effects = run_sets(model, task, fitted, sets, what="ablating pairs", progress=progress).effects
    alone, both = effects[: len(names)], effects[len(names) :]
    table = torch.zeros(len(names), len(names), len(task), dtype=effects.dtype)
    for (i, j), effect in zip(pairs, both, strict=True):
        table[i, j] = table[j, i] = effect - alone[i] - alone[j]
    facts = build_provenance(
        method="pairwise interactions",
        ablation=fitted.provenance(),
        model=identify_model(model),
        task=task.provenance(),
    )
    return Interactions(names, table, alone, kind, task.metric.name, facts)


@dataclass(frozen=True, eq=False)
class KnockOutIn(Result):
    """Effect of losing each target, and of having it alone, per example."""

    targets: tuple[str, ...]
    out: Float[Tensor, "target batch"]
    alone: Float[Tensor, "target batch"]
    clean: float
    empty: float
    """Mean metric with everything ablated."""
    kind: str
    metric_name: str
    provenance: Provenance

    def _table(self) -> Table:
        """One row per target."""
        return {
            "target": list(self.targets),
            "knock_out": self.out.mean(dim=1).tolist(),
            "knock_in": self.alone.mean(dim=1).tolist(),
        }

    def __str__(self) -> str:
        order = self.out.mean(dim=1).abs().argsort(descending=True).tolist()[:12]
        lines = [
            f"{self.kind} ablation, {self.metric_name}: model {self.clean:.3f}, everything ablated {self.empty:.3f}"
        ]
        lines += [
            f"  {self.targets[i]:<7} without it {-float(self.out[i].mean()):+8.3f}   with it alone "
            f"{float(self.alone[i].mean()):+8.3f}"
            for i in order
        ]
        return "\n".join(lines)


@borrows
def study_knock_out_in(
    model: TransformerBridge,
    task: Task,
    targets: Sequence[str] | None = None,
    *,
    kind: str = "mean",
    reference: Task | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> KnockOutIn:
    """Knock-out and knock-in of each target among all of them (default: all heads and MLPs). Cost: 2 forwards per
    target.
    """
    anatomy = read_anatomy(model)
    names = some_or_all("targets", targets, (*all_heads(anatomy), *all_mlps(anatomy)))
    fitted = ensure_fitted(model, task, AblationSpec(names, kind, seed=seed), reference)
    others = [tuple(other for other in names if other != name) for name in names]
    found = run_sets(
        model,
        task,
        fitted,
        [*((name,) for name in names), *others, names],
        what="knocking out and in",
        progress=progress,
    )
    n = len(names)
    facts = build_provenance(
        method="knock-out and knock-in",
        ablation=fitted.provenance(),
        model=identify_model(model),
        task=task.provenance(),
    )
    empty = found.metric[-1]
    return KnockOutIn(
        names, found.effects[:n], found.metric[n : 2 * n] - empty, float(found.clean.mean()), float(empty.mean()), kind,
        task.metric.name, facts
    )  # fmt: skip
