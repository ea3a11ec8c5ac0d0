"""Selective impairment: which components carry one task and not another (the recall-versus-reasoning design).

For every task t and component c:

    drop in metric    = m_t(model) - m_t(model with c ablated), also as a share of m_t(model)
    drop in accuracy  = the same of accuracy

A single component's control is the mean drop over the other components of its kind and layer. Then, task by task, the
components that matter most for it (chosen on the train split) are ablated together on the test split of every task,
beside random sets
*matched* in number, kind and, as far as there are different ones, layer. A set is selective when it breaks its own
task, leaves the other, and matched random sets do neither. Cost: one sweep per task, and 1 + `n_random` forwards per
set and task.
"""

from __future__ import annotations

import random
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
from ..tasks.task import Task
from .fitted import Ablation
from .run import ensure_fitted
from .sets import Progress, run_sets
from .spec import AblationSpec
from .targets import all_heads, all_mlps, parse_target

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class SetImpairment:
    """The components chosen for one task, ablated together, measured on `task`; shares of that task's own metric.

    `controls` and `accuracy_controls` are the drops of matched random sets; `p` is the share of them (the set itself
    counted) whose drop is at least as large.
    """

    chosen_for: str
    task: str
    components: tuple[str, ...]
    drop: float
    accuracy_drop: float
    controls: tuple[float, ...]
    accuracy_controls: tuple[float, ...]

    @property
    def p(self) -> float:
        """One-sided permutation p-value of the drop against matched random sets."""
        return (1 + sum(c >= self.drop for c in self.controls)) / (1 + len(self.controls))


@dataclass(frozen=True, eq=False)
class Impairment(Result):
    """Drops ``[task, component]`` as shares of each task's metric, drops in accuracy, their controls, and sets beside
    random sets.
    """

    tasks: tuple[str, ...]
    components: tuple[str, ...]
    drops: Float[Tensor, "task component"]
    accuracy_drops: Float[Tensor, "task component"]
    controls: Float[Tensor, "task component"]
    clean: tuple[float, ...]
    clean_accuracy: tuple[float, ...]
    sets: tuple[SetImpairment, ...]
    kind: str
    metric_name: str
    provenance: Provenance

    def selectivity(self, task: str) -> Float[Tensor, " component"]:
        """Drop of the task less the largest drop of any other: positive = this task above all, per component."""
        row = self.tasks.index(task)
        others = [i for i in range(len(self.tasks)) if i != row]
        return self.drops[row] - self.drops[others].amax(dim=0)

    def _table(self) -> Table:
        """One row per task and component."""
        return [
            {
                "task": task, "component": name, "drop": float(self.drops[i, j]),
                "accuracy_drop": float(self.accuracy_drops[i, j]),
                "control": float(self.controls[i, j]), "selectivity": float(self.selectivity(task)[j]),
            }
            for i, task in enumerate(self.tasks)
            for j, name in enumerate(self.components)
        ]  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.kind} ablation; drops as shares of each task's {self.metric_name}"]
        for i, task in enumerate(self.tasks):
            best = self.selectivity(task).argsort(descending=True).tolist()[:3]
            shown = ", ".join(f"{self.components[j]} ({float(self.drops[i, j]):+.2f})" for j in best)
            lines.append(
                f"  {task:<15} {self.clean[i]:7.2f}  accuracy {self.clean_accuracy[i]:.2f}   most selective: {shown}"
            )
        lines.append(
            f"{'chosen for':<15} {'components':<34} {'measured on':<15} {'drop':>6} {'random':>14} {'p':>6} "
            f"{'accuracy':>9} {'random':>7}"
        )
        for one in self.sets:
            names = " ".join(one.components)
            names = names if len(names) <= 33 else names[:30] + "..."
            spread = f"{_mean(one.controls):.2f} (max {max(one.controls):.2f})" if one.controls else "-"
            lines.append(
                f"{one.chosen_for:<15} {names:<34} {one.task:<15} {one.drop:6.2f} {spread:>14} {one.p:6.3f} "
                f"{-one.accuracy_drop:+9.2f} {-_mean(one.accuracy_controls):+7.2f}"
            )
        return "\n".join(lines)


