"""Claims about a circuit, each with two p-values and a verdict of three states. Numbers in, numbers out: no model.

Per pair: m of the whole model, e of the empty circuit, c of the circuit, r of the rest (the model without the circuit's
edges). g = m - e is the gap, F = mean(c - e) / mean(g) the faithfulness. A claim *passes* when "the claim is false" is
rejected (`p_for`), *fails* when "the claim is true" is rejected (`p_against`), and is *inconclusive* else: that nothing
was found is no proof. Ratios are never resampled; a bound on F is a claim about a mean over pairs,

    F > f   iff   mean[(c - e) - f g] > 0          (as mean g > 0; Fieller 1954)

whose p-value is that of random sign flips (exact where differences are symmetric around their mean).

| claim | for | against |
|---|---|---|
| gap | mean g > 0 | mean g < 0 |
| equivalence | 1 - margin < F < 1 + margin: both bounds (Schuirmann 1987) | F outside |
| independence | see below | HSIC of m and r - e, reordered (Gretton et al. 2005) |
| sufficiency | rank of abs(1 - F) among random circuits of its size | the same rank from the other end |
| necessity | rank of the rest's F among models without such a random circuit | the same |
| minimality of an edge | abs(mean drop) > least x gap | both bounds inside |

The tests are those of Shi et al. 2024 (arXiv:2410.13032), turned so that a pass too is a rejection. Independence
cannot be proved by a test: it passes when the rest adds less than `least` of the gap to the empty circuit on every
pair, or when dependence is not found *and* would be found in `POWER` of cases at a correlation of `CORRELATION`.
Nothing but the gap is judged where the gap is not shown. Minimality passes when every edge does (largest p), and
fails when one is shown superfluous (corrected).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...shapes import PerExample
from ...statistics import benjamini_hochberg, hsic, hsic_p, rank_p, sign_flip_p
from .curves import bootstrap_faithfulness

Verdict = Literal["pass", "fail", "inconclusive"]
CLAIMS = {
    "gap": "the model shows the behaviour: its metric is above the empty circuit's",
    "equivalence": "the circuit does as well as the model, neither worse nor better",
    "independence": "the rest of the graph knows nothing of the model's metric",
    "sufficiency": "the circuit alone is nearer to the model than random circuits of its size",
    "necessity": "without it the model loses more than without random circuits of its size",
    "minimality": "every edge of the circuit matters more than random edges do",
}
N_LEAST = 6
"""Different pairs below which sign flips cannot reach 5 % (and BH's corrections of it)."""
N_FLIPS = 4999
POWER, CORRELATION = 0.8, 0.5
NAN = float("nan")


@dataclass(frozen=True)
class Trial:
    """One claim. `q_for` and `q_against` are the p-values after Benjamini and Hochberg; NaN is no test.

    `estimate` is a faithfulness (of the circuit; for necessity of the rest), for gap the mean gap, for independence
    HSIC in [0, 1], for minimality the share of edges shown to matter. `detectable`: how far a truth must lie from the
    claim's bound (in the estimate's unit) to be found in 80 % of samples of this size; `n_needed`: pairs with which
    the estimate, were it the truth, would be decided so often.
    """

    name: str
    verdict: Verdict
    estimate: float = NAN
    interval: tuple[float, float] = (NAN, NAN)
    p_for: float = NAN
    p_against: float = NAN
    q_for: float = NAN
    q_against: float = NAN
    detectable: float = NAN
    n_needed: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class EdgeTrial:
    """One edge of the circuit: what removing it costs, as a share of the gap (positive = it helps)."""

    edge: str
    effect: float
    p_for: float
    p_against: float
    q_for: float
    q_against: float
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Sample:
    """Metrics per pair. `randoms` are random circuits, `knocked` the model without such ones, `cut` the circuit less
    one edge each, `added` the circuit and one random edge each; None where a null could not be built.
    """

    model: PerExample
    empty: PerExample
    circuit: PerExample
    rest: PerExample
    randoms: Float[Tensor, "random batch"] | None = None
    knocked: Float[Tensor, "random batch"] | None = None
    cut: Float[Tensor, "edge batch"] | None = None
    added: Float[Tensor, "random_edge batch"] | None = None

    @property
    def gap(self) -> PerExample:
        """The gap of every pair."""
        return (self.model - self.empty).double()

    def faithfulness(self, rows: Float[Tensor, "*row batch"]) -> Float[Tensor, "*row"]:
        """Of each row."""
        return (rows - self.empty).double().mean(dim=-1) / self.gap.mean()


def over_rows(sample: Sample, change: Callable[[Any], Any]) -> Sample:
    """`change` applied to every metric of a sample."""
    return Sample(**{name: change(getattr(sample, name)) for name in Sample.__dataclass_fields__})


@dataclass(frozen=True)
class Bounds:
    """How strict the claims are: `level` of all tests, `margin` of the faithfulness, `least` effect of an edge."""

    level: float = 0.05
    margin: float = 0.1
    least: float = 0.005
    quantile: float = 0.9
    seed: int = 0


def greater(contrast: Float[Tensor, "*cell batch"], seed: int) -> Float[Tensor, "*cell"]:
    """p-value of "the mean over pairs is at most 0", per cell."""
    return sign_flip_p(contrast.double().movedim(-1, 0), n=N_FLIPS, seed=seed, alternative="greater")


def judge(sample: Sample, bounds: Bounds) -> tuple[Trial, ...]:
    """All claims but minimality, corrected for their number; gap first."""
    gap = try_gap(sample, bounds)
    others = [name for name in CLAIMS if name not in ("gap", "minimality")]
    if gap.verdict != "pass":
        why = f"the model does not show the behaviour on these pairs (gap: {gap.verdict})"
        return (gap, *undecided(others, why))
    found = [try_equivalence(sample, bounds), try_independence(sample, bounds)]
    found += [try_rank(sample, bounds, name) for name in ("sufficiency", "necessity")]
    return (gap, *correct(found, bounds.level))


def undecided(names: list[str], why: str) -> tuple[Trial, ...]:
    """Claims that cannot be judged, and why."""
    return tuple(Trial(name, "inconclusive", reason=why) for name in names)


def decide(p_for: float, p_against: float, level: float) -> Verdict:
    """NaN decides nothing. Corrected values such as .05 x 3 / 3 may be rounded just above the level that they equal."""
    level *= 1 + 1e-12
    return "pass" if p_for <= level else "fail" if p_against <= level else "inconclusive"


def correct(trials: list[Trial], level: float) -> tuple[Trial, ...]:
    """Each side corrected for the number of claims, and the verdicts again; what needed no test keeps its verdict."""
    sides = [torch.tensor([getattr(t, side) for t in trials], dtype=torch.float64) for side in ("p_for", "p_against")]
    corrected = zip(trials, *(benjamini_hochberg(side).tolist() for side in sides), strict=True)
    found = [replace(trial, q_for=q, q_against=r) for trial, q, r in corrected]
    return tuple(
        replace(t, verdict=decide(t.q_for, t.q_against, level))
        if not (math.isnan(t.p_for) or math.isnan(t.p_against))
        else replace(t, verdict="inconclusive" if t.verdict == "fail" and t.q_against > level else t.verdict)
        for t in found
    )


def try_gap(sample: Sample, bounds: Bounds) -> Trial:
    """Whether there is anything to explain."""
    g = sample.gap
    p_for, p_against = (float(p) for p in greater(torch.stack([g, -g]), bounds.seed))
    mean, low, high = float(g.mean()), *_interval(g)
    return Trial(
        "gap", decide(p_for, p_against, bounds.level), mean, (low, high), p_for, p_against, p_for, p_against,
        _detectable(g, bounds.level), _needed(g, mean, bounds.level),
    )  # fmt: skip


def try_equivalence(sample: Sample, bounds: Bounds) -> Trial:
    """Two one-sided tests of the faithfulness; the circuit may be neither worse nor better than the margin."""
    g, c = sample.gap, (sample.circuit - sample.empty).double()
    above, below = c - (1 - bounds.margin) * g, (1 + bounds.margin) * g - c
    inside = greater(torch.stack([above, below]), bounds.seed)
    outside = greater(torch.stack([-above, -below]), bounds.seed)
    f, scale = float(sample.faithfulness(sample.circuit)), float(g.mean())
    spread = (c - f * g) / scale
    ends = bootstrap_faithfulness(sample.circuit, sample.empty, sample.model, seed=bounds.seed)
    side = "better" if f > 1 else "worse"
    return Trial(
        "equivalence", "inconclusive", f, ends, float(inside.max()), float(outside.min()),
        detectable=_detectable(spread, bounds.level),
        n_needed=_needed(spread, abs(bounds.margin - abs(1 - f)), bounds.level),
        reason=f"faithfulness {f:.3f} against 1 +- {bounds.margin:g}" + ("" if f == 1 else f" ({side} than the model)"),
    )  # fmt: skip


def try_independence(sample: Sample, bounds: Bounds) -> Trial:
    """HSIC of the model's metric with what the rest adds to the empty circuit."""
    adds, scale = (sample.rest - sample.empty).double(), abs(float(sample.gap.mean()))
    share = f"the rest alone has faithfulness {float(sample.faithfulness(sample.rest)):.3f}"
    most = float(adds.abs().max()) / scale
    if most <= bounds.least:
        why = f"the rest adds at most {most:.2g} of the gap to the empty circuit on any pair: no test needed"
        return Trial("independence", "pass", 0.0, reason=why)
    if float((sample.model - sample.model[0]).abs().max()) <= 1e-6 * scale:
        why = f"the model's metric is the same on every pair, so that nothing can vary with it; {share}"
        return Trial("independence", "inconclusive", reason=why)
    value, n = hsic(sample.model, adds), len(adds)
    if math.isnan(value):
        return Trial("independence", "inconclusive", reason=f"the rest adds the same on every pair; {share}")
    p = hsic_p(sample.model, adds, seed=bounds.seed)
    power = hsic_power(min(n, 256), bounds.level)
    enough = power >= POWER
    verdict: Verdict = "fail" if p <= bounds.level else "pass" if enough else "inconclusive"
    found = "at least " * (n > 256) + f"{power:.0%}"
    said = f"{share}; a correlation of {CORRELATION:g} would be found in {found} of samples of {n} pairs"
    n_needed = next((size for size in (16, 24, 32, 48, 64, 96) if hsic_power(size, bounds.level) >= POWER), 128)
    return Trial(
        "independence", verdict, value, p_against=p, detectable=CORRELATION if enough else NAN,
        n_needed=None if enough else n_needed, reason=said,
    )  # fmt: skip


def try_rank(sample: Sample, bounds: Bounds, name: str) -> Trial:
    """The circuit's place among random ones: `sufficiency` of it alone, or `necessity` of it in the model."""
    rows = sample.randoms if name == "sufficiency" else sample.knocked
    if rows is None or (1 + len(rows)) * bounds.level < 1:
        n = math.ceil(1 / bounds.level)
        why = "the rest of the graph is too small for random circuits of this size"
        few = f"{0 if rows is None else len(rows)} random circuits cannot reach p = {bounds.level:g}; {n} would"
        return Trial(name, "inconclusive", reason=why if rows is None else few)
    own = sample.faithfulness(sample.circuit if name == "sufficiency" else sample.rest)
    others = sample.faithfulness(rows)
    value, reference = ((1 - own).abs(), (1 - others).abs()) if name == "sufficiency" else (own, others)
    slack = 1e-9
    p_for, p_against = rank_p(-float(value) - slack, -reference), rank_p(float(value) - slack, reference)
    low, middle, high = others.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=others.dtype)).tolist()
    what = "random circuits" if name == "sufficiency" else "the model without a random circuit"
    return Trial(
        name, "inconclusive", float(own), p_for=p_for, p_against=p_against,
        reason=f"{what}: median {middle:.3f}, 90 % in [{low:.3f}, {high:.3f}] ({len(rows)} drawn)",
    )  # fmt: skip


