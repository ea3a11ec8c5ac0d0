"""How large a circuit must be: the fewest edges that reach a target faithfulness on pairs that are not the test's.

Sizes grow along MIB's fractions until |1 - faithfulness| <= 1 - target; then the gap between the last two is halved
(by geometric mean) `N_REFINE` times. Choosing on the train pairs leaves the test pairs untouched. Pairs that scored the
edges flatter a circuit (induction on SmolLM2-135M, 10.8 % of the edges by 16 pairs: .92 on these, .72 on others like
them), so where a plan leaves train pairs over (`Task.sizing`) both must reach the target: a size counts by the worse of
them. Where no size reaches the target the one closest to 1 is taken, and the reason says so. Cost: 3 forwards, and 1
per size, of at most `N_CHOOSE` pairs of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from torch import Tensor

from ..circuits import EdgeScores, EdgeSpace
from ..circuits.testing.curves import MIB_FRACTIONS, faithfulness
from ..circuits.testing.evaluate import EvaluationSettings, measure_circuits
from ..circuits.testing.units import SharedRuns
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..shapes import EdgeMask
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_CHOOSE = 32
N_REFINE = 3


@dataclass(frozen=True)
class Tried:
    """One size: edges asked for, edges left after pruning, faithfulness."""

    n_edges: int
    n_kept: int
    faithfulness: float


@dataclass(frozen=True, eq=False)
class Sizing(Result, what="circuit size"):
    """Every size that was tried, and the one that was chosen."""

    rows: tuple[Tried, ...]
    n_edges: int
    reason: str
    provenance: Provenance

    def _table(self) -> Table:
        """One row per size that was tried."""
        return table_rows(self.rows)

    def __repr__(self) -> str:
        return f"{self.n_edges} edges: {self.reason}"


def by_hand(scores: EdgeScores, n_edges: int, why: str) -> Sizing:
    """A size that the user gave."""
    return Sizing((), n_edges, why, build_provenance(method="size by hand", n_edges=n_edges, subject=scores.provenance))


def find_size(
    model: TransformerBridge, task: Task, scores: EdgeScores, target: float, settings: EvaluationSettings,
    progress: Callable[[int, int, str], None] | None = None,
) -> Sizing:  # fmt: skip
    """The size for `target` on (the first `N_CHOOSE` of) ``task.train``, and of `task.sizing` where that is another."""
    space, tried = scores.space, dict[int, Tried]()
    halves = [task.train, *([task.sizing] if "size" in task.splits else [])]
    parts = [_SizePart.of(model, half[: min(N_CHOOSE, len(half))], space, settings) for half in halves]
    which = "train pairs and on as many others" if len(parts) > 1 else "train pairs"

    def test(n: int) -> bool:
        if n not in tried:
            mask = scores.circuit(n).mask
            kept, known = int(mask.sum()), next((t for t in tried.values() if t.n_kept == int(mask.sum())), None)
            if kept == 0 or known is not None:  # nothing left, or (sizes are nested) the same circuit
                value = 0.0 if known is None else known.faithfulness
            else:
                value = max((part.faithfulness(model, mask) for part in parts), key=lambda found: abs(1 - found))
            tried[n] = Tried(n, kept, value)
            if progress is not None:
                progress(len(tried), len(MIB_FRACTIONS) + N_REFINE, "trying sizes")
        return abs(1 - tried[n].faithfulness) <= 1 - target + 1e-9

    sizes = sorted({max(1, int(f * space.n_edges)) for f in MIB_FRACTIONS if f < 1})
    below, found = 0, None
    for n in sizes:
        if test(n):
            found = n
            break
        below = n
    if found is None:
        best = min(tried.values(), key=lambda t: (abs(1 - t.faithfulness), t.n_edges))
        reason = f"no size reaches faithfulness {target:g} on the {which}; this is closest ({best.faithfulness:.3f})"
        return _sizing(tried, best.n_edges, reason, parts, scores)
    for _ in range(N_REFINE):
        middle = round(sqrt(max(below, 1) * found))
        if not below < middle < found:
            break
        if test(middle):
            found = middle
        else:
            below = middle
    value = tried[found].faithfulness
    reason = f"the fewest edges tried that reach faithfulness {target:g} on the {which} ({value:.3f})"
    return _sizing(tried, found, reason, parts, scores)


@dataclass(frozen=True, eq=False)
class _SizePart:
    """Pairs on which sizes are tried; what every circuit on them shares is run once."""

    task: Task
    space: EdgeSpace
    settings: EvaluationSettings
    shared: SharedRuns
    ends: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, model: TransformerBridge, task: Task, space: EdgeSpace, settings: EvaluationSettings) -> _SizePart:
        shared = SharedRuns()
        whole, empty = measure_circuits(model, task, space, [space.mask, space.mask & False], settings, shared).metric
        return cls(task, space, settings, shared, (empty, whole))

    def faithfulness(self, model: TransformerBridge, mask: EdgeMask) -> float:
        (metric,) = measure_circuits(model, self.task, self.space, [mask], self.settings, self.shared).metric
        return faithfulness(metric, *self.ends)


def _sizing(tried: dict[int, Tried], n: int, reason: str, parts: Sequence[_SizePart], scores: EdgeScores) -> Sizing:
    tasks = [part.task.provenance() for part in parts]
    provenance = build_provenance(
        method="circuit size", task=tasks[0], subject=scores.provenance, **({"others": tasks[1]} if tasks[1:] else {})
    )
    return Sizing(tuple(tried[k] for k in sorted(tried)), n, reason, provenance)