@borrows
def study_impairment(
    model: TransformerBridge,
    tasks: Sequence[Task],
    components: Sequence[str] | None = None,
    *,
    kind: str = "mean",
    n_chosen: int = 3,
    n_random: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Impairment:
    """Impairment of two or more tasks by every component (default: all heads and MLPs), and by the `n_chosen` most
    selective together.

    Each task's ablation takes its values from that task's own train prompts.

    Raises `InputError` for fewer than two tasks, tasks of one name, or a task whose metric the model does not have
    (mean not positive), since shares of it would mean nothing.
    """
    names = tuple(task.name for task in tasks)
    if len(tasks) < 2 or len(set(names)) != len(names):
        raise InputError(f"impairment compares at least two tasks of different names; got {', '.join(names) or 'none'}")
    anatomy = read_anatomy(model)
    chosen = some_or_all("components", components, (*all_heads(anatomy), *all_mlps(anatomy)))
    if not 1 <= n_chosen <= len(chosen):
        raise InputError(f"n_chosen is between 1 and {len(chosen)}; got {n_chosen}")
    spec = AblationSpec(chosen, kind, seed=seed)
    fits = [ensure_fitted(model, task, spec, task.train) for task in tasks]
    singles = [(name,) for name in chosen]
    drops, accuracy_drops, clean, right, trained = [], [], [], [], []
    for task, fitted in zip(tasks, fits, strict=True):
        found = run_sets(model, task.test, fitted, singles, what=f"ablating on {task.name}", progress=progress)
        whole = _whole(float(found.clean.mean()), task)
        drops.append(found.effects.mean(dim=1) / whole)
        accuracy_drops.append(found.accuracy_drops)
        clean.append(whole)
        right.append(float(found.clean_correct.float().mean()))
        train = run_sets(model, task.train, fitted, singles, what=f"choosing on {task.name}", progress=progress)
        trained.append(train.effects.mean(dim=1) / _whole(float(train.clean.mean()), task))
    table = torch.stack(drops)
    facts = build_provenance(
        method="selective impairment", ablations=[one.provenance() for one in fits], model=identify_model(model),
        seed=seed,
        tasks=[task.provenance() for task in tasks], n_chosen=n_chosen, n_random=n_random,
    )  # fmt: skip
    sets = _sets(model, tasks, fits, chosen, torch.stack(trained), clean, n_chosen, n_random, seed, progress)
    return Impairment(
        names, chosen, table, torch.stack(accuracy_drops), _controls(chosen, table), tuple(clean), tuple(right), sets,
        kind, tasks[0].metric.name, facts
    )  # fmt: skip


def matched_random(chosen: Sequence[str], candidates: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """As many components of the same kinds, none of them among `chosen`; of the same layers where there are enough, of
    any otherwise.
    """
    free = [name for name in candidates if name not in chosen]
    drawn: list[str] = []
    for name in chosen:
        target = parse_target(name)
        same_kind = [f for f in free if f not in drawn and parse_target(f).kind == target.kind]
        same = [f for f in same_kind if parse_target(f).layer == target.layer]
        if not same_kind:
            raise InputError(f"no other {target.kind} is left as a random control of {name}. Choose fewer components.")
        drawn.append(rng.choice(same or same_kind))
    return tuple(drawn)


def random_sets(
    chosen: Sequence[str], candidates: Sequence[str], n: int, rng: random.Random
) -> tuple[tuple[str, ...], ...]:
    """Up to `n` *different* random sets matched to `chosen`: first of the same layers, then, where those run out, of
    any layer.

    A set drawn twice would count twice in the p-value; a small layer has few different ones.
    """
    found: dict[frozenset[str], tuple[str, ...]] = {}
    for draw in (matched_random, _same_kinds):
        for _ in range(20 * n):
            if len(found) == n:
                break
            one = draw(chosen, candidates, rng)
            found.setdefault(frozenset(one), one)
    return tuple(found.values())


def _same_kinds(chosen: Sequence[str], candidates: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """As many components of the same kinds, of any layer, none of them among `chosen`."""
    drawn: list[str] = []
    for name in chosen:
        kind = parse_target(name).kind
        drawn.append(rng.choice([f for f in candidates if f not in (*chosen, *drawn) and parse_target(f).kind == kind]))
    return tuple(drawn)


def _sets(
    model: TransformerBridge,
    tasks: Sequence[Task],
    fits: Sequence[Ablation],
    components: tuple[str, ...],
    trained: Float[Tensor, "task component"],
    clean: Sequence[float],
    n_chosen: int,
    n_random: int,
    seed: int,
    progress: Progress | None,
) -> tuple[SetImpairment, ...]:
    """For each task its most selective components together, on every task, beside matched random sets."""
    rows = []
    for i, task in enumerate(tasks):
        others = trained[[k for k in range(len(tasks)) if k != i]].amax(dim=0)
        order = (trained[i] - others).argsort(descending=True).tolist()[:n_chosen]
        mine = tuple(components[j] for j in order)
        rng = random.Random(f"{seed}/{task.name}")
        sets = [mine, *random_sets(mine, components, n_random, rng)]
        for k, measured in enumerate(tasks):
            found = run_sets(model, measured.test, fits[k], sets, what=f"components of {task.name}", progress=progress)
            drops = (found.effects.mean(dim=1) / clean[k]).tolist()
            right = found.accuracy_drops.tolist()
            rows.append(
                SetImpairment(task.name, measured.name, mine, drops[0], right[0], tuple(drops[1:]), tuple(right[1:]))
            )
    return tuple(rows)


def _controls(components: Sequence[str], drops: Float[Tensor, "task component"]) -> Float[Tensor, "task component"]:
    """The mean drop over the other components of the same kind and layer (of the same kind alone, where a layer has
    one).
    """
    targets = [parse_target(name) for name in components]
    table = torch.full_like(drops, torch.nan)
    for j, target in enumerate(targets):
        alike = [i for i, t in enumerate(targets) if i != j and t.kind == target.kind]
        same = [i for i in alike if targets[i].layer == target.layer]
        if same or alike:
            table[:, j] = drops[:, same or alike].mean(dim=1)
    return table


def _whole(value: float, task: Task) -> float:
    if value <= 0:
        raise InputError(
            f"drops are shares of the model's own {task.metric.name}, which is {value:.3f} on {task.name!r}: the "
            "model cannot do this task"
        )
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
