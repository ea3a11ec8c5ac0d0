"""Which layer to steer at: the one whose direction tells classes apart best on training pairs that it was not fitted
on.

With c the held-out prompts' coordinates along the unit vector fitted on the other groups (+ positive class, - negative
class), s the root of the mean of the two classes' variances, and b the boundary:

criterion | value | what it asks:

- ``accuracy`` | share of prompts on their own side of b | are the classes apart?
- ``discriminability`` | (mean c+ - mean c-) / s | how far, in spreads (d')?
- ``opposite_signs`` | min(mean c+, -mean c-) / s | do the class means lie on opposite sides of 0? Above 0 only there
  (selective steering)

The earliest of the best layers is taken: what is written there passes through most of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.borrow import borrows
from ..result import Result, Table
from ..sites import Site
from .examples import Examples, record_examples
from .fit import FITS, fit_axis

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Criterion = Callable[[Tensor, Tensor, float], float]


def _accuracy(coordinates: Float[Tensor, " n"], labels: Bool[Tensor, " n"], boundary: float) -> float:
    return float(((coordinates > boundary) == labels).double().mean())


def _discriminability(coordinates: Float[Tensor, " n"], labels: Bool[Tensor, " n"], boundary: float) -> float:
    return float(coordinates[labels].mean() - coordinates[~labels].mean()) / _spread(coordinates, labels)


def _opposite_signs(coordinates: Float[Tensor, " n"], labels: Bool[Tensor, " n"], boundary: float) -> float:
    reach = min(float(coordinates[labels].mean()), -float(coordinates[~labels].mean()))
    return reach / _spread(coordinates, labels)


def _spread(coordinates: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    variances = torch.stack([coordinates[side].var(unbiased=False) for side in (labels, ~labels)])
    return float(variances.mean().sqrt().clamp(min=1e-12))


CRITERIA: dict[str, Criterion] = {
    "accuracy": _accuracy,
    "discriminability": _discriminability,
    "opposite_signs": _opposite_signs,
}
"""Name -> (held-out coordinates, labels, boundary) -> value; larger is better."""


@dataclass(frozen=True)
class LayerChoice(Result):
    """The criterion's value at every site; `site` is the earliest of the best."""

    sites: tuple[Site, ...]
    values: tuple[float, ...]
    criterion: str

    @property
    def site(self) -> Site:
        return self.sites[self.values.index(max(self.values))]

    def above(self, limit: float = 0.0) -> tuple[Site, ...]:
        """All sites that qualify, in order: those whose value is above `limit` (selective steering writes at all sites
        with ``opposite_signs`` above 0).
        """
        return tuple(site for site, value in zip(self.sites, self.values, strict=True) if value > limit)

    def _table(self) -> Table:
        """One row per site."""
        chosen = self.site
        return {"site": [*map(str, self.sites)], self.criterion: self.values,
                "chosen": [site == chosen for site in self.sites]}  # fmt: skip

    def __str__(self) -> str:
        cells = ", ".join(f"{site} {value:.3f}" for site, value in zip(self.sites, self.values, strict=True))
        return f"{self.criterion}: {cells}; chosen {self.site}"


@borrows
def choose_layer(
    model: TransformerBridge,
    examples: Examples,
    sites: Sequence[Site] | None = None,
    how: str = "mean_difference",
    *,
    criterion: str = "discriminability",
    seed: int = 0,
) -> LayerChoice:
    """Fit on 70 % of the groups, judge on the others, at every site (default: after every layer). Cost: 1 forward of
    all prompts.

    Raises `UnknownNameError` for an unknown fit or criterion, `InputError` for no site or a held-out part of one class
    only.
    """
    if how not in FITS:
        raise UnknownNameError("way to fit a direction", how, FITS)
    if criterion not in CRITERIA:
        raise UnknownNameError("criterion of a layer", criterion, CRITERIA)
    if sites is None:
        sites = [Site("resid_post", layer) for layer in range(int(model.cfg.n_layers))]
    if not sites:
        raise InputError("name at least one site to choose from; got none")
    fitted, tested = examples.split(seed=seed)
    rows = torch.isin(examples.groups, fitted.groups.unique())
    values = []
    for site, x in zip(sites, record_examples(model, examples, sites), strict=True):
        unit, boundary = fit_axis(x[rows], fitted, how, site)
        values.append(CRITERIA[criterion](x[~rows].double() @ unit, tested.labels, boundary))
    return LayerChoice(tuple(sites), tuple(values), criterion)
