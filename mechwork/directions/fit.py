"""Fit a direction from labelled prompts, and say how well it tells the classes apart where it was not fitted.

how | vector | source:

- ``mean_difference`` | mean of the positive class minus mean of the negative one | Marks & Tegmark 2023
- ``principal_difference`` | first principal axis of the differences within groups, as long as the mean difference along
  it | Zou et al. 2023
- ``whitened_difference`` | mean difference divided by the classes' own covariance (shrunk): Fisher's discriminant, as
  long as the mean difference along it | Fisher 1936
- ``probe`` | weights of a logistic regression with an L2 penalty, as long as the mean difference along it | Alain &
  Bengio 2016

Every one is turned towards the positive class. The boundary is where the classes' mean coordinates are equally far, or,
for the probe, where its probability is 1/2. A probe's accuracy means little by itself: the *control task* gives every
type of prompt (every group, where no types are known) a label by lot and fits the same probe to it; selectivity is the
difference (Hewitt & Liang 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, MetricError, UnknownNameError
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..sites import Site
from .direction import Direction
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PENALTY = 1e-2
"""L2 penalty of the probe on standardised coordinates, beside the mean log-loss."""

SHRINKAGE = 1e-1
"""How far the whitened difference's covariance is drawn towards the same variance in all directions, as a share of the
mean variance.
"""


@borrows
def fit_direction(
    model: TransformerBridge,
    examples: Examples,
    site: Site,
    how: str = "mean_difference",
) -> Direction:
    """One direction at one site. Cost: 1 forward of all prompts.

    Raises `UnknownNameError` for an unknown way to fit, `InputError` for a site without vectors, `MetricError` when the
    classes do not differ there.

    >>> gender = fit_direction(model, Examples.of_task(she), Site("resid_post", 2))
    """
    return fit_directions(model, examples, [site], how)[0]


@borrows
def fit_directions(
    model: TransformerBridge, examples: Examples, sites: Sequence[Site], how: str = "mean_difference"
) -> list[Direction]:
    """A direction at every site, from one forward of all prompts; errors as `fit_direction`."""
    if how not in FITS:
        raise UnknownNameError("way to fit a direction", how, FITS)
    vectors = record_examples(model, examples, sites)
    identity = identify_model(model)
    found = []
    for site, x in zip(sites, vectors, strict=True):
        provenance = build_provenance(
            method=f"direction: {how}", model=identity, examples={"name": examples.name, "sha256": examples.sha256()}
        )
        found.append(fit_recorded(x, examples, how, site, provenance))
    return found


def fit_recorded(
    x: Float[Tensor, "batch d"], examples: Examples, how: str, site: Site, provenance: Provenance | None = None
) -> Direction:
    """A direction from vectors recorded before (see `record_examples`); errors as `fit_direction`."""
    vector, boundary, low, high = _fit(x, examples, how, site)
    name = f"{how} of {examples.name}"
    return Direction(vector.to(x.dtype), site, boundary, low, high, name, provenance or {}, x.mean(dim=0))


def _fit(x: Float[Tensor, "batch d"], examples: Examples, how: str, site: Site) -> tuple[Tensor, float, float, float]:
    """(vector, boundary, low, high) in float64."""
    x, labels = x.double(), examples.labels
    if not bool(x.isfinite().all()):
        raise MetricError(f"activations at {site} are not finite; nothing can be fitted")
    difference = x[labels].mean(dim=0) - x[~labels].mean(dim=0)
    if not float(difference.norm()) > 1e-9 * float(x.norm(dim=1).mean()):
        raise MetricError(f"the classes have the same mean at {site}: nothing before it tells them apart there")
    axis, boundary = FITS[how](x, examples)
    unit = axis / axis.norm()
    if float(unit @ difference) < 0:
        unit, boundary = -unit, None if boundary is None else -boundary
    coordinates = x @ unit
    low, high = float(coordinates[~labels].mean()), float(coordinates[labels].mean())
    middle = (low + high) / 2 if boundary is None else boundary
    return unit * max(high - low, 1e-12), middle, low, high


def fit_axis(
    x: Float[Tensor, "batch d"], examples: Examples, how: str, site: Site
) -> tuple[Float[Tensor, " d"], float]:
    """(unit vector, boundary along it) of recorded vectors, in float64; errors as `fit_direction`."""
    vector, boundary, _, _ = _fit(x, examples, how, site)
    return vector / vector.norm(), boundary


def _mean_axis(x: Float[Tensor, "batch d"], examples: Examples) -> tuple[Tensor, float | None]:
    return x[examples.labels].mean(dim=0) - x[~examples.labels].mean(dim=0), None


def _principal_axis(x: Float[Tensor, "batch d"], examples: Examples) -> tuple[Tensor, float | None]:
    """Of positive mean minus negative mean within every group that has both classes."""
    rows = []
    for group in examples.groups.unique():
        inside = examples.groups == group
        if bool((inside & examples.labels).any()) and bool((inside & ~examples.labels).any()):
            rows.append(x[inside & examples.labels].mean(dim=0) - x[inside & ~examples.labels].mean(dim=0))
    if not rows:
        raise InputError("differences need groups with prompts of both classes; these examples have none")
    return torch.linalg.svd(torch.stack(rows), full_matrices=False).Vh[0], None


def _whitened_axis(x: Float[Tensor, "batch d"], examples: Examples) -> tuple[Tensor, float | None]:
    """(C + shrinkage * mean variance * I)^-1 (mean difference), C the covariance around the class means."""
    means = torch.stack([x[~examples.labels].mean(dim=0), x[examples.labels].mean(dim=0)])
    rest = x - means[examples.labels.long()]
    covariance = rest.T @ rest / len(x)
    ridge = SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-30) * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(covariance + ridge, means[1] - means[0]), None


def _probe_axis(x: Float[Tensor, "batch d"], examples: Examples) -> tuple[Tensor, float | None]:
    weights, bias = fit_probe(x, examples.labels)
    return weights, -bias / float(weights.norm())


FITS: dict[str, Callable[[Tensor, Examples], tuple[Tensor, float | None]]] = {
    "mean_difference": _mean_axis,
    "principal_difference": _principal_axis,
    "whitened_difference": _whitened_axis,
    "probe": _probe_axis,
}
"""How -> (vectors, examples) -> (axis, boundary along it or None for the middle)."""


def fit_probe(
    x: Float[Tensor, "batch d"], labels: Bool[Tensor, " batch"], penalty: float = PENALTY
) -> tuple[Float[Tensor, " d"], float]:
    """(weights, bias) of logistic regression: mean log-loss + penalty |w|^2 / 2 on standardised coordinates, in
    float64.

    The minimum is found by Newton's method (L-BFGS on a convex loss), so nothing is drawn by lot.
    """
    x, y = x.double(), labels.double()
    mean, spread = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp(min=1e-9)
    z = (x - mean) / spread
    parameters = torch.zeros(z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = z @ parameters[:-1] + parameters[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        value = value + penalty / 2 * parameters[:-1].pow(2).sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    weights = parameters.detach()[:-1] / spread
    return weights, float(parameters.detach()[-1] - weights @ mean)


@dataclass(frozen=True)
class Separation:
    """How well a direction's boundary tells held-out prompts apart, and the same fit of labels by lot (`control`)."""

    site: Site
    accuracy: float
    control: float
    n_fitted: int
    n_tested: int

    @property
    def selectivity(self) -> float:
        """Accuracy beyond the control's."""
        return self.accuracy - self.control