def try_edges(sample: Sample, edges: list[str], bounds: Bounds) -> tuple[tuple[EdgeTrial, ...], Trial]:
    """Every edge against what random edges do, and the claim about all of them."""
    assert sample.cut is not None
    g, scale = sample.gap, float(sample.gap.mean())
    drop = (sample.circuit - sample.cut).double()
    least = bounds.least
    if sample.added is not None and len(sample.added):
        others = ((sample.added - sample.circuit).double().mean(dim=1) / scale).abs()
        least = max(least, float(others.quantile(bounds.quantile)))
    more = torch.stack([greater(sign * drop - least * g, bounds.seed) for sign in (1, -1)])
    less = torch.stack([greater(least * g - sign * drop, bounds.seed) for sign in (1, -1)])
    p_for, p_against = (2 * more.amin(dim=0)).clamp(max=1), less.amax(dim=0)
    q_for, q_against = benjamini_hochberg(p_for), benjamini_hochberg(p_against)
    numbers = torch.stack([drop.mean(dim=1) / scale, p_for, p_against, q_for, q_against], dim=1).tolist()
    rows = tuple(
        EdgeTrial(edge, effect, p, against, q, q_less, decide(q, q_less, bounds.level))
        for edge, (effect, p, against, q, q_less) in zip(edges, numbers, strict=True)
    )
    share = sum(row.verdict == "pass" for row in rows) / len(rows)
    spare = [row.edge for row in rows if row.verdict == "fail"]
    open_ = sum(row.verdict == "inconclusive" for row in rows)
    spread = ((drop - drop.mean(dim=1, keepdim=True)) / scale).std(dim=1).median() if drop.shape[1] > 1 else NAN
    said = f"{len(rows)} edges against {least:.2%} of the gap: {len(spare)} superfluous, {open_} undecided"
    p, q = float(p_for.max()), float(q_against.min())
    return rows, Trial(
        "minimality", decide(p, q, bounds.level), share, p_for=p, p_against=q, q_for=p, q_against=q,
        detectable=_z(bounds.level) * float(spread) / math.sqrt(len(g)), reason=said,
    )  # fmt: skip


