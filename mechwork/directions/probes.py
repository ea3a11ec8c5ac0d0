"""Probes that see more than a direction does, and what their accuracy is worth.

With x standardised over the fitted prompts, read at the marked positions p of a prompt:

| kind | score | source |
|---|---|---|
| ``linear`` | w . mean_p x_p + b | Alain & Bengio 2016 |
| ``two_layer`` | v . relu(W mean_p x_p + c) + b | Hewitt & Liang 2019, MLP-1 |
| ``attention_pooled`` | sum_p a_p (w . x_p) + b,  a = softmax_p(q . x_p) | Kantamneni et al. 2025 |
| ``max_pooled`` | max_p (w . x_p) + b | McKenzie et al. 2025 |
| ``multimax`` | sum_h max_p (w_h . x_p) + b, `HEADS` heads | Kramar et al. 2026 |
| ``rolling_pooled`` | max_t sum_p a_p (w . x_p) + b,  a = softmax of q . x_p over `WINDOW` columns up to t | same |

The pooled ones find for themselves where in a long prompt the evidence stands (`Examples` read at ``all``). Positive
scores speak for the positive class. All minimise mean log-loss + penalty |weights|^2 / 2; ``linear`` is solved
(`fit_probe`); the pooled ones are trained with Adam from it, ``two_layer`` from a seeded start, so that the same call
gives the same probe on one machine.

The threshold is calibrated on groups that were not fitted on, accuracy is measured on others again, and the control
task (`fit.by_lot`) goes through the same three parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, MetricError, UnknownNameError
from ..models.borrow import borrows
from ..result import Result, Table, table_rows
from ..sites import Site
from .examples import Examples, record_positions
from .fit import PENALTY, by_lot, fit_probe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HIDDEN = 32
HEADS, WINDOW = 4, 10
NOTHING = -1e30
"""The logit of a position that has no weight: finite, so that a window without marked positions has a gradient."""
STEPS, RATE = 300, 1e-2
Parts = dict[str, Tensor]


def _linear(parts: Parts, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
    return _mean(x, where) @ parts["w"] + parts["b"]


def _two_layer(
    parts: Parts, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    return (_mean(x, where) @ parts["W"] + parts["c"]).relu() @ parts["v"] + parts["b"]


def _attention_pooled(
    parts: Parts, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    weights = (x @ parts["q"]).masked_fill(~where, -torch.inf).softmax(dim=-1)
    return (weights * (x @ parts["w"])).sum(dim=-1) + parts["b"]


def _max_pooled(
    parts: Parts, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    return (x @ parts["w"]).masked_fill(~where, -torch.inf).amax(dim=-1) + parts["b"]


def _multimax(
    parts: Parts, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    found = (x @ parts["W"].T).masked_fill(~where[..., None], -torch.inf)
    return found.amax(dim=1).sum(dim=-1) + parts["b"]


def _rolling_pooled(
    parts: Parts, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Every window ends at a marked position, so that none is without one; unmarked ones have no weight in it."""
    before = (WINDOW - 1, 0)
    looks = torch.nn.functional.pad((x @ parts["q"]).masked_fill(~where, NOTHING), before, value=NOTHING)
    says = torch.nn.functional.pad(x @ parts["w"], before)
    windows = (looks.unfold(1, WINDOW, 1).softmax(dim=-1) * says.unfold(1, WINDOW, 1)).sum(dim=-1)
    return windows.masked_fill(~where, -torch.inf).amax(dim=-1) + parts["b"]