@borrows
def measure_separation(
    model: TransformerBridge,
    examples: Examples,
    sites: Sequence[Site],
    how: str = "probe",
    *,
    n_controls: int = 5,
    seed: int = 0,
) -> list[Separation]:
    """Fit on 70 % of the groups, test on the others, at every site; mean accuracy of `n_controls` control tasks beside
    it.

    Cost: 1 forward of all prompts. Raises what `fit_direction` and `Examples.split` raise.
    """
    if how not in FITS:
        raise UnknownNameError("way to fit a direction", how, FITS)
    vectors = record_examples(model, examples, sites)
    return [separate(x, examples, site, how, n_controls, seed) for site, x in zip(sites, vectors, strict=True)]


def separate(
    x: Float[Tensor, "batch d"], examples: Examples, site: Site, how: str, n_controls: int, seed: int
) -> Separation:
    """The separation of recorded vectors; see `measure_separation`."""
    fitted, tested = examples.split(seed=seed)
    rows = [torch.isin(examples.groups, part.groups.unique()) for part in (fitted, tested)]

    def accuracy(of: Examples) -> float:
        first, second = (of[row.nonzero().flatten()] for row in rows)
        unit, boundary = fit_axis(x[rows[0]], first, how, site)
        return float(((x[rows[1]].double() @ unit > boundary) == second.labels).double().mean())

    generator = torch.Generator().manual_seed(seed)
    controls = [accuracy(by_lot(examples, generator)) for _ in range(n_controls)]
    mean = sum(controls) / n_controls if controls else float("nan")
    return Separation(site, accuracy(examples), mean, len(fitted), len(tested))


def by_lot(examples: Examples, generator: torch.Generator) -> Examples:
    """The control task: every type has a label by the toss of a coin; without types, in every group the classes stay or
    are exchanged.

    Types come back in held-out groups, so that a probe with room to remember them does well (Hewitt & Liang 2019);
    groups do not.
    """
    units, index = (examples.groups if examples.types is None else examples.types).unique(return_inverse=True)
    coin = torch.randint(2, (len(units),), generator=generator).bool()
    if examples.types is None:
        labels = examples.labels ^ coin[index]
    else:
        if bool(coin.all()) or not bool(coin.any()):
            coin[0] = ~coin[0]
        labels = coin[index]
    return replace(examples, labels=labels, name=f"control of {examples.name}")
