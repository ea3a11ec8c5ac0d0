"""A direction for a number: ridge regression of a target on vectors, and how well it predicts where it was not fitted.

    min over w, b of  mean_i (t_i - w . z_i - b)^2 + penalty norm(w)^2,   z standardised

solved exactly. The direction is w on the vectors as they are, so long that adding it once raises the prediction by one
standard deviation of the target; `low` and `high` are the mean coordinates of the prompts below and above the target's
mean, the boundary is where the prediction is that mean. R^2 = 1 - mean squared error / variance, on groups that were
not fitted (negative: worse than their mean); beside it the same for targets dealt out by lot. Cost: 1 forward of all
prompts, one solution of ``d x d`` equations per fit. Source: Hoerl & Kennard 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..statistics import spearman
from .direction import Direction
from .examples import record_examples
from .labelled import Labelled

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PENALTY = 1e-1


def solve_ridge(
    x: Float[Tensor, "batch d"], targets: Float[Tensor, " batch"], penalty: float = PENALTY
) -> tuple[Float[Tensor, " d"], float]:
    """(weights, bias) on the vectors as they are, in float64.

    Raises `MetricError` for what is not finite, `InputError` for a penalty that is not above 0.
    """
    if not penalty > 0:
        raise InputError(f"the penalty of a ridge is above 0; got {penalty}")
    x, t = x.double(), targets.double()
    if not bool(x.isfinite().all()) or not bool(t.isfinite().all()):
        raise MetricError("vectors and targets are finite; nothing can be fitted to NaN or infinity")
    mean, spread = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp(min=1e-9)
    z, middle = (x - mean) / spread, t.mean()
    # The smaller of the two systems: d x d, or batch x batch with the same solution.
    n, d = z.shape
    if d <= n:
        weights = torch.linalg.solve(z.T @ z / n + penalty * torch.eye(d, dtype=z.dtype), z.T @ (t - middle) / n)
    else:
        weights = z.T @ torch.linalg.solve(z @ z.T / n + penalty * torch.eye(n, dtype=z.dtype), (t - middle) / n)
    weights = weights / spread
    return weights, float(middle - weights @ mean)


@dataclass(frozen=True, eq=False)
class RidgeFit(Result, what="ridge direction"):
    """`direction`; `r2` and `rank_correlation` on held-out groups, and `control`: R^2 for targets by lot.

    `targets` and `predicted` are those of the held-out prompts.
    """

    direction: Direction
    weights: Float[Tensor, " d"]
    bias: float
    r2: float
    rank_correlation: float
    control: float
    targets: Float[Tensor, " tested"]
    predicted: Float[Tensor, " tested"]
    provenance: Provenance = field(default_factory=dict)

    def predict(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """The target of vectors at the site, in float64."""
        return x.double() @ self.weights + self.bias

    def _table(self) -> Table:
        """One row per held-out prompt."""
        return {"target": self.targets.tolist(), "predicted": self.predicted.tolist()}

    def __str__(self) -> str:
        return (
            f"{self.direction.name} at {self.direction.site}: R^2 {self.r2:.3f}, rank correlation "
            f"{self.rank_correlation:.3f} on {len(self.targets)} held-out prompts; targets by lot {self.control:.3f}"
        )


@borrows
def fit_ridge(
    model: TransformerBridge, data: Labelled, site: Site, *, penalty: float = PENALTY, n_controls: int = 3,
    seed: int = 0,
) -> RidgeFit:  # fmt: skip
    """Fit on 70 % of the groups, test on the others. Cost: 1 forward of all prompts.

    Raises `InputError` for classes (see `fit_classes`), `MetricError` for vectors that are not finite or say nothing.

    >>> prompts = [task.pairs.prompt(row)[: 3 + row % 5] for row in range(16)]
    >>> length = fit_ridge(model, Labelled.of_tokens(prompts, [float(len(p)) for p in prompts]), Site("resid_post", 3))
    >>> print(length.r2, length.control)
    """
    if data.classes:
        raise InputError(f"these labels are the classes {', '.join(data.classes)}; fit_classes tells classes apart")
    x = record_examples(model, data, [site])[0].double()
    rows = data.split_rows(seed=seed)
    weights, bias, r2, predicted = _test(x, data.targets, rows, penalty)
    if not float(weights.norm()) > 0:
        raise MetricError(f"the vectors at {site} are all the same: nothing before it differs there")
    generator = torch.Generator().manual_seed(seed)
    chance = [_test(x, data.shuffled(generator).targets, rows, penalty)[2] for _ in range(n_controls)]
    provenance = build_provenance(
        method="direction: ridge", penalty=penalty, model=identify_model(model), seed=seed,
        examples={"name": data.name, "sha256": data.sha256()},
    )  # fmt: skip
    truth = data.targets[rows[1]].double()
    return RidgeFit(
        _direction(x, data, weights, bias, site, provenance), weights, bias, r2, spearman(truth, predicted),
        sum(chance) / len(chance) if chance else float("nan"), truth, predicted, provenance,
    )  # fmt: skip


def _test(
    x: Tensor, targets: Tensor, rows: tuple[Tensor, Tensor], penalty: float
) -> tuple[Tensor, float, float, Tensor]:
    fitted, tested = rows
    weights, bias = solve_ridge(x[fitted], targets[fitted], penalty)
    predicted, truth = x[tested] @ weights + bias, targets[tested].double()
    error, spread = (truth - predicted).pow(2).mean(), truth.var(unbiased=False)
    return weights, bias, float(1 - error / spread.clamp(min=1e-30)), predicted


def _direction(
    x: Tensor, data: Labelled, weights: Tensor, bias: float, site: Site, provenance: Provenance
) -> Direction:
    t = data.targets.double()
    length = float(weights.norm())
    unit, middle = weights / length, float(t.mean())
    coordinates = x @ unit
    above = t > middle
    vector = unit * float(t.std(unbiased=False)) / length
    return Direction(
        vector, site, (middle - bias) / length, float(coordinates[~above].mean()), float(coordinates[above].mean()),
        f"ridge of {data.name}", provenance, x.mean(dim=0),
    )  # fmt: skip
