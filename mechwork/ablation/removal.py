"""The load-bearing test of a role: remove the heads that score highest for it, beside as many random heads.

    remove_top_heads(model, role="induction", share=0.02)       the top 2 % induction heads against matched random heads

If the role matters, in-context prediction of repeated tokens (and tasks that need it) breaks with the former and not
with the latter. Random heads are matched in number and, as far as there are different sets, in layer; they are drawn
from the heads that were not removed. Cost: the role table, and per task 2 forwards per 32 prompts and 1 + `n_random`
ablated ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, UnknownNameError
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..tasks.task import Task
from .impairment import random_sets
from .repeated import RepeatedTokens, repeated_tokens
from .roles import RoleTable, measure_roles
from .run import ensure_fitted
from .sets import Progress, run_sets
from .spec import AblationSpec
from .targets import all_heads

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class RemovalRow:
    """One task: its metric intact, with the heads removed, and with each matched random set removed; accuracies
    likewise.
    """

    task: str
    metric_name: str
    intact: float
    removed: float
    random: tuple[float, ...]
    accuracy: float
    accuracy_removed: float
    accuracy_random: tuple[float, ...]

    @property
    def p(self) -> float:
        """Share of the random sets (the set itself counted) that lower the metric at least as much."""
        return (1 + sum(value <= self.removed for value in self.random)) / (1 + len(self.random))


@dataclass(frozen=True, eq=False)
class Removal(Result):
    """What removing the top heads of a role does, beside matched random heads, task by task."""

    role: str
    heads: tuple[str, ...]
    scores: tuple[float, ...]
    random_sets: tuple[tuple[str, ...], ...]
    rows: tuple[RemovalRow, ...]
    kind: str
    provenance: Provenance

    def _table(self) -> Table:
        """One row per task."""
        return [
            {**vars(row), "random": _mean(row.random), "accuracy_random": _mean(row.accuracy_random), "p": row.p}
            for row in self.rows
        ]

    def __str__(self) -> str:
        named = ", ".join(f"{head} ({score:.2f})" for head, score in zip(self.heads, self.scores, strict=True))
        lines = [
            (
                f"{self.kind} ablation of the top {self.role} heads {named}, beside {len(self.random_sets)} matched "
                "random sets"
            )
        ]
        lines += [
            f"  {r.task:<16} {r.metric_name}: {r.intact:.2f} -> {r.removed:.2f} (random {_mean(r.random):.2f}, worst "
            f"{min(r.random):.2f}, p {r.p:.3f})   "
            f"accuracy {r.accuracy:.2f} -> {r.accuracy_removed:.2f} (random {_mean(r.accuracy_random):.2f})"
            for r in self.rows
        ]
        return "\n".join(lines)


@borrows
def remove_top_heads(
    model: TransformerBridge,
    tasks: Sequence[Task] = (),
    *,
    role: str = "induction",
    share: float = 0.02,
    table: RoleTable | None = None,
    prompts: RepeatedTokens | None = None,
    kind: str = "mean",
    n_random: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Removal:
    """Remove the top `share` of all heads by a role's score (at least one), on repeated tokens and further `tasks`.

    `table` (default: measured here) ranks the heads; `prompts` are the repeated tokens. Means are over each task's own
    prompts.

    >>> print(remove_top_heads(model, [task]))
    """
    if not 0 < share < 1 or n_random < 1:
        raise InputError(f"share is between 0 and 1 and n_random at least 1; got share={share}, n_random={n_random}")
    anatomy = read_anatomy(model)
    prompts = prompts or repeated_tokens(model, seed=seed)
    table = table or measure_roles(model, prompts, seed=seed)
    if role not in table.scores:
        raise UnknownNameError("role", role, table.scores)
    names = all_heads(anatomy)
    n = max(1, round(share * len(names)))
    top = table.top(role, n)
    heads = tuple(head for head, _ in top)
    rng = random.Random(f"{seed}/{role}")
    randoms = random_sets(heads, names, n_random, rng)
    rows = []
    for task in (prompts.task, *tasks):
        fitted = ensure_fitted(model, task, AblationSpec(names, kind, seed=seed), None)
        found = run_sets(
            model, task, fitted, [heads, *randoms], what=f"removing heads on {task.name}", progress=progress
        )
        metric, right = found.metric.mean(dim=1).tolist(), found.correct.float().mean(dim=1).tolist()
        rows.append(
            RemovalRow(
                task.name, task.metric.name, float(found.clean.mean()), metric[0], tuple(metric[1:]),
                float(found.clean_correct.float().mean()), right[0], tuple(right[1:]),
            )
        )  # fmt: skip
    facts = build_provenance(
        method="removal of top "
               "heads", role=role, share=share, model=identify_model(model), roles=table.provenance, kind=kind,
        tasks=[task.provenance() for task in (prompts.task, *tasks)], seed=seed,
    )  # fmt: skip
    return Removal(role, heads, tuple(score for _, score in top), randoms, tuple(rows), kind, facts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
