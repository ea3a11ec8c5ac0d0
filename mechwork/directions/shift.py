"""Probes that would ship: trained on one kind of prompts, tested on others, and a cascade of a cheap and a dear one.

`study_shift` fits probes on half of the groups of one set, sets the threshold on a fifth (at a false-positive rate, or
the best balanced accuracy), and tests on the rest and on every other set: longer prompts, filler in front, another
template, another language. The area under the ROC curve says whether the scores still tell the classes apart, the
false-positive rate whether the threshold still means what it did. Beside each row the same with labels by lot.

`study_cascade` asks the cheap probe first and the dear one only where the cheap one is unsure, i.e. where its score is
nearer to its threshold than a share q of the calibration prompts':

    cost(q) = cost of the cheap probe + (share asked) x cost of the dear one

Costs are shares of a forward: a probe after layer l of L reads (l + 1) / L of it, and the dear one goes on from there.
The control asks the dear probe about as many prompts chosen by lot. Source: Kramar et al. 2026 (probes in production),
McKenzie et al. 2025 (cascades). Cost: 1 forward of every set per site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..result import Result, Table, table_rows
from ..sites import Site
from ..statistics import area_under_roc
from .examples import Examples, record_positions
from .fit import by_lot
from .probes import KINDS, Probe, balanced_accuracy, best_threshold, threshold_at, train_probe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HELD_OUT = "held out"
"""The tested part of the set that the probes were trained on."""
ASKED = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
Cell = tuple[str, Site]
"""A kind of probe and where it reads."""


@dataclass(frozen=True)
class ShiftRow:
    """One probe on one set: area under the ROC curve, shares above the threshold among negatives and positives,
    balanced accuracy, and the same accuracy and area of probes trained on labels by lot.
    """

    kind: str
    tested_on: str
    area: float
    false_positives: float
    true_positives: float
    accuracy: float
    control_area: float
    control_accuracy: float
    n_tested: int


@dataclass(frozen=True)
class ShiftStudy(Result, what="probes under shift"):
    """Probes of several kinds trained on one set, on every set. `rate`: at which thresholds were set (None: best
    accuracy).
    """

    rows: tuple[ShiftRow, ...]
    site: Site
    trained_on: str
    rate: float | None

    def of(self, kind: str, tested_on: str = HELD_OUT) -> ShiftRow:
        """The row of a kind of probe on a set."""
        for row in self.rows:
            if (row.kind, row.tested_on) == (kind, tested_on):
                return row
        raise UnknownNameError("row", f"{kind} on {tested_on}", [f"{r.kind} on {r.tested_on}" for r in self.rows])

    def _table(self) -> Table:
        """One row per kind of probe and set."""
        return table_rows(self.rows)

    def __str__(self) -> str:
        how = "best accuracy" if self.rate is None else f"{self.rate:.1%} false positives"
        head = f"probes at {self.site}, trained on {self.trained_on}, thresholds for {how}; control: labels by lot"
        return f"{head}\n{self.to_dataframe().to_string(index=False, float_format='%.3f'.__mod__)}"


@borrows
def study_shift(
    model: TransformerBridge, examples: Examples, others: Mapping[str, Examples], site: Site, *,
    kinds: Sequence[str] = tuple(KINDS), rate: float | None = None, parallel: bool = False, n_controls: int = 2,
    seed: int = 0,
) -> ShiftStudy:  # fmt: skip
    """Train on `examples`, test on its held-out groups and on `others`. Cost: 1 forward of every set.

    `parallel`: the groups of the other sets are those of `examples` (the same words in another language), and only
    those that were held out are tested.

    Raises `UnknownNameError` for an unknown kind, `InputError` for a set called "held out", a rate that so few
    negatives cannot show, or a part with one class only.

    >>> longer = {"8 tokens of filler": lengthen(examples, [1, 2, 3], 8)}
    >>> print(study_shift(model, examples, longer, Site("resid_post", 3), kinds=["linear"]))
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of probe", kind, KINDS)
    if HELD_OUT in others:
        raise InputError(f"{HELD_OUT!r} is the tested part of the training set; give the other set another name")
    x = record_positions(model, examples, site)
    parts = split_parts(examples, seed)
    generator = torch.Generator().manual_seed(seed)
    controls = [by_lot(examples, generator).labels for _ in range(n_controls)]
    tested = parts[2].nonzero().flatten()
    sets = {HELD_OUT: (x[tested], examples[tested])}
    for name, other in others.items():
        kept = torch.isin(other.groups, examples.groups[tested]) if parallel else torch.ones_like(other.labels)
        if not bool(kept.any()):
            raise InputError(f"parallel sets share their groups; {name!r} has none of those that were held out")
        part = other[kept.nonzero().flatten()]
        sets[name] = (record_positions(model, part, site), part)
    rows = []
    for kind in kinds:
        probe = _trained(x, examples.where, examples.labels, parts, kind, rate, seed)
        chance = [_trained(x, examples.where, labels, parts, kind, rate, seed) for labels in controls]
        for name, (vectors, data) in sets.items():
            found = _measure(probe, vectors, data)
            lot = torch.tensor([_measure(one, vectors, data) for one in chance]).double().reshape(-1, 4).mean(dim=0)
            area, false, true, accuracy = found
            rows.append(ShiftRow(kind, name, area, false, true, accuracy, float(lot[0]), float(lot[3]), len(data)))
    return ShiftStudy(tuple(rows), site, examples.name, rate)


