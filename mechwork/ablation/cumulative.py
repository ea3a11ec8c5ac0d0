"""Cumulative ablation: targets taken away one after the other, most important first, least important first, at random.

Importance is the absolute effect of ablating a target alone, measured on pairs that the curves are not drawn from where
the task has splits. The gap between the curves says how concentrated the behaviour is; the random curves say what any
order would give.
Cost: one sweep, and one forward per point of every curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from ..shapes import PerExample
from ..statistics import bootstrap_interval
from ..tasks.task import Task
from .run import ensure_fitted
from .sets import Progress, run_sets
from .spec import AblationSpec
from .targets import all_heads, all_mlps

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ORDERS = ("most important first", "least important first")


@dataclass(frozen=True, eq=False)
class CumulativeAblation(Result):
    """Metrics ``[size, batch]`` of every curve after ablating the first `sizes` targets of its order; `clean` is size
    0.

    `curves` maps the name of an order to its metrics; random orders are ``random 0``, ``random 1``, ...
    """

    sizes: tuple[int, ...]
    curves: dict[str, Float[Tensor, "size batch"]]
    accuracy: dict[str, Float[Tensor, " size"]]
    clean: PerExample
    ranking: tuple[str, ...]
    """Targets, most important first."""
    kind: str
    metric_name: str
    provenance: Provenance

    def mean(self, curve: str) -> Float[Tensor, " size"]:
        """The mean metric along a curve."""
        return self.curves[curve].mean(dim=1)

    def interval(self, curve: str, level: float = 0.95) -> Float[Tensor, "2 size"]:
        """Bootstrap interval of the mean metric over pairs."""
        return bootstrap_interval(self.curves[curve].T, level)

    def half(self, curve: str) -> int | None:
        """The smallest size on the grid at which at most half of the model's metric is left; None when none is."""
        whole = float(self.clean.mean())
        reached = [n for n, m in zip(self.sizes, self.mean(curve).tolist(), strict=True) if m <= whole / 2]
        return reached[0] if reached else None

    def _table(self) -> Table:
        """One row per curve and size."""
        rows = []
        for name in self.curves:
            low, high = self.interval(name).tolist()
            for i, n in enumerate(self.sizes):
                cells = {"metric": float(self.mean(name)[i]), "low": low[i], "high": high[i]}
                rows.append({"order": name, "ablated": n, **cells, "accuracy": float(self.accuracy[name][i])})
        return rows

    def __str__(self) -> str:
        names = [*ORDERS, *(name for name in self.curves if name not in ORDERS)]
        lines = [
            (
                f"{self.kind} ablation, {self.metric_name} {float(self.clean.mean()):.2f} intact; by number of ablated "
                "targets"
            )
        ]
        lines.append(f"{'order':<24}" + "".join(f"{n:>8}" for n in self.sizes))
        lines += [f"{name:<24}" + "".join(f"{x:8.2f}" for x in self.mean(name).tolist()) for name in names]
        return "\n".join(lines)


@borrows
def study_cumulative(
    model: TransformerBridge,
    task: Task,
    targets: Sequence[str] | None = None,
    *,
    kind: str = "mean",
    reference: Task | None = None,
    sizes: Sequence[int] | None = None,
    n_random: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> CumulativeAblation:
    """Curves of the metric over the number of ablated targets (default: all heads and MLPs).

    Importance is measured on ``task.train``, curves on ``task.test`` (the same pairs where a task has no splits).
    """
    anatomy = read_anatomy(model)
    chosen = some_or_all("targets", targets, (*all_heads(anatomy), *all_mlps(anatomy)))
    grid = tuple(sizes or _grid(len(chosen)))
    if any(not 1 <= n <= len(chosen) for n in grid) or list(grid) != sorted(set(grid)):
        raise InputError(f"sizes are increasing numbers from 1 to {len(chosen)}; got {grid}")
    train = task.train
    fitted = ensure_fitted(model, task, AblationSpec(chosen, kind, seed=seed), reference or train)
    alone = run_sets(model, train, fitted, [(t,) for t in chosen], what="ranking targets", progress=progress)
    order = alone.effects.mean(dim=1).abs().argsort(descending=True).tolist()
    ranking = tuple(chosen[i] for i in order)
    orders: dict[str, tuple[str, ...]] = {ORDERS[0]: ranking, ORDERS[1]: ranking[::-1]}
    for i in range(n_random):
        shuffled = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed + i)).tolist()
        orders[f"random {i}"] = tuple(chosen[j] for j in shuffled)
    sets = [line[:n] for line in orders.values() for n in grid]
    found = run_sets(model, task.test, fitted, sets, what="ablating cumulatively", progress=progress)
    metric = found.metric.unflatten(0, (len(orders), len(grid)))
    correct = found.correct.float().mean(dim=1).unflatten(0, (len(orders), len(grid)))
    facts = build_provenance(
        method="cumulative ablation", ablation=fitted.provenance(), model=identify_model(model), seed=seed,
        ranked_on=train.provenance(), task=task.test.provenance(),
    )  # fmt: skip
    curves, right = dict(zip(orders, metric, strict=True)), dict(zip(orders, correct, strict=True))
    return CumulativeAblation(grid, curves, right, found.clean, ranking, kind, task.metric.name, facts)


def _grid(n: int) -> tuple[int, ...]:
    """Every size up to eight, then about eight more up to all."""
    small = list(range(1, min(n, 8) + 1))
    rest = [round(8 * (n / 8) ** (i / 8)) for i in range(1, 9)] if n > 8 else []
    return tuple(sorted({*small, *rest}))
