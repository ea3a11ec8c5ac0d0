"""How well estimates agree with measured effects: every task, every kind of site, every estimator, in one table.

The table of the RelP paper (Jafari et al. 2025): Pearson correlation over the places of a kind of site, and beside it
what
correlation does not see: the relative L2 error |estimate - measured| / |measured|; how many places have an effect of
more than 1 % of the gap between clean and corrupt metric; and the correlation without the place of largest effect,
since one place can carry a correlation alone. An estimator is a composite of rules and a number of points on the path.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtefactError, InputError
from ..files import make_folder, write_json
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_json, stable
from ..relevance import PRESETS, Composite, find_composite
from ..result import Result, Table
from ..tasks.task import Task
from .attribution import attribute
from .exact import patch
from .result import Agreement, Effect, Effects, agreement_of, pearson

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SITES = ("resid_pre", "attn_out", "mlp_out", "z")

LARGE = 0.01
"""Share of the gap between clean and corrupt metric above which an effect counts as large."""


@dataclass(frozen=True)
class Estimator:
    """A composite of rules, and the points on the path from corrupt to clean (1 = plain)."""

    rules: Composite
    ig_steps: int = 1

    def __post_init__(self) -> None:
        if self.ig_steps < 1:
            raise InputError(f"a path has at least one point; got ig_steps={self.ig_steps}")

    @property
    def name(self) -> str:
        """``"relp"``, ``"ig5"`` (gradients at five points), ``"relp-ig5"``."""
        if self.ig_steps == 1:
            return self.rules.name
        return f"ig{self.ig_steps}" if self.rules.name == "gradient" else f"{self.rules.name}-ig{self.ig_steps}"

    def to_json(self) -> dict[str, Any]:
        return {"rules": self.rules.to_json(), "ig_steps": self.ig_steps}


def find_estimator(text: str | Composite | Estimator) -> Estimator:
    """The estimator of that name: a preset of rules, ``"ig5"``, or both as ``"relp-ig5"``.

    >>> find_estimator("relp-ig5").ig_steps
    5
    """
    if isinstance(text, Estimator):
        return text
    if isinstance(text, str) and (found := re.fullmatch(r"(?:(.+)-)?ig(\d+)", text)):
        return Estimator(find_composite(found[1] or "gradient"), int(found[2]))
    return Estimator(find_composite(text))


@dataclass(frozen=True)
class StudyRow(Agreement):
    """An agreement, and how much it rests on: places of large effect, the correlation without the largest, seconds of
    CPU.
    """

    n_large: int = 0
    pearson_rest: float = float("nan")
    seconds: float = float("nan")


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
        """Pearson correlation and relative error at a kind of site, averaged over the tasks."""
        found = [self.rows[task, site, rules] for task in self.tasks]
        return sum(a.pearson for a in found) / len(found), sum(a.relative_error for a in found) / len(found)

    def _table(self) -> Table:
        """One row per (task, site, rules)."""
        return [
            {
                "task": task, "site": site, "rules": rules, "pearson": a.pearson, "spearman": a.spearman,
                "relative_error": a.relative_error, "n_places": a.n_places, "n_large": a.n_large,
                "pearson_rest": a.pearson_rest,
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


def study_agreement(
    model: TransformerBridge,
    tasks: Sequence[Task],
    *,
    rules: Sequence[str | Composite | Estimator] = tuple(PRESETS),
    sites: Sequence[str] = SITES,
    direction: str = "denoise",
    positions: str | None = None,
    screen: str | None = None,
    verify_random: float = 0.05,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> AgreementStudy:
    """Measure every place once, estimate it with every estimator, and compare.

    `rules` are composites, or names of estimators (``"relp"``, ``"ig5"``, ``"relp-ig5"``). `positions` ("spans") is for
    kinds without heads; heads are patched at all positions. `screen` (rules) measures only the 5 % of places with the
    largest estimates and a random share `verify_random` of the rest: agreement is then over these. `checkpoint`: a
    folder that keeps each task's rows, so that an interrupted study goes on.

    Cost: that of `patch` once per task, and of `attribute` once per task and estimator.

    Raises `InputError` for no tasks or two of one name, `ArtefactError` for a checkpoint of another study, and whatever
    `patch` and `attribute` raise.

    >>> study = study_agreement(model, [mw.tasks.ioi(model, n=16)], rules=["gradient", "relp"])
    >>> print(study.table())
    """
    estimators = [find_estimator(r) for r in rules]
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names) or not estimators:
        raise InputError(
            f"tasks of different names and at least one composite are needed; got {names} and {len(estimators)} "
            "composites"
        )
    settings = {
        "direction": direction, "positions": positions, "screen": screen, "verify_random": verify_random,
        "sites": list(sites), "rules": [estimator.to_json() for estimator in estimators],
        "model": identify_model(model),
    }  # fmt: skip
    rows: dict[tuple[str, str, str], StudyRow] = {}
    for done, task in enumerate(tasks):
        if progress is not None:
            progress(done, len(tasks), f"measuring {task.name}")
        kept = KeptRows(checkpoint, task.name, hash_json([settings, stable(task.provenance())]))
        found = kept.read()
        if found is None:
            exact = _measure(model, task, sites, direction, positions, screen, verify_random)
            compared = [row for one in estimators for row in _compare(model, task, one, exact, direction, positions)]
            found = [{"rules": name, **asdict(row)} for name, row in compared]
            kept.write(found)
        for facts in found:
            name = facts.pop("rules")
            rows[task.name, facts["kind"], name] = StudyRow(**facts)
    provenance = build_provenance(
        method="agreement of estimates", **settings, tasks=[task.provenance() for task in tasks]
    )
    ordered = {(task, site, e.name): rows[task, site, e.name] for task in names for site in sites for e in estimators}
    return AgreementStudy(ordered, provenance)


def _measure(
    model: TransformerBridge, task: Task, sites: Sequence[str], direction: str, positions: str | None,
    screen: str | None, verify_random: float,
) -> Effects:  # fmt: skip
    """Exact effects; NaN where a screen has measured nothing. Kinds with heads at all positions."""
    effects: dict[str, Effect] = {}
    for kinds, where in _by_positions(sites, positions):
        if screen is None:
            effects |= patch(model, task, kinds, direction=direction, positions=where)
        else:
            found = patch(
                model, task, kinds, direction=direction, positions=where, screen=screen, verify_random=verify_random
            )
            effects |= found.measured
    return Effects({kind: effects[kind] for kind in sites})


def _by_positions(sites: Sequence[str], positions: str | None) -> list[tuple[list[str], str | None]]:
    """The kinds of site that are patched at `positions`, and those that always are at all."""
    heads = [kind for kind in sites if kind in ("q", "k", "v", "z")] if positions is not None else []
    parts = [([kind for kind in sites if kind not in heads], positions), (heads, None)]
    return [(kinds, where) for kinds, where in parts if kinds]


def _compare(
    model: TransformerBridge, task: Task, estimator: Estimator, exact: Effects, direction: str, positions: str | None
) -> list[tuple[str, StudyRow]]:
    """One row per kind of site."""
    rows = []
    for kinds, where in _by_positions(exact.sites, positions):
        began = time.process_time()
        estimate = attribute(
            model, task, kinds, rules=estimator.rules, ig_steps=estimator.ig_steps, direction=direction, positions=where
        )
        seconds = time.process_time() - began
        rows += [(estimator.name, judge(estimate[kind], exact[kind], seconds)) for kind in kinds]
    return rows


def judge(estimate: Effect, exact: Effect, seconds: float = float("nan")) -> StudyRow:
    """The row of one kind of site, over the places that were measured."""
    both = ~(estimate.values.isnan() | exact.values.isnan())
    a, b = estimate.values[both].double(), exact.values[both].double()
    baseline = exact.baseline
    gap = float((baseline.clean_per_example.double().mean() - baseline.corrupt_per_example.double().mean()).abs())
    rest = b.abs() < b.abs().max()
    return StudyRow(
        **asdict(agreement_of(exact.kind, a, b)),
        n_large=int((b.abs() > LARGE * gap).sum()),
        pearson_rest=pearson(a[rest], b[rest]) if int(rest.sum()) > 2 else float("nan"),
        seconds=seconds,
    )


@dataclass(frozen=True)
class KeptRows:
    """Rows of a study in a folder: ``NAME.json`` with the sha256 of what they were computed from. No folder keeps
    nothing.
    """

    folder: str | Path | None
    name: str
    key: str

    @property
    def file(self) -> Path:
        return Path(self.folder or ".").expanduser() / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', self.name)}.json"

    def read(self) -> list[dict[str, Any]] | None:
        """The rows; None where there are none yet. Raises `ArtefactError` for those of another study."""
        if self.folder is None or not self.file.is_file():
            return None
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
            key, rows = data["key"], [dict(row) for row in data["rows"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{self.file} is damaged ({error}); delete it, and it is measured again") from error
        if key != self.key:
            raise ArtefactError(
                f"{self.file} belongs to another model, task or settings. Choose another folder, or delete the file."
            )
        return rows

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Keeps the rows, whole or not at all."""
        if self.folder is None:
            return
        make_folder(self.file.parent)
        write_json(self.file, {"key": self.key, "rows": rows})


def _cells(values: dict[str, tuple[float, float]]) -> str:
    least = min(error for _, error in values.values())
    return "".join(f"{f'{r:.3f}/{error:.2f}' + ('*' if error == least else ' '):>14}" for r, error in values.values())