@cache
def hsic_power(n: int, level: float, correlation: float = CORRELATION, n_samples: int = 60) -> float:
    """How often HSIC finds a Gaussian dependence of that correlation in `n` pairs (simulated, 99 reorderings)."""
    generator = torch.Generator().manual_seed(0)
    found = 0
    for sample in range(n_samples):
        x, noise = torch.randn(2, n, generator=generator, dtype=torch.float64)
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        found += hsic_p(x, y, n=99, seed=sample) <= level
    return found / n_samples


def _z(level: float) -> float:
    """Standard errors between a bound and a truth that is found at that level in `POWER` of samples."""
    return NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(POWER)


def _detectable(contrast: PerExample, level: float) -> float:
    return _z(level) * float(contrast.std()) / math.sqrt(len(contrast)) if len(contrast) > 1 else NAN


def _needed(contrast: PerExample, distance: float, level: float) -> int | None:
    """Pairs with which a truth that far from the bound is found; None when it lies on the bound."""
    if len(contrast) < 2 or abs(distance) < 1e-12:
        return None
    return max(N_LEAST, min(10**9, math.ceil((_z(level) * float(contrast.std()) / distance) ** 2)))


def _interval(values: PerExample) -> tuple[float, float]:
    """Normal 95 % interval of a mean."""
    half = NormalDist().inv_cdf(0.975) * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else NAN
    return float(values.mean()) - half, float(values.mean()) + half
