"""Power curves: with how many pairs is a good circuit passed, and a damaged one failed?

    curves = study_power(model, task, circuit)
    print(curves)                # share of samples per number of pairs: passed, failed, undecided; circuit and damaged

Both circuits are run once on all pairs; for every size samples of pairs are drawn without replacement and judged as
`referee` does (minimality left out, sufficiency and necessity against the same random circuits). The damaged circuit is
the given one without its `damage` edges that cost most when one is removed. `reached` is the smallest size at which a
share of `POWER` is decided as it should be. No model runs after the measurement; 2 `n_random` circuits and the edges'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ...errors import InputError, check_seed, check_whole
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...statistics import binomial_interval
from ...tasks.task import Task
from ..graph.circuit import Circuit
from .evaluate import EvaluationSettings
from .referee import different_pairs, draw_masks
from .trials import N_LEAST, POWER, Bounds, Sample, judge, over_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SIZES = (6, 8, 12, 16, 24, 32, 48, 64)
GIVEN, DAMAGED = "given", "damaged"
ALL = "all claims"


@dataclass(frozen=True)
class PowerRow:
    """One claim about one circuit at one number of pairs: shares of samples. `interval`: of the share decided as it
    should be (passed for the given circuit, failed for the damaged one; Clopper and Pearson, 95 %).
    """

    circuit: str
    claim: str
    n_pairs: int
    passed: float
    failed: float
    interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class PowerCurves(Result):
    """Shares of samples by number of pairs. `faithfulness` on all pairs: of the given circuit and the damaged one."""

    rows: tuple[PowerRow, ...]
    sizes: tuple[int, ...]
    n_samples: int
    faithfulness: tuple[float, float]
    removed: tuple[str, ...]
    reason: str = ""
    provenance: Provenance = field(default_factory=dict)

    def curve(self, circuit: str, claim: str = ALL) -> tuple[PowerRow, ...]:
        """The rows of one claim, smallest number of pairs first."""
        return tuple(row for row in self.rows if (row.circuit, row.claim) == (circuit, claim))

    def reached(self, circuit: str, claim: str = ALL) -> int | None:
        """The smallest number of pairs with which 80 % of samples are decided as they should be; None for none."""
        right = [(r.n_pairs, r.passed if circuit == GIVEN else r.failed) for r in self.curve(circuit, claim)]
        return next((n for n, share in right if share >= POWER), None)

    def _table(self) -> Table:
        """One row per circuit, claim and number of pairs."""
        return [vars(row) for row in self.rows]

    def __str__(self) -> str:
        if self.reason:
            return f"power: inconclusive: {self.reason}"
        first = (
            f"{self.n_samples} samples per size; faithfulness {self.faithfulness[0]:.3f}, damaged "
            f"{self.faithfulness[1]:.3f} (without {', '.join(self.removed)})"
        )
        lines = [first, f"{'circuit':<9}{'claim':<14}{'should':<7}" + "".join(f"{n:>7}" for n in self.sizes)]
        for circuit, should in ((GIVEN, "pass"), (DAMAGED, "fail")):
            for claim in dict.fromkeys(row.claim for row in self.rows if row.circuit == circuit):
                rows = self.curve(circuit, claim)
                shares = [r.passed if should == "pass" else r.failed for r in rows]
                lines.append(f"{circuit:<9}{claim:<14}{should:<7}" + "".join(f"{share:7.2f}" for share in shares))
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def study_power(
    model: TransformerBridge,
    task: Task,
    circuit: Circuit,
    *,
    sizes: Sequence[int] = SIZES,
    n_samples: int = 60,
    damage: int = 1,
    level: float = 0.05,
    margin: float = 0.1,
    n_random: int = 59,
    seed: int = 0,
    progress: Progress | None = None,
) -> PowerCurves:
    """Power curves of the claims about a circuit, and of the same circuit damaged. Sizes beyond the pairs are left out.

    Nothing to measure (too few pairs, an empty circuit, the whole model): the result is empty, and `reason` says why.

    Raises:
        InputError: sizes, counts, a level or margin out of range; as many edges to remove as there are.

    >>> study_power(model, task.test, circuit).reached("given", "equivalence")
    """
    for name, value in (("level", level), ("margin", margin)):
        if not 0 < value < 1:
            raise InputError(f"{name} is between 0 and 1; got {value}")
    for name, value in (("n_samples", n_samples), ("damage", damage), ("n_random", n_random)):
        check_whole(name, value, least=1)
    if not sizes or any(check_whole("size", n) < N_LEAST for n in sizes):
        raise InputError(f"sizes are numbers of pairs, from {N_LEAST}, below which nothing is shown; got {list(sizes)}")
    check_seed(seed)
    task = different_pairs(task)
    n_pairs = len(task) // task.pairs.n_per_question
    kept = tuple(n for n in sorted(set(sizes)) if n <= n_pairs)
    facts = build_provenance(
        method="power", n_samples=n_samples, damage=damage, level=level, margin=margin, seed=seed,
        model=identify_model(model), task=task.provenance(), circuit=circuit.provenance,
    )  # fmt: skip
    blank = PowerCurves((), kept, n_samples, (float("nan"), float("nan")), (), provenance=facts)
    if not kept:
        return replace(blank, reason=f"{n_pairs} different pairs are fewer than the smallest size, {min(sizes)}")
    if not 0 < circuit.n_edges < circuit.space.n_edges:
        return replace(blank, reason="the circuit is empty or the whole model: there is nothing to damage")
    if damage >= circuit.n_edges:
        raise InputError(f"the circuit has {circuit.n_edges} edges; fewer can be removed, got damage={damage}")
    settings = EvaluationSettings(seed=seed, progress=progress)
    whole = draw_masks(circuit, n_random, 1, circuit.n_edges, seed)
    sample = whole.measure(model, task, settings)
    assert sample.cut is not None
    cost = (sample.circuit - sample.cut).double().mean(dim=1) / sample.gap.mean()
    worst = cost.argsort(descending=True)[:damage].tolist()
    mask = circuit.mask.clone()
    for k in worst:
        mask[tuple(whole.edges[k])] = False
    damaged = Circuit(circuit.space, mask)
    other = replace(draw_masks(damaged, n_random, 1, 1, seed), edges=[], added=[]).measure(model, task, settings)
    samples = {GIVEN: replace(sample, cut=None, added=None), DAMAGED: replace(other, cut=None, added=None)}
    rows = [row for name, one in samples.items() for row in _curve(name, one, kept, n_samples, level, margin, seed)]
    faithful = (float(sample.faithfulness(sample.circuit)), float(other.faithfulness(other.circuit)))
    removed = tuple(circuit.space.edge_name(*whole.edges[k]) for k in worst)
    return replace(blank, rows=tuple(rows), faithfulness=faithful, removed=removed)


def _curve(
    name: str, sample: Sample, sizes: Sequence[int], n_samples: int, level: float, margin: float, seed: int
) -> list[PowerRow]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[PowerRow] = []
    for n in sizes:
        said: dict[str, list[str]] = {}
        for draw in range(n_samples):
            index = torch.randperm(len(sample.model), generator=generator)[:n]
            part = over_rows(sample, lambda values, index=index: None if values is None else values[..., index])
            trials = judge(part, Bounds(level, margin, seed=seed + draw))
            for trial in trials:
                said.setdefault(trial.name, []).append(trial.verdict)
            found = [trial.verdict for trial in trials]
            said.setdefault(ALL, []).append(
                "fail" if "fail" in found else "pass" if set(found) == {"pass"} else "inconclusive"
            )
        for claim, verdicts in said.items():
            passed, failed = (sum(v == wanted for v in verdicts) for wanted in ("pass", "fail"))
            ends = binomial_interval(passed if name == GIVEN else failed, n_samples)
            rows.append(PowerRow(name, claim, n, passed / n_samples, failed / n_samples, ends))
    return rows