def lengthen(examples: Examples, filler: Sequence[int], n: int, *, keep_first: bool = False) -> Examples:
    """The same prompts with `n` tokens of `filler` (said again as often as needed) in front; with `keep_first`, behind
    the first token (a beginning-of-sequence token).

    Where every real position was read, the filler is read as well; otherwise the same tokens as before are read.
    """
    if n < 1 or not len(filler):
        raise InputError(f"at least one token of filler is needed; got {n} of {list(filler)}")
    row = torch.tensor([filler[i % len(filler)] for i in range(n)])
    first = int(keep_first)
    front = row.expand(len(examples), n)
    tokens = torch.cat([examples.tokens[:, :first], front, examples.tokens[:, first:]], dim=1)
    everywhere = bool(examples.where[:, 0].all()) and bool((examples.where.sum(dim=1) > 1).any())
    added = torch.full((len(examples), n), everywhere)
    where = torch.cat([examples.where[:, :first], added, examples.where[:, first:]], dim=1)
    return replace(examples, tokens=tokens, where=where, name=f"{examples.name}, {n} tokens of filler in front")


def split_parts(examples: Examples, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which prompts are fitted (about half of the groups), calibrated on (a fifth) and tested on."""
    rest, tested = examples.split(0.7, seed=seed)
    fitted, _ = rest.split(0.75, seed=seed)
    is_tested = torch.isin(examples.groups, tested.groups.unique())
    is_fitted = torch.isin(examples.groups, fitted.groups.unique())
    return is_fitted, ~is_fitted & ~is_tested, is_tested


def _trained(
    x: Tensor, where: Tensor, labels: Tensor, parts: tuple[Tensor, Tensor, Tensor], kind: str, rate: float | None,
    seed: int,
) -> Probe:  # fmt: skip
    fitted, held, _ = parts
    probe = train_probe(x[fitted], where[fitted], labels[fitted], kind, seed=seed)
    scores = probe.scores(x[held], where[held])
    at = best_threshold(scores, labels[held]) if rate is None else threshold_at(scores, labels[held], rate)
    return replace(probe, threshold=at)


def _measure(probe: Probe, x: Tensor, data: Examples) -> tuple[float, float, float, float]:
    """(area, false positives, true positives, balanced accuracy)."""
    scores = probe.scores(x, data.where)
    said = scores > probe.threshold
    false, true = (float(said[side].double().mean()) for side in (~data.labels, data.labels))
    return area_under_roc(scores, data.labels), false, true, balanced_accuracy(said, data.labels)


@dataclass(frozen=True)
class CascadeRow:
    """`asked`: the share of tested prompts that went on to the dear probe; `cost` in forwards per prompt; balanced
    accuracy, and that of asking as many by lot.
    """

    wanted: float
    asked: float
    cost: float
    accuracy: float
    by_lot: float


@dataclass(frozen=True)
class Cascade(Result, what="cascade of probes"):
    """The cost curve of two probes. The ends are the cheap probe alone and the dear one for all."""

    rows: tuple[CascadeRow, ...]
    cheap: str
    dear: str
    n_tested: int

    def cheapest(self, accuracy: float) -> CascadeRow:
        """The row of least cost with at least this accuracy; raises `InputError` when there is none."""
        fitting = [row for row in self.rows if row.accuracy >= accuracy]
        if not fitting:
            best = max(row.accuracy for row in self.rows)
            raise InputError(f"no row is as accurate as {accuracy:g}; the best has {best:.3f}")
        return min(fitting, key=lambda row: row.cost)

    def _table(self) -> Table:
        """One row per share that is asked."""
        return table_rows(self.rows)

    def __str__(self) -> str:
        head = f"{self.cheap}, and where it is unsure {self.dear}; {self.n_tested} held-out prompts, cost in forwards"
        return f"{head}\n{self.to_dataframe().to_string(index=False, float_format='%.3f'.__mod__)}"


@borrows
def study_cascade(
    model: TransformerBridge, examples: Examples, cheap: Cell, dear: Cell, *, asked: Sequence[float] = ASKED,
    costs: tuple[float, float] | None = None, n_random: int = 20, seed: int = 0,
) -> Cascade:  # fmt: skip
    """Both probes fitted, calibrated and tested on the same parts of `examples`. Cost: 1 forward per site.

    `costs`: of the cheap probe and of asking the dear one besides, in any unit (default: forwards, by depth).
    Raises `InputError` for shares outside [0, 1], costs that are not positive, or (without `costs`) a dear probe that
    reads before the cheap one.

    >>> print(study_cascade(model, examples, ("linear", Site("resid_post", 1)), ("linear", Site("resid_post", 5))))
    """
    for kind, _ in (cheap, dear):
        if kind not in KINDS:
            raise UnknownNameError("kind of probe", kind, KINDS)
    if not asked or not all(0 <= share <= 1 for share in asked):
        raise InputError(f"shares that are asked are in [0, 1]; got {list(asked)}")
    first, more = _depths(model, cheap[1], dear[1]) if costs is None else costs
    if first <= 0 or more < 0:
        raise InputError(f"costs are positive; got {first} and {more}")
    parts = split_parts(examples, seed)
    scores = []
    for kind, site in (cheap, dear):
        x = record_positions(model, examples, site)
        probe = _trained(x, examples.where, examples.labels, parts, kind, None, seed)
        scores.append(probe.scores(x, examples.where) - probe.threshold)
    generator = torch.Generator().manual_seed(seed)
    _, held, tested = parts
    rows = [
        _cascade_row(scores, examples.labels, held, tested, share, first, more, n_random, generator) for share in asked
    ]
    names = [f"{kind} at {site}" for kind, site in (cheap, dear)]
    return Cascade(tuple(rows), names[0], names[1], int(tested.sum()))


def _cascade_row(
    scores: Sequence[Float[Tensor, " batch"]], labels: Bool[Tensor, " batch"], held: Tensor, tested: Tensor,
    share: float, first: float, more: float, n_random: int, generator: torch.Generator,
) -> CascadeRow:  # fmt: skip
    cheap, dear = (one[tested] for one in scores)
    band = scores[0][held].abs().sort().values
    width = -1.0 if share == 0 else torch.inf if share == 1 else float(band[int(share * len(band))])
    unsure = cheap.abs() < width
    truth = labels[tested]

    def accuracy(ask: Tensor) -> float:
        return balanced_accuracy(torch.where(ask, dear, cheap) > 0, truth)

    n = int(unsure.sum())
    lots = []
    for _ in range(n_random if 0 < n < len(truth) else 1):
        ask = torch.zeros_like(unsure)
        ask[torch.randperm(len(truth), generator=generator)[:n]] = True
        lots.append(accuracy(ask))
    went = n / len(truth)
    return CascadeRow(share, went, first + went * more, accuracy(unsure), sum(lots) / len(lots))


def _depths(model: TransformerBridge, cheap: Site, dear: Site) -> tuple[float, float]:
    """What both probes read, as shares of a forward; the dear one goes on where the cheap one stopped."""
    n = check_ready(model).n_layers
    depths = [(int(site.layer or 0) + (site.kind != "resid_pre")) / n for site in (cheap, dear)]
    if depths[1] < depths[0]:
        raise InputError(f"the dear probe reads no earlier than the cheap one; got {cheap} and {dear}. Or give costs=")
    return max(depths[0], 1 / n), depths[1] - depths[0]
