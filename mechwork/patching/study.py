"""How well estimates agree with measured effects: every task, every kind of site, every composite of rules, in one table.

The table of the RelP paper (Jafari et al. 2025): Pearson correlation over the places of a kind of site, and beside it what
correlation does not see, the relative L2 error |estimate - measured| / |measured|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..relevance import PRESETS, Composite, find_composite
from ..result import Result, Table
from ..tasks.task import Task
from .attribution import attribute
from .exact import patch
from .result import Agreement

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SITES = ("resid_pre", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class AgreementStudy(Result):
    """Agreement by (task, site, rules). `table` prints Pearson / relative error, the best of each row marked."""

    rows: dict[tuple[str, str, str], Agreement]
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
        """Pearson correlation and relative error at a kind of site, averaged over the tasks."""
        found = [self.rows[task, site, rules] for task in self.tasks]
        return sum(a.pearson for a in found) / len(found), sum(a.relative_error for a in found) / len(found)

    def _table(self) -> Table:
        """One row per (task, site, rules)."""
        return [
            {"task": task, "site": site, "rules": rules, "pearson": a.pearson, "spearman": a.spearman, "relative_error": a.relative_error, "n_places": a.n_places}
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


def study_agreement(
    model: TransformerBridge,
    tasks: Sequence[Task],
    *,
    rules: Sequence[str | Composite] = tuple(PRESETS),
    sites: Sequence[str] = SITES,
    direction: str = "denoise",
    progress: Callable[[int, int, str], None] | None = None,
) -> AgreementStudy:
    """Measure every place once, estimate it under every composite, and compare.

    Cost: that of `patch` once per task, and of `attribute` once per task and composite.

    Raises `InputError` for no tasks or two of one name, and whatever `patch` and `attribute` raise.

    >>> study = study_agreement(model, [mw.tasks.ioi(model, n=16)], rules=["gradient", "relp"])
    >>> print(study.table())
    """
    composites = [find_composite(r) for r in rules]
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names) or not composites:
        raise InputError(
            f"tasks of different names and at least one composite are needed; got {names} and {len(composites)} composites"
        )
    rows: dict[tuple[str, str, str], Agreement] = {}
    for done, task in enumerate(tasks):
        if progress is not None:
            progress(done, len(tasks), f"measuring {task.name}")
        exact = patch(model, task, sites, direction=direction)
        for composite in composites:
            agreement = attribute(model, task, sites, rules=composite, direction=direction).agreement(exact)
            rows |= {(task.name, site, composite.name): agreement[site] for site in sites}
    provenance = build_provenance(
        method="agreement of estimates",
        direction=direction,
        rules=[composite.to_json() for composite in composites],
        model=identify_model(model),
        tasks=[task.provenance() for task in tasks],
    )
    ordered = {(task, site, c.name): rows[task, site, c.name] for task in names for site in sites for c in composites}
    return AgreementStudy(ordered, provenance)


def _cells(values: dict[str, tuple[float, float]]) -> str:
    least = min(error for _, error in values.values())
    return "".join(f"{f'{r:.3f}/{error:.2f}' + ('*' if error == least else ' '):>14}" for r, error in values.values())
