"""Effects as objects: values with axes, baselines of both ends, direction, and where they came from.

Sign: an effect is m(clean value at the place) - m(corrupt value at the place), everything else as in the run that is
patched; positive means that the clean value raises the metric, in both directions. Estimated effects (`estimated=True`)
have the same axes and sign, and no measured metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..artefact import Artefact
from ..errors import InputError, MetricError, UnknownNameError
from ..names import place_name
from ..provenance import Provenance
from ..result import Result, Table
from ..runs.record import Baseline
from ..statistics import bootstrap_interval, pearson, sign_flip_p, spearman

if TYPE_CHECKING:
    pass

Direction = Literal["denoise", "noise"]


def check_direction(direction: str) -> Direction:
    """`direction` if it is one of the two; raises `InputError` otherwise."""
    if direction not in ("denoise", "noise"):
        raise InputError(
            f"direction must be 'denoise' (clean into corrupt) or 'noise' (corrupt into clean); got {direction!r}"
        )
    return direction


@dataclass(frozen=True, eq=False)
class Effect(Result):
    """Effects at one kind of site. `per_example` is ``[batch, *axes]``; `values` is its mean over pairs.

    `axes` are names from the glossary (``("layer", "pos")``); `labels` gives each axis' entries as text.
    """

    kind: str
    per_example: Float[Tensor, "batch ..."]
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    baseline: Baseline
    direction: Direction
    estimated: bool
    metric_name: str
    provenance: Provenance

    def __post_init__(self) -> None:
        sizes = {axis: len(self.labels.get(axis, ())) for axis in self.axes}
        if self.per_example.shape[1:] != tuple(sizes.values()):
            raise InputError(
                f"effects at {self.kind} have the axes {sizes} by their labels; got values "
                f"{tuple(self.per_example.shape[1:])}"
            )

    @property
    def values(self) -> Float[Tensor, "..."]:
        """Mean effect over pairs, in units of the metric."""
        return self.per_example.mean(dim=0)

    @property
    def metric(self) -> Float[Tensor, "..."]:
        """Mean metric of the patched runs themselves; only measured effects have it."""
        if self.estimated:
            raise InputError(
                "estimated effects come without patched runs, so there is no patched metric. Use mechwork.patch for "
                "measured ones."
            )
        return self.baseline.corrupt + self.values if self.direction == "denoise" else self.baseline.clean - self.values

    def normalized(self) -> Effect:
        """The same effects as a share of m(clean) - m(corrupt) (means over pairs); 1 = the whole gap."""
        return replace(
            self,
            per_example=self.per_example / self.baseline.require_gap(),
            metric_name=f"{self.metric_name} (share of gap)",
        )

    def standard_error(self) -> Float[Tensor, "..."]:
        """Standard error of `values` over pairs (NaN for a single pair)."""
        if len(self.per_example) == 1:
            return torch.full_like(self.per_example[0], torch.nan)
        return self.per_example.std(dim=0) / len(self.per_example) ** 0.5

    def interval(self, level: float = 0.95, *, n: int = 2000, seed: int = 0) -> Float[Tensor, "2 ..."]:
        """Bootstrap interval of `values` over pairs: lower and upper end, per place. Raises `InputError` for
        one pair.
        """
        return bootstrap_interval(self.per_example, level, n, seed)

    def p_values(self, *, n: int = 2000, seed: int = 0) -> Float[Tensor, "..."]:
        """Two-sided sign-flip p-value of each effect over pairs, not corrected for the number of places."""
        return sign_flip_p(self.per_example, n, seed)

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` places of largest absolute effect, as text, strongest first."""
        measured = ~self.values.isnan()
        return [(place, value) for place, value, _ in self.ranked(measured)[:n]]

    def ranked(self, mask: Bool[Tensor, "..."]) -> list[tuple[str, float, int]]:
        """The places of `mask`, strongest first: text, effect, flat index."""
        values, chosen = self.values.flatten(), mask.flatten().nonzero().flatten()
        order = chosen[values[chosen].abs().argsort(descending=True)].tolist()
        return [(self._place(i), float(values[i]), i) for i in order]

    def _place(self, flat: int) -> str:
        index = torch.unravel_index(torch.tensor(flat), self.values.shape)
        return place_name(self.kind, {a: self.labels[a][int(i)] for a, i in zip(self.axes, index, strict=True)})

    def _table(self) -> Table:
        """One row per place: kind, one column per axis, effect, standard error."""
        rows = torch.cartesian_prod(*(torch.arange(n) for n in self.values.shape)).reshape(-1, len(self.axes))
        places = {axis: [self.labels[axis][i] for i in rows[:, d].tolist()] for d, axis in enumerate(self.axes)}
        numbers = {"effect": self.values.flatten().tolist(), "standard_error": self.standard_error().flatten().tolist()}
        return {"kind": [self.kind] * len(rows), **places, **numbers}


@dataclass(frozen=True)
class Agreement:
    """How an estimate agrees with measured effects at one kind of site."""

    kind: str
    pearson: float
    spearman: float
    relative_error: float
    n_places: int

    def __str__(self) -> str:
        return (
            f"{self.kind:<10} Pearson {self.pearson:+.3f}   Spearman {self.spearman:+.3f}   relative error "
            f"{self.relative_error:.3f}   ({self.n_places} places)"
        )


