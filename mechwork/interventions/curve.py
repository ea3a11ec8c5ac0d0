"""A curve through activation space, and moves along it: steering where what varies is not a straight line.

    gamma(t) = centre + B^T s(t),   s: natural cubic spline through the knots (t_i, s_i), B orthonormal rows
    x -> x + share (gamma(t') - gamma(t(x))),   t(x): where the curve comes closest to x inside the span of B

What of x lies beside the curve and outside the span stays (manifold steering; the curve through class means in a space
of principal components). Before its first knot and after its last one the curve has ended: t is kept between them.
With a `period` the curve is closed: after the last knot comes the first again, the spline is the periodic one (value,
slope and bend agree where it closes), and t goes round. Cost: the distance of every state to `GRID` points per piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError

GRID = 16
"""Steps per piece among whose ends the closest one is sought first."""
REFINEMENTS = 6
"""Times the search is repeated eight times finer: t is found to about 1e-6 of a piece."""


@dataclass(frozen=True, eq=False)
class Curve(Readable):
    """`knots` rise; `points` are their places in coordinates along the orthonormal rows of `basis`, from `centre`.

    `period`: t and t + period are one place (None: the curve is open).

    Raises `InputError` for fewer than two knots (three of a closed curve), knots that do not rise or span a period,
    numbers that are not finite, or a basis that is not orthonormal.
    """

    knots: Float[Tensor, " knot"]
    points: Float[Tensor, "knot k"]
    basis: Float[Tensor, "k d"]
    centre: Float[Tensor, " d"]
    period: float | None = None

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or not bool((self.knots.diff() > 0).all()):
            raise InputError(f"a curve has two knots or more, each above the one before; got {self.knots.tolist()}")
        if not all(bool(part.isfinite().all()) for part in (self.knots, self.points, self.basis, self.centre)):
            raise InputError("a curve has finite numbers; got NaN or infinity")
        gram = self.basis.double() @ self.basis.double().T
        if not torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-4):
            raise InputError("a curve's basis has orthonormal rows")

        span = float(self.knots[-1] - self.knots[0])
        if self.period is not None and (len(self.knots) < 3 or not span < self.period < float("inf")):
            raise InputError(
                f"a closed curve has three knots or more within one period; got {len(self.knots)} over {span:g} with "
                f"period={self.period}"
            )

    @cached_property
    def _ends(self) -> tuple[Float[Tensor, " end"], Float[Tensor, "end k"]]:
        """Where the pieces begin and end: the knots, of a closed curve with the first one again, a period later."""
        if self.period is None:
            return self.knots, self.points
        return torch.cat([self.knots, self.knots[:1] + self.period]), torch.cat([self.points, self.points[:1]])

    @cached_property
    def _bends(self) -> Float[Tensor, "end k"]:
        """Second derivatives at the ends of the pieces: 0 at both ends of an open curve (the natural spline)."""
        t, y = (part.double() for part in self._ends)
        h, slope = t.diff(), y.diff(dim=0) / t.diff()[:, None]
        closed = self.period is not None
        n = len(h) if closed else len(t)
        system = torch.zeros(n, n, dtype=t.dtype, device=t.device)
        right = torch.zeros(n, y.shape[1], dtype=t.dtype, device=t.device)
        for i in range(n):
            if not closed and i in (0, n - 1):
                system[i, i] = 1
                continue
            for j, weight in ((i - 1, h[i - 1] / 6), (i, (h[i - 1] + h[i]) / 3), ((i + 1) % n, h[i] / 6)):
                system[i, j] += weight
            right[i] = slope[i] - slope[i - 1]
        bends = torch.linalg.solve(system, right)
        return torch.cat([bends, bends[:1]]) if closed else bends

    def coordinates(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch k"]:
        """s(t); the ends of an open curve for t beyond them."""
        knots, points, bends = (part.to(t) for part in (*self._ends, self._bends))
        if self.period is not None:
            t = knots[0] + (t - knots[0]).remainder(self.period)
        t = t.clamp(knots[0], knots[-1])
        piece = torch.searchsorted(knots, t.contiguous(), right=True).clamp(1, len(knots) - 1)
        h = knots[piece] - knots[piece - 1]
        b = (t - knots[piece - 1]) / h
        a = 1 - b
        bent = (a**3 - a)[..., None] * bends[piece - 1] + (b**3 - b)[..., None] * bends[piece]
        return a[..., None] * points[piece - 1] + b[..., None] * points[piece] + bent * (h**2)[..., None] / 6

    def at(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """gamma(t), in activation space."""
        return self.centre.to(t) + self.coordinates(t) @ self.basis.to(t)

    def position(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """t(x): where the curve is closest, inside the span of the basis. Sought in every piece, then the best piece is
        taken.
        """
        y = ((x - self.centre.to(x)) @ self.basis.to(x).T)[..., None, :]
        ends = self._ends[0].to(x)
        low, high = ends[:-1], ends[1:]
        width = (high - low) / GRID
        steps = torch.linspace(0, 1, GRID + 1, dtype=x.dtype, device=x.device)
        best, far = self._closest(y, (low[:, None] + steps * (high - low)[:, None]).expand(*y.shape[:-2], -1, -1))
        steps = torch.linspace(-1, 1, 17, dtype=x.dtype, device=x.device)
        for _ in range(REFINEMENTS):
            around = best[..., None] + steps * width[:, None]
            best, far = self._closest(y, torch.minimum(torch.maximum(around, low[:, None]), high[:, None]))
            width = width / 8
        found = best.gather(-1, far.argmin(dim=-1, keepdim=True))[..., 0]
        return found if self.period is None else ends[0] + (found - ends[0]).remainder(self.period)

    def distance(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """How far states lie beside the curve, inside the span of the basis."""
        y = (x - self.centre.to(x)) @ self.basis.to(x).T
        return (y - self.coordinates(self.position(x))).norm(dim=-1)

    def _closest(
        self, y: Float[Tensor, "*batch 1 k"], t: Float[Tensor, "*batch piece n"]
    ) -> tuple[Float[Tensor, "*batch piece"], Float[Tensor, "*batch piece"]]:
        """Of every piece, the nearest of its `n` places and how far (squared) it is."""
        far = (self.coordinates(t) - y[..., None, :]).pow(2).sum(dim=-1)
        found = far.min(dim=-1)
        return t.gather(-1, found.indices[..., None])[..., 0], found.values


@dataclass(frozen=True, eq=False)
class Slide(Readable):
    """The activation moved along `curve`: `to` the place t' = to, or `by` a step from where it is; `share` of the way.
    On a closed curve a step goes round.

    `within`: only states no further than this from the curve (in the whole space) are moved; None moves all. Raises
    `InputError` unless one of `to` and `by` is given.
    """

    curve: Curve
    to: float | None = None
    by: float | None = None
    share: float = 1.0
    within: float | None = None

    def __post_init__(self) -> None:
        if (self.to is None) == (self.by is None):
            raise InputError(f"a move along a curve goes `to` a place or `by` a step; got to={self.to}, by={self.by}")

    def __call__(self, activation: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        now = self.curve.position(activation)
        then = torch.full_like(now, self.to) if self.to is not None else now + (self.by or 0.0)
        move = (self.curve.coordinates(then) - self.curve.coordinates(now)) @ self.curve.basis.to(activation)
        if self.within is not None:
            near = (activation - self.curve.at(now)).norm(dim=-1, keepdim=True) <= self.within
            move = torch.where(near, move, torch.zeros_like(move))
        return activation + self.share * move
