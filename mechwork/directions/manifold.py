"""A curve fitted to states whose label is a number: years, months, ranks. What varies with the number need not lie on a
line. Where the number goes round (days of the week, months, hours), `period` closes the curve.

1. principal axes of all states (mean taken off), as many as asked for;
2. the mean state of every value (or of every bin of values) in those coordinates: the knots of a natural cubic spline.

How well it holds is said by `CurveFit`: on prompts that were not used for fitting, the correlation of the position on
the curve with the value, how much of the states' variance is inside the span, the mean distance from the curve inside
the span, and `reach`: the distance in the whole space that 95 % of the states stay within, so that `Slide(...,
within=fit.reach)` leaves other states alone. For a closed curve the correlation is the mean of cos(2 pi (t - value) /
period): 1 where every position is right, 0 by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..interventions import Curve
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_tensors
from ..result import Result, Table
from ..shapes import PositionMask, Tokens
from ..sites import Site
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class CurveFit(Result):
    """A curve at a site, and how it does on prompts that it was not fitted on (NaN without any)."""

    curve: Curve
    site: Site
    explained: float
    correlation: float
    distance: float
    reach: float
    n_fitted: int
    n_tested: int
    provenance: Provenance = field(default_factory=dict)

    def _table(self) -> Table:
        """One row per knot: its value, and its place along the axes."""
        axes = {f"axis {i}": column.tolist() for i, column in enumerate(self.curve.points.T)}
        return {"value": self.curve.knots.tolist(), **axes}

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Neighbouring knots, by number; of a closed curve the last and the first too."""
        n = len(self.curve.knots)
        return tuple((i, i + 1) for i in range(n - 1)) + (((n - 1, 0),) if self.curve.period is not None else ())

    def path(self, start: float, end: float, n: int) -> Float[Tensor, "n d"]:
        """`n` places of the curve from one value to another, in equal steps of t; on a closed curve the shorter way."""
        move, period = end - start, self.curve.period
        if period is not None:
            move = (move + period / 2) % period - period / 2
        return self.curve.at(start + move * torch.linspace(0, 1, n, dtype=torch.float64))

    def __str__(self) -> str:
        kind = "open" if self.curve.period is None else "closed"
        return (
            f"{kind} curve through {len(self.curve.knots)} means at {self.site}: {self.explained:.3f} of the variance "
            f"in {len(self.curve.basis)} axes; {self.n_tested} held-out prompts: correlation {self.correlation:.3f}, "
            f"distance {self.distance:.3g}"
        )


@borrows
def fit_curve(
    model: TransformerBridge,
    tokens: Tokens,
    where: PositionMask,
    values: Float[Tensor, " batch"],
    site: Site,
    *,
    n_components: int = 8,
    n_knots: int | None = None,
    period: float | None = None,
    held_out: float = 0.3,
    seed: int = 0,
) -> CurveFit:
    """A `Curve` whose parameter is `values`, read at the positions `where`. Cost: 1 forward of all prompts.

    `n_knots`: values are put in that many bins of equal count (None: every value is a knot). `period`: values are taken
    modulo it, and the curve closes (7 for days of the week by number).

    Raises:
        InputError: one value or position mask per prompt is missing, fewer than two distinct values (three with a
            period), a period that is not above 0, or more axes than prompts.
        MetricError: states that are not finite, or all alike.
    """
    if not len(tokens) == len(values) == len(where) or not bool(values.isfinite().all()):
        raise InputError(
            f"every prompt has a finite value and positions; got {len(tokens)}, {len(values)} and {len(where)}"
        )
    if len(values.unique()) < 2 or (n_knots is not None and n_knots < 2):
        raise InputError(f"a curve needs two values or more; got {len(values.unique())}, n_knots={n_knots}")
    if period is not None:
        if not 0 < period < float("inf"):
            raise InputError(f"a period is a finite number above 0; got {period}")
        values = values.double().remainder(period)
    if not 0 <= held_out < 1:
        raise InputError(f"the share held out is 0 or more and below 1; got {held_out}")
    prompts = Examples(tokens, torch.arange(len(tokens)) == 0, where, torch.arange(len(tokens)), "numbers")
    x = record_examples(model, prompts, [site])[0].double()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    n_test = int(held_out * len(x))
    test, train = order[:n_test], order[n_test:]
    if not 1 <= n_components <= min(len(train) - 1, x.shape[1]):
        raise InputError(f"axes are 1 to {min(len(train) - 1, x.shape[1])} in number here; got {n_components}")
    curve, explained = _through_means(x[train], values[train].double(), n_components, n_knots, period)
    correlation = distance = float("nan")
    seen = x[test] if n_test > 1 else x[train]
    reach = float((seen - curve.at(curve.position(seen))).norm(dim=-1).quantile(0.95))
    if n_test > 1:
        found = torch.stack([curve.position(x[test]), values[test].double()])
        correlation = float(torch.corrcoef(found)[0, 1])
        if period is not None:
            correlation = float((2 * math.pi * (found[0] - found[1]) / period).cos().mean())
        distance = float(curve.distance(x[test]).mean())
    provenance = build_provenance(
        method="curve", model=identify_model(model), n_components=n_components, n_knots=n_knots, seed=seed,
        period=period, examples=hash_tensors({"tokens": tokens, "where": where, "values": values}),
    )  # fmt: skip
    kept = Curve(*(part.float() for part in (curve.knots, curve.points, curve.basis, curve.centre)), period=period)
    return CurveFit(kept, site, explained, correlation, distance, reach, len(train), n_test, provenance)


def _through_means(
    x: Float[Tensor, "n d"], values: Float[Tensor, " n"], n_components: int, n_knots: int | None, period: float | None
) -> tuple[Curve, float]:
    centre = x.mean(dim=0)
    spread = x - centre
    if not bool(x.isfinite().all()) or not float(spread.norm()) > 0:
        raise MetricError("states are not finite, or all alike; there is no curve through them")
    found = torch.linalg.svd(spread, full_matrices=False)
    basis = found.Vh[:n_components]
    explained = float(found.S[:n_components].pow(2).sum() / found.S.pow(2).sum())
    knots, points = [], []
    for rows in _bins(values, n_knots):
        knots.append(values[rows].mean())
        points.append((spread[rows] @ basis.T).mean(dim=0))
    if len(knots) < (2 if period is None else 3):
        raise InputError(
            f"a curve needs two knots or more, a closed one three; the values used for fitting give {len(knots)}. Hold "
            "out fewer prompts"
        )
    return Curve(torch.stack(knots), torch.stack(points), basis, centre, period), explained


def _bins(values: Float[Tensor, " n"], n_knots: int | None) -> list[Tensor]:
    """Rows of each value, or of each bin; values that are equal are never split."""
    distinct = values.unique()
    groups = distinct[:, None] if n_knots is None else [part for part in distinct.tensor_split(n_knots) if len(part)]
    return [torch.isin(values, part).nonzero().flatten() for part in groups]