class AgreementTable(dict[str, Agreement]):
    """Agreement per site kind; prints as a table."""

    def __str__(self) -> str:
        return "\n".join(str(row) for row in self.values())

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class Effects(Result, Mapping[str, Effect], version=3):
    """Effects by site kind: ``effects["resid_pre"].values``. `sites` can be handed on to another method.

    Effects on further metrics that were measured in the same runs are in `others`, by the metric's name.
    """

    by_kind: dict[str, Effect]
    others: dict[str, Effects] = field(default_factory=dict)

    def __getitem__(self, kind: str) -> Effect:
        if kind not in self.by_kind:
            raise InputError(f"no effects at {kind!r}; there are {', '.join(self.by_kind)}")
        return self.by_kind[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_kind)

    def __len__(self) -> int:
        return len(self.by_kind)

    @property
    def sites(self) -> tuple[str, ...]:
        """The site kinds, in order."""
        return tuple(self.by_kind)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were measured; these effects are on the first."""
        return (next(iter(self.by_kind.values())).metric_name, *self.others)

    def under(self, metric: str) -> Effects:
        """The effects on another of the `metrics`."""
        if metric == self.metrics[0]:
            return self
        if metric not in self.others:
            raise UnknownNameError("metric of these effects", metric, self.metrics)
        return self.others[metric]

    @property
    def baseline(self) -> Baseline:
        """The metric of the unpatched runs."""
        return next(iter(self.by_kind.values())).baseline

    @property
    def provenance(self) -> Provenance:
        """What the effects were computed from."""
        return next(iter(self.by_kind.values())).provenance

    def agreement(self, other: Effects) -> AgreementTable:
        """Pearson, Spearman and relative L2 error of these effects against `other` (the truth), per common
        site kind.
        """
        common = [kind for kind in self if kind in other]
        if not common:
            raise InputError(f"no common site kinds: {', '.join(self)} and {', '.join(other)}")
        return AgreementTable({kind: compare_effects(self[kind], other[kind]) for kind in common})

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` places of largest absolute effect among all kinds, as text, strongest first."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"n counts places and is at least 1; got {n!r}")
        found = [row for effect in self.values() for row in effect.top(n)]
        return sorted(found, key=lambda row: -abs(row[1]))[:n]

    def _table(self) -> Table:
        """All effects, one row per place and (when there are several) metric."""
        import pandas

        tables = []
        for name in self.metrics:
            table = pandas.concat([e.to_dataframe() for e in self.under(name).values()], ignore_index=True)
            if self.others:
                table.insert(0, "metric", name)
            tables.append(table)
        return pandas.concat(tables, ignore_index=True)

    def save(self, path: str | Path, *, provenance: Provenance | None = None) -> Path:
        """Write one safetensors file. Returns the path.

        The same effects with the same provenance give the same bytes; `provenance` replaces the effects' own.
        """
        return Result.save(self if provenance is None else self._of(provenance), path)

    def _of(self, provenance: Provenance) -> Effects:
        by_kind = {kind: replace(effect, provenance=provenance) for kind, effect in self.by_kind.items()}
        return Effects(by_kind, {name: others._of(provenance) for name, others in self.others.items()})

    @classmethod
    def _from_old(cls, found: Artefact) -> Effects:
        metrics = {name: cls(_old_metric(found.tensors, name, kinds)) for name, kinds in found.facts["effects"].items()}
        first, *others = metrics
        return cls(metrics[first].by_kind, {name: metrics[name] for name in others})


def _old_metric(tensors: Mapping[str, Tensor], name: str, kinds: dict[str, dict[str, Any]]) -> dict[str, Effect]:
    """The effects on one metric in a file of release 0.1."""
    baseline = Baseline(tensors[f"{name}.baseline.clean"], tensors[f"{name}.baseline.corrupt"])
    effects = {}
    for kind, fact in kinds.items():
        labels = {axis: tuple(names) for axis, names in fact["labels"].items()}
        rest = {**fact, "labels": labels, "axes": tuple(fact["axes"])}
        effects[kind] = Effect(kind, tensors[f"{name}.{kind}.per_example"], baseline=baseline, **rest)
    return effects


def compare_effects(estimate: Effect, truth: Effect) -> Agreement:
    """Agreement of two effects with the same axes; raises `InputError` when they do not describe the same places."""
    if estimate.axes != truth.axes or estimate.values.shape != truth.values.shape:
        raise InputError(
            f"only effects with the same axes can be compared; got {estimate.axes} {tuple(estimate.values.shape)} and "
            f"{truth.axes} {tuple(truth.values.shape)}"
        )
    if estimate.direction != truth.direction:
        raise InputError(
            f"only effects of one direction can be compared; got {estimate.direction} and {truth.direction}"
        )
    for effect in (estimate, truth):
        missing = effect.per_example.isnan()
        if bool((missing.any(dim=0) & ~missing.all(dim=0)).any()):
            raise MetricError(
                f"effects at {effect.kind!r} are NaN for some pairs and not for others; nothing agrees with NaN"
            )
    both = ~(estimate.values.isnan() | truth.values.isnan())  # a screened sweep has measured some places only
    if not bool(both.any()):
        raise MetricError(f"no place of {estimate.kind!r} has a number on both sides, so nothing can be compared")
    return agreement_of(estimate.kind, estimate.values[both], truth.values[both])


def agreement_of(name: str, estimate: Float[Tensor, " n"], truth: Float[Tensor, " n"]) -> Agreement:
    """Agreement of two lists of numbers."""
    a, b = estimate.double(), truth.double()
    error = float((a - b).norm() / b.norm().clamp(min=1e-30))
    return Agreement(name, pearson(a, b), spearman(a, b), error, a.numel())
