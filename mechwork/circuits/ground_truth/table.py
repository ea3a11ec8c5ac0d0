"""How well each way of ranking edges finds the known circuits: one row per case, AUROC per method.

The methods are those of `rank`; ``random``, uniform noise averaged over 100 seeds, stands beside them. Each case is
ranked in the direction in which its truth is stated. Intervals are bootstrapped over the pairs that a ranking is made
from (95 %; searches have none): a case's own edges are all there are. Over cases the mean is resampled. Truths under
zero and mean ablation are compared with exact effects and noise unless methods are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UnknownNameError
from ...execute.progress import Progress
from ...result import Result, Table
from ...statistics import bootstrap_interval, bootstrap_weights, percentile_interval
from ..graph.circuit import Circuit
from ..scoring.exact_edges import ABLATIONS, measure_edges
from .case import METHODS, KnownCircuit
from .compare import TruthComparison, compare, find_auroc, find_levels
from .rank import ALL_METHODS, rank_pairs

if TYPE_CHECKING:
    pass


N_RANDOM = 100
N_RESAMPLES = 200
COLUMNS = {"corrupt": ("exact", "gradient", "relp", "eap-ig"), "zero": ("exact",), "mean": ("exact",)}
"""Ablation -> the methods compared when none is named."""


@dataclass(frozen=True, eq=False)
class TruthTable(Result):
    """AUROC per case and method, with the whole comparisons, and why an estimate is below 1. `random` has no errors by
    name.

    `intervals`: of the AUROC per case and method, where there is one. `hidden`: for the gates, what exact effects find
    in the other direction: (direction, comparison).
    """

    ablation: str
    comparisons: Mapping[str, Mapping[str, TruthComparison]]
    auroc: Mapping[str, Mapping[str, float]]
    explanations: Mapping[str, Mapping[str, str]]
    hidden: Mapping[str, tuple[str, TruthComparison]] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def mean(self, method: str) -> tuple[float, tuple[float, float]]:
        """Mean AUROC of a method over the cases, and its bootstrap interval over them (NaN for one case)."""
        values = torch.tensor([row[method] for row in self.auroc.values()], dtype=torch.float64)
        if len(values) < 2:
            return float(values.mean()), (float("nan"), float("nan"))
        low, high = bootstrap_interval(values[:, None])[:, 0].tolist()
        return float(values.mean()), (low, high)

    def _table(self) -> Table:
        """One row per case, one column per method: AUROC."""
        return [{"case": name, **row} for name, row in self.auroc.items()]

    def __str__(self) -> str:
        columns = list(next(iter(self.auroc.values())))
        width = max(len(name) for name in (*self.auroc, f"AUROC, {self.ablation} ablation"))
        across = {c: max(13, len(c) + 2) for c in columns}
        header = "".join(f"{c:>{across[c]}}" for c in columns)
        lines = [f"{f'AUROC, {self.ablation} ablation':<{width}}  true/all {header}"]
        for name, row in self.auroc.items():
            exact = self.comparisons[name]["exact"]
            size = f"{exact.n_true:>4}/{exact.n_edges:<4}"
            lines.append(f"{name:<{width}} {size} " + "".join(f"{row[c]:>{across[c]}.3f}" for c in columns))
            if ends := self.intervals.get(name):
                said = (f"[{ends[c][0]:.2f},{ends[c][1]:.2f}]" if c in ends else "" for c in columns)
                lines.append(
                    " " * (width + 11) + "".join(f"{s:>{across[c]}}" for c, s in zip(columns, said, strict=True))
                )
        if len(self.auroc) > 1:
            means = {c: self.mean(c) for c in columns}
            lines.append(f"{'mean':<{width}} {'':<9} " + "".join(f"{means[c][0]:>{across[c]}.3f}" for c in columns))
            said = [f"[{means[c][1][0]:.2f},{means[c][1][1]:.2f}]" for c in columns]
            lines.append(" " * (width + 11) + "".join(f"{s:>{across[c]}}" for c, s in zip(columns, said, strict=True)))
        if notes := list(self.notes()):
            lines += ["", "Where an estimate is below 1:", *notes]
        if self.hidden:
            lines += ["", "Exact effects in the other direction of patching:", *self.hidden_notes()]
        return "\n".join(line.rstrip() for line in lines)

    def notes(self) -> Iterable[str]:
        """A line for every case and reason: which methods of the default columns, what they miss, why."""
        for name, row in self.auroc.items():
            below = [m for m in row if m in METHODS and m != "random" and row[m] < 1 and self.ablation == "corrupt"]
            reasons = dict.fromkeys(self.explanations[name].get(m, "not explained") for m in below)
            for reason in reasons:
                methods = [m for m in below if self.explanations[name].get(m, "not explained") == reason]
                wrong = self.comparisons[name][methods[0]]
                errors = [f"missed {', '.join(wrong.missed_edges)}"] if wrong.missed_edges else []
                errors += [f"false {', '.join(wrong.false_edges)}"] if wrong.false_edges else []
                yield f"- {name} ({', '.join(methods)}; {'; '.join(errors)}): {reason}."

    def hidden_notes(self) -> Iterable[str]:
        """A line for every case whose edges the other direction cannot see."""
        for name, (direction, found) in self.hidden.items():
            verb = "denoising" if direction == "denoise" else "noising"
            yield f"- {name}: {verb} misses {', '.join(found.missed_edges)} (AUROC {found.auroc:.3f})."


def build_table(
    cases: Iterable[KnownCircuit],
    *,
    ablation: str = "corrupt",
    methods: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> TruthTable:
    """Rank every case's edges by every method (default: `COLUMNS`; `ALL_METHODS` has every name).

    Cost per case: exact effects one forward per edge, an estimate a few forwards and backwards, ``acdc`` up to a
    forward per edge and threshold, ``learned`` 200 steps. Cases without a truth under `ablation` are left out. Raises
    `UnknownNameError` for an unknown ablation or method.
    """
    if ablation not in ABLATIONS:
        raise UnknownNameError("ablation", ablation, ABLATIONS)
    methods = COLUMNS[ablation] if methods is None else methods
    for method in methods:
        if method not in ALL_METHODS:
            raise UnknownNameError("method", method, ALL_METHODS)
    methods = tuple(dict.fromkeys(("exact", *methods)))
    cases = [case for case in cases if ablation in case.edges]
    hidden = {case.name: _other_direction(case) for case in cases if case.blind and ablation == "corrupt"}
    comparisons: dict[str, dict[str, TruthComparison]] = {}
    auroc: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for i, case in enumerate(cases):
        truth = case.truth(ablation)
        ranked = {m: rank_pairs(case, m, ablation) for m in methods}
        comparisons[case.name] = {m: compare(values, truth) for m, (values, _) in ranked.items()}
        intervals[case.name] = {
            m: auroc_interval(rows, truth) for m, (_, rows) in ranked.items() if rows is not None and len(rows) > 1
        }
        auroc[case.name] = {m: c.auroc for m, c in comparisons[case.name].items()} | {"random": random_auroc(truth)}
        if progress is not None:
            progress(i + 1, len(cases), "ranking edges of known circuits")
    return TruthTable(ablation, comparisons, auroc, {case.name: case.explanations for case in cases}, hidden, intervals)


def _other_direction(case: KnownCircuit) -> tuple[str, TruthComparison]:
    other = "denoise" if case.direction == "noise" else "noise"
    return other, compare(measure_edges(case.model, case.task, direction=other).magnitude, case.truth())


def auroc_interval(
    rows: Float[Tensor, "batch edge"], truth: Circuit, level: float = 0.95, n: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Central `level` of the AUROC of mean scores over resampled pairs."""
    true = truth.mask[truth.space.mask]
    means = bootstrap_weights(len(rows), n, seed).to(rows) @ rows
    found = torch.tensor([find_auroc(find_levels(row), true) for row in means], dtype=torch.float64)
    low, high = percentile_interval(found[:, None], level)
    return float(low), float(high)


def random_auroc(truth: Circuit, n: int = N_RANDOM) -> float:
    """Mean AUROC of uniform noise over seeds 0 to n - 1."""
    space, true = truth.space, truth.mask[truth.space.mask]
    noise = (torch.rand(space.n_edges, generator=torch.Generator().manual_seed(seed)) for seed in range(n))
    return sum(find_auroc(find_levels(values), true) for values in noise) / n
