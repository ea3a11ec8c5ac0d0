"""How well estimates agree with measured effects: every task, every kind of site, every estimator, in one table.

The table of the RelP paper (Jafari et al. 2025): Pearson correlation over the places of a kind of site, and beside it
what correlation does not see: the relative L2 error |estimate - measured| / |measured|; how many places have an effect
of more than 1 % of the gap between clean and corrupt metric; and the correlation without the place of largest effect,
since one place can carry a correlation alone. An estimator is a composite of rules and a number of points on the path.

Intervals of one task are bootstraps over its places; those of means over tasks are bootstraps over the tasks (each with
its seed and template), and say nothing about tasks that were not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_json, stable
from ..relevance import PRESETS, Composite
from ..result import Result, Table
from ..statistics import bootstrap_agreement, bootstrap_interval, pearson
from ..tasks.task import Task
from .estimators import Estimator, find_estimator
from .kept import Kept
from .result import Agreement, agreement_of
from .sampled import MeasuredPlaces, measure_places

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SITES = ("resid_pre", "attn_out", "mlp_out", "z")

LARGE = 0.01
"""Share of the gap between clean and corrupt metric above which an effect counts as large."""

NOWHERE = (float("nan"), float("nan"))


@dataclass(frozen=True)
class StudyRow(Agreement):
    """An agreement, and how much it rests on: places of large effect, the correlation without the largest, intervals
    over places, `cost` of the estimate in F (one forward of the same pairs; `measured_cost`: its CPU time in them).
    """

    n_large: int = 0
    pearson_rest: float = float("nan")
    pearson_interval: tuple[float, float] = NOWHERE
    spearman_interval: tuple[float, float] = NOWHERE
    error_interval: tuple[float, float] = NOWHERE
    n_live: int = 0
    n_all: int = 0
    cost: int = 0
    measured_cost: float = float("nan")


@dataclass(frozen=True)
class MeanAgreement:
    """Means over tasks at one kind of site, with 95 % bootstrap intervals over the tasks (NaN for one task)."""

    site: str
    rules: str
    n_tasks: int
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]
    relative_error: float
    error_interval: tuple[float, float]
    pearson_rest: float
    cost: int


@dataclass(frozen=True)
class AgreementStudy(Result):
    """Agreement by (task, site, rules). `table` prints Pearson / relative error, the best of each row marked."""

    rows: dict[tuple[str, str, str], StudyRow]
    provenance: Provenance

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task for task, _, _ in self.rows))

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for _, site, _ in self.rows))

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rules for _, _, rules in self.rows))

    def mean(self, site: str, rules: str) -> tuple[float, float]:
        """Pearson correlation (where there is one) and relative error at a kind of site, averaged over the tasks."""
        found = [self.rows[task, site, rules] for task in self.tasks]
        return _mean_of([a.pearson for a in found]), _mean_of([a.relative_error for a in found])

    def means(self, *, seed: int = 0) -> list[MeanAgreement]:
        """Per kind of site and estimator, means over the tasks. Tasks without a number (a side is constant) are left
        out of the mean of that number.
        """
        found = []
        for site in self.sites:
            for rules in self.rules:
                rows = [self.rows[task, site, rules] for task in self.tasks]
                r, rho, error, rest = (
                    _mean([getattr(row, name) for row in rows], seed)
                    for name in ("pearson", "spearman", "relative_error", "pearson_rest")
                )
                found.append(
                    MeanAgreement(
                        site, rules, len(rows), r[0], r[1], rho[0], rho[1], error[0], error[1], rest[0], rows[0].cost
                    )
                )
        return found

    def _table(self) -> Table:
        """One row per (task, site, rules); no CPU times, which differ from run to run."""
        return [
            {
                "task": task, "site": site, "rules": rules,
                "pearson": a.pearson, "pearson_low": a.pearson_interval[0], "pearson_high": a.pearson_interval[1],
                "spearman": a.spearman, "spearman_low": a.spearman_interval[0], "spearman_high": a.spearman_interval[1],
                "relative_error": a.relative_error, "error_low": a.error_interval[0], "error_high": a.error_interval[1],
                "pearson_rest": a.pearson_rest, "n_places": a.n_places, "n_large": a.n_large, "n_live": a.n_live,
                "n_all": a.n_all, "cost_f": a.cost,
            }
            for (task, site, rules), a in self.rows.items()
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.to_dataframe().to_dict("records"), "provenance": self.provenance}

    def table(self) -> str:
        """Pearson / relative error; ``*`` marks the smallest error of a row."""
        width = max(len(name) for name in (*self.tasks, "task"))
        head = f"{'task':<{width}}  {'site':<10}" + "".join(f"{rules:>14}" for rules in self.rules)
        lines = [head]
        for task in self.tasks:
            for site in self.sites:
                found = {rules: self.rows[task, site, rules] for rules in self.rules}
                cells = {rules: (a.pearson, a.relative_error) for rules, a in found.items()}
                lines.append(f"{task:<{width}}  {site:<10}{_cells(cells)}")
        means = {site: {rules: self.mean(site, rules) for rules in self.rules} for site in self.sites}
        lines += [f"{'mean':<{width}}  {site:<10}{_cells(cells)}" for site, cells in means.items()]
        return "\n".join(lines)


@borrows
def study_agreement(
    model: TransformerBridge,
    tasks: Sequence[Task],
    *,
    rules: Sequence[str | Composite | Estimator] = tuple(PRESETS),
    sites: Sequence[str] = SITES,
    direction: str = "denoise",
    positions: str | None = None,
    n_places: int | None = None,
    screen: str | None = None,
    verify_random: float = 0.05,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> AgreementStudy:
    """Measure every place once, estimate it with every estimator, and compare.

    `rules` are composites, or names of estimators (``"relp"``, ``"ig5"``, ``"relp-ig5"``). `positions` ("spans") is for
    kinds without heads; heads are patched at all positions. `n_places` measures that many random places of each kind
    (drawn with `seed` among those that can have an effect) instead of all. `screen` (rules) measures only the 5 % of
    places with the largest estimates and a random share `verify_random` of the rest: agreement is then over these.
    `checkpoint`: a folder that keeps each task's measured effects and estimates; called again, with these or further
    estimators, the study goes on.

    Cost: that of `patch` once per task, and of `attribute` once per task and estimator.

    Raises `InputError` for no tasks or two of one name, `ArtefactError` for a checkpoint of another study, and whatever
    `patch` and `attribute` raise.

    >>> study = study_agreement(model, [mw.tasks.ioi(model, n=16)], rules=["gradient", "relp"])
    >>> print(study.table())
    """
    estimators = [find_estimator(r) for r in rules]
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names) or not estimators or not sites:
        raise InputError(
            f"tasks of different names, at least one composite and one kind of site are needed; got {names}, "
            f"{len(estimators)} composites and {len(sites)} kinds"
        )
    settings = {
        "direction": direction, "positions": positions, "n_places": n_places, "screen": screen,
        "verify_random": verify_random, "sites": list(sites), "seed": seed, "model": identify_model(model),
    }  # fmt: skip
    n_layers = read_anatomy(model).n_layers
    rows: dict[tuple[str, str, str], StudyRow] = {}
    for done, task in enumerate(tasks):

        def tell(what: str, done: int = done, name: str = task.name) -> None:
            if progress is not None:
                progress(done, len(tasks), f"{what} {name}")

        kept = Kept(checkpoint, task.name, hash_json([settings, stable(task.provenance())]))
        facts = kept.read()
        if facts is None:
            tell("measuring")
            measured = measure_places(
                model, task, sites, n_places=n_places, direction=direction, positions=positions, screen=screen,
                verify_random=verify_random, seed=seed,
            )  # fmt: skip
            kept.write(measured.to_json())
        else:
            measured = MeasuredPlaces.from_json(facts)
        for estimator in estimators:
            if not measured.has(estimator):
                tell(f"{estimator.name} of")
                measured.estimate(model, task, estimator, direction, positions)
                kept.write(measured.to_json())
            cost = estimator.cost(n_layers)
            for kind in measured.kinds:
                rows[task.name, kind, estimator.name] = judge(measured, kind, estimator.name, cost, seed)
    provenance = build_provenance(
        method="agreement of estimates", **settings, rules=[estimator.to_json() for estimator in estimators],
        tasks=[task.provenance() for task in tasks],
    )  # fmt: skip
    ordered = {(task, site, e.name): rows[task, site, e.name] for task in names for site in sites for e in estimators}
    return AgreementStudy(ordered, provenance)


def judge(measured: MeasuredPlaces, kind: str, name: str, cost: int = 0, seed: int = 0) -> StudyRow:
    """The row of one kind of site and one estimator, over the places that were measured."""
    a, b = measured.pair(kind, name)
    rest = b.abs() < b.abs().max()
    intervals = bootstrap_agreement(a, b, seed=seed)
    n_all, n_live = measured.n_places[kind]
    return StudyRow(
        **asdict(agreement_of(kind, a, b)),
        n_large=int((b.abs() > LARGE * abs(measured.gap)).sum()),
        pearson_rest=pearson(a[rest], b[rest]) if int(rest.sum()) > 2 else float("nan"),
        pearson_interval=intervals["pearson"],
        spearman_interval=intervals["spearman"],
        error_interval=intervals["relative_error"],
        n_live=n_live,
        n_all=n_all,
        cost=cost,
        measured_cost=measured.estimates[name].seconds / max(measured.seconds["forward"], 1e-9),
    )


def _mean_of(values: Sequence[float]) -> float:
    """Mean of the numbers among the values."""
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _mean(values: Sequence[float], seed: int) -> tuple[float, tuple[float, float]]:
    """Mean of the numbers among the values, and its bootstrap interval (NaN for fewer than two)."""
    numbers = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    if len(numbers) < 2:
        return (float(numbers.mean()), NOWHERE)
    low, high = bootstrap_interval(numbers[:, None], seed=seed).flatten().tolist()
    return float(numbers.mean()), (low, high)


def _cells(values: dict[str, tuple[float, float]]) -> str:
    least = min(error for _, error in values.values())
    return "".join(f"{f'{r:.3f}/{error:.2f}' + ('*' if error == least else ' '):>14}" for r, error in values.values())