def _mean(x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d"]:
    return (x * where[..., None]).sum(dim=1) / where.sum(dim=1, keepdim=True)


KINDS: dict[str, tuple[Callable[[Parts, Tensor, Tensor], Tensor], Callable[[int], dict[str, tuple[int, ...]]]]] = {
    "linear": (_linear, lambda d: {"w": (d,), "b": ()}),
    "two_layer": (_two_layer, lambda d: {"W": (d, HIDDEN), "c": (HIDDEN,), "v": (HIDDEN,), "b": ()}),
    "attention_pooled": (_attention_pooled, lambda d: {"q": (d,), "w": (d,), "b": ()}),
    "max_pooled": (_max_pooled, lambda d: {"w": (d,), "b": ()}),
    "multimax": (_multimax, lambda d: {"W": (HEADS, d), "b": ()}),
    "rolling_pooled": (_rolling_pooled, lambda d: {"q": (d,), "w": (d,), "b": ()}),
}
"""Name -> (score of (parts, x, where), width -> shapes of the parts)."""


@dataclass(frozen=True, eq=False)
class Probe(Result):
    """A fitted probe: positive class where `scores` exceed `threshold`. `mean`, `spread` standardise the vectors."""

    kind: str
    parts: Parts
    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of probe", self.kind, KINDS)
        wanted = KINDS[self.kind][1](len(self.mean))
        found = {name: tuple(part.shape) for name, part in self.parts.items()}
        if found != wanted or not all(part.is_floating_point() for part in self.parts.values()):
            raise InputError(f"a {self.kind} probe of {len(self.mean)} numbers has real parts of {wanted}; got {found}")

    def scores(self, x: Float[Tensor, "batch pos d"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """The score of every prompt, in float64. Raises `InputError` for another width."""
        if x.shape[-1] != len(self.mean):
            raise InputError(f"this probe reads vectors of {len(self.mean)} numbers; got {x.shape[-1]}")
        return KINDS[self.kind][0](self.parts, (x.double() - self.mean) / self.spread, where)

    def calibrated(self, scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> Probe:
        """With the threshold that gives the best balanced accuracy on these (held-out) scores."""
        return replace(self, threshold=best_threshold(scores, labels))

    def _table(self) -> Table:
        """One row per part of what was fitted."""
        return {
            "part": list(self.parts),
            "shape": [tuple(part.shape) for part in self.parts.values()],
            "norm": [float(part.norm()) for part in self.parts.values()],
        }

    def __repr__(self) -> str:
        return f"{self.kind} probe of {len(self.mean)} numbers, threshold {self.threshold:.3f}"


def train_probe(
    x: Float[Tensor, "batch pos d"],
    where: Bool[Tensor, "batch pos"],
    labels: Bool[Tensor, " batch"],
    kind: str = "two_layer",
    *,
    penalty: float = PENALTY,
    seed: int = 0,
) -> Probe:
    """Fit a probe to recorded vectors (see `record_positions`). Raises `InputError` for one class only, `MetricError`
    for vectors that are not finite.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of probe", kind, KINDS)
    if labels.dtype != torch.bool:
        raise InputError(
            f"labels are True or False; got {labels.dtype}. Several classes: fit_classes; numbers: fit_ridge"
        )
    if not bool(labels.any()) or bool(labels.all()):
        raise InputError(f"a probe needs prompts of two classes; all {len(labels)} are of one")
    if not bool(x[where].isfinite().all()):
        raise MetricError("the vectors are not finite; nothing can be fitted")
    x, y = x.double(), labels.double()
    rows = _mean(x, where) if kind in ("linear", "two_layer") else x[where]
    mean, spread = rows.mean(dim=0), rows.std(dim=0, unbiased=False).clamp(min=1e-9)
    z = (x - mean) / spread
    if kind == "linear":
        weights, bias = fit_probe(_mean(z, where), labels, penalty)
        return Probe(kind, {"w": weights, "b": torch.tensor(bias, dtype=torch.float64)}, mean, spread)
    score, shapes = KINDS[kind]
    parts = {
        name: part.requires_grad_() for name, part in _start(kind, shapes(x.shape[-1]), z, where, labels, seed).items()
    }
    optimizer = torch.optim.Adam(list(parts.values()), lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(score(parts, z, where), y)
            size = torch.stack([part.pow(2).sum() for name, part in parts.items() if name not in ("b", "c")]).sum()
            (loss + penalty / 2 * size).backward()
            optimizer.step()
    return Probe(kind, {name: part.detach() for name, part in parts.items()}, mean, spread)


def _start(kind: str, shapes: dict[str, tuple[int, ...]], z: Tensor, where: Tensor, labels: Tensor, seed: int) -> Parts:
    """Pooled probes start as the linear one (all positions alike), so that a max never hangs on a direction of the
    wrong sign; two layers by lot.
    """
    if kind == "two_layer":
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, *shape, 1) ** 0.5
            for name, shape in shapes.items()
        }
    weights, bias = fit_probe(_mean(z, where), labels)
    start = {"w": weights, "b": torch.tensor(bias, dtype=torch.float64)}
    if kind in ("max_pooled", "multimax", "rolling_pooled"):  # what weighs a mean well is far too large for a maximum
        unit = weights / weights.norm().clamp(min=1e-30)
        top = (z @ unit).masked_fill(~where, -torch.inf).amax(dim=-1).mean()
        start = {"w": unit, "b": -top}
        if kind == "multimax":  # heads that begin alike would stay alike
            noise = torch.randn(HEADS, len(unit), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            start = {"W": unit / HEADS + noise * 0.3 / len(unit) ** 0.5, "b": -top}
    return {name: start.get(name, torch.zeros(shape, dtype=torch.float64)) for name, shape in shapes.items()}


def best_threshold(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """The threshold with the best balanced accuracy: the middle of the widest gap between neighbouring scores among the
    best.

    Raises `InputError` for scores of one class only.
    """
    if not bool(labels.any()) or bool(labels.all()):
        raise InputError(f"a threshold is calibrated on two classes; all {len(labels)} scores are of one")
    points = scores.double().sort().values
    cuts = torch.cat([points[:1] - 1, (points[1:] + points[:-1]) / 2, points[-1:] + 1])
    gaps = torch.cat([points.new_zeros(1), points[1:] - points[:-1], points.new_zeros(1)])
    above = scores.double()[None] > cuts[:, None]
    balanced = (above[:, labels].double().mean(dim=1) + (~above)[:, ~labels].double().mean(dim=1)) / 2
    best = balanced >= balanced.max() - 1e-12
    return float(cuts[gaps.masked_fill(~best, -1.0).argmax()])


def threshold_at(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"], rate: float) -> float:
    """The lowest threshold above which at most the share `rate` of these negatives lies: false alarms at a rate.

    Raises `InputError` without negatives, for a rate outside [0, 1), or one below what so few negatives can show
    (1 / their number), unless it is 0.
    """
    negatives = scores[~labels].double().sort(descending=True).values
    if not len(negatives) or not 0 <= rate < 1:
        raise InputError(
            f"a false-positive rate in [0, 1) is measured on negatives; got {rate} and {len(negatives)} negatives"
        )
    if 0 < rate < 1 / len(negatives):
        raise InputError(
            f"{len(negatives)} negatives show no rate below {1 / len(negatives):.3g}; got {rate}. Calibrate on at "
            f"least {int(-(-1 // rate))}, or take rate 0"
        )
    return float(negatives[int(rate * len(negatives) + 1e-9)])


@dataclass(frozen=True)
class ProbeRow:
    """One probe at one site: balanced accuracy on tested groups, before and after calibration, and of the control task
    (calibrated).
    """

    site: Site
    kind: str
    uncalibrated: float
    accuracy: float
    control: float
    threshold: float
    n_tested: int

    @property
    def selectivity(self) -> float:
        """Accuracy beyond the control's."""
        return self.accuracy - self.control


@dataclass(frozen=True)
class ProbeStudy(Result):
    """Probes of several kinds at several sites."""

    rows: tuple[ProbeRow, ...]
    control_of: str

    def of(self, kind: str, site: Site) -> ProbeRow:
        """The row of a kind of probe at a site."""
        for row in self.rows:
            if row.kind == kind and row.site == site:
                return row
        raise InputError(
            f"no row of {kind!r} at {site}; there are {', '.join(f'{r.kind} at {r.site}' for r in self.rows)}"
        )

    def _table(self) -> Table:
        """One row per site and kind."""
        return table_rows(self.rows, "selectivity")

    def __str__(self) -> str:
        head = (
            "balanced accuracy on groups neither fitted nor calibrated on; control: labels by lot for every "
            f"{self.control_of}"
        )
        return f"{head}\n{self.to_dataframe().to_string(index=False, float_format='%.3f'.__mod__)}"


@borrows
def study_probes(
    model: TransformerBridge,
    examples: Examples,
    sites: Sequence[Site],
    kinds: Sequence[str] = tuple(KINDS),
    *,
    n_controls: int = 3,
    seed: int = 0,
) -> ProbeStudy:
    """Fit on about half of the groups, calibrate on a fifth, test on the rest; the same for `n_controls` control tasks.

    Cost: 1 forward of all prompts per site. Raises `UnknownNameError` for an unknown kind, `InputError` where a part
    has one class only.

    >>> study_probes(
    ...     model, Examples.of_task(mw.tasks.pronoun(model, n=64).train, "all", types="NAME"), [Site("resid_post", 3)]
    ... )
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of probe", kind, KINDS)
    rest, tested = examples.split(0.7, seed=seed)
    fitted, _ = rest.split(0.75, seed=seed)
    is_tested = torch.isin(examples.groups, tested.groups.unique())
    is_fitted = torch.isin(examples.groups, fitted.groups.unique())
    parts = (is_fitted, ~is_fitted & ~is_tested, is_tested)
    generator = torch.Generator().manual_seed(seed)
    controls = [by_lot(examples, generator).labels for _ in range(n_controls)]
    rows = []
    for site in sites:
        x = record_positions(model, examples, site)
        for kind in kinds:
            before, after, threshold = _judge(x, examples.where, examples.labels, parts, kind, seed)
            chance = [_judge(x, examples.where, labels, parts, kind, seed)[1] for labels in controls]
            mean = sum(chance) / len(chance) if chance else float("nan")
            rows.append(ProbeRow(site, kind, before, after, mean, threshold, int(is_tested.sum())))
    return ProbeStudy(tuple(rows), "group" if examples.types is None else "type of prompt")


def _judge(
    x: Float[Tensor, "batch pos d"],
    where: Bool[Tensor, "batch pos"],
    labels: Bool[Tensor, " batch"],
    parts: tuple[Tensor, Tensor, Tensor],
    kind: str,
    seed: int,
) -> tuple[float, float, float]:
    """(balanced accuracy at threshold 0, at the calibrated one, the threshold)."""
    fitted, held, tested = parts
    probe = train_probe(x[fitted], where[fitted], labels[fitted], kind, seed=seed)
    probe = probe.calibrated(probe.scores(x[held], where[held]), labels[held])
    scores, truth = probe.scores(x[tested], where[tested]), labels[tested]
    return balanced_accuracy(scores > 0, truth), balanced_accuracy(scores > probe.threshold, truth), probe.threshold


def balanced_accuracy(said: Bool[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """The mean over both classes of the share that is judged right."""
    sides = [(said[side] == truth[side]).double().mean() for side in (truth, ~truth) if bool(side.any())]
    return float(torch.stack(sides).mean())


@borrows
def sweep_sparse_probe(
    model: TransformerBridge,
    examples: Examples,
    site: Site,
    ks: Sequence[int] = (1, 4, 16),
    *,
    n_controls: int = 3,
    seed: int = 0,
) -> Any:
    """TransformerLens' sparse probes of `ks` coordinates (chosen on the training split), with controls beside: random
    coordinates and shuffled labels.

    The host's `SparseProbeSweep`, on vectors averaged over the marked positions, split by the examples' groups.
    Cost: 1 forward of all prompts.
    Raises `InputError` for what the host refuses: a class with fewer than two groups, more coordinates than there are.
    """  # fmt: skip
    from transformer_lens.tools.analysis.sparse_probing import sweep_sparse_probe as host_sweep

    x = _mean(record_positions(model, examples, site).double(), examples.where)
    try:
        return host_sweep(
            x, examples.labels, ks=list(ks), groups=examples.groups, preprocess="standardize",
            n_random_subsets=n_controls,
            n_label_shuffles=n_controls, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"sparse probes at {site}: {error}") from error
