"""Curves along training, fitted: the five-parameter curve of emerging activations, and a power law.

| curve | value after step t | source |
|---|---|---|
| ``emergence`` | A exp(-l x) log(x) + K,  x = g t + t0 | massive activations (Gallego-Feliciano et al. 2025) |
| ``power`` | a (t + 1)^b + K | sparsity by data (Luo et al. 2024) |

Steps are scaled to [0, 1] of the last one before the fit, and the parameters are of that scale. Least squares from
several starts (scipy's `least_squares`), the best kept. Five numbers fit a dozen points easily: `control` is the mean
R^2 of the same fit to the values in an order drawn by lot, and a fit says something where it is far above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..errors import InputError, MetricError, UnknownNameError
from ..result import Result, Table

Values = Float[ndarray, " n"]
Parameters = Float[ndarray, " parameter"]


def _emergence(p: Parameters, t: Values) -> Values:
    x = np.abs(p[2]) * t + np.abs(p[3]) + 1e-9
    return p[0] * np.exp(-np.abs(p[1]) * x) * np.log(x) + p[4]


def _power(p: Parameters, t: Values) -> Values:
    return p[0] * (t + 1.0) ** p[1] + p[2]


CURVES: dict[str, tuple[Callable[[Parameters, Values], Values], tuple[str, ...], tuple[tuple[float, ...], ...]]] = {
    "emergence": (
        _emergence,
        ("amplitude", "decay", "time scale", "time offset", "baseline"),
        ((1.0, 0.5, 5.0, 1.0, 0.0), (1.0, 0.05, 20.0, 1.0, 0.0), (-1.0, 0.5, 5.0, 1.0, 1.0), (1.0, 2.0, 2.0, 0.5, 0.5),
         (-1.0, 0.05, 20.0, 1.0, 1.0)),
    ),
    "power": (_power, ("factor", "exponent", "baseline"),
              ((1.0, 1.0, 0.0), (-1.0, -1.0, 1.0), (1.0, -2.0, 0.0), (0.1, 4.0, 0.0))),
}  # fmt: skip
"""Name -> (curve of parameters and scaled steps, names of the parameters, where the fit starts, for values in
[0, 1])."""


@dataclass(frozen=True, eq=False)
class GrowthFit(Result, what="curve along training"):
    """A fitted curve: `parameters` by name, `residuals` (value - curve) per step."""

    curve: str
    parameters: dict[str, float]
    steps: tuple[float, ...]
    values: tuple[float, ...]
    residuals: tuple[float, ...]
    r2: float
    control: float

    def at(self, steps: Sequence[float]) -> list[float]:
        """The curve after any steps."""
        function, names, _ = CURVES[self.curve]
        p = np.array([self.parameters[name] for name in names])
        return function(p, np.asarray(steps, dtype=float) / max(self.steps)).tolist()

    def _table(self) -> Table:
        """One row per step."""
        fitted = [value - residual for value, residual in zip(self.values, self.residuals, strict=True)]
        return {"step": self.steps, "value": self.values, "fitted": fitted, "residual": self.residuals}

    def __str__(self) -> str:
        said = ", ".join(f"{name} {value:.4g}" for name, value in self.parameters.items())
        worst = max(abs(one) for one in self.residuals)
        return (
            f"{self.curve} through {len(self.steps)} steps: {said}; R^2 {self.r2:.3f} (values in an order by lot "
            f"{self.control:.3f}), largest residual {worst:.3g}"
        )


def fit_growth(
    steps: Sequence[float], values: Sequence[float], curve: str = "emergence", *, n_controls: int = 10, seed: int = 0
) -> GrowthFit:
    """Fit one of `CURVES` to a quantity along training. No model runs.

    Raises `UnknownNameError` for another curve, `InputError` for fewer points than parameters + 1, steps that do not
    rise from 0 or more, or values that are not finite; `MetricError` for values that are all the same.

    >>> found = telemetry_over_training("attn-only-2l", lambda model: mw.tasks.induction(model, n=16))
    >>> sinks = [float(one.sink.max()) for one in found.found]
    >>> print(fit_growth(found.steps, sinks))
    """
    if curve not in CURVES:
        raise UnknownNameError("curve", curve, CURVES)
    t, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    need = len(CURVES[curve][1]) + 1
    if t.shape != y.shape or t.ndim != 1 or len(t) < need:
        raise InputError(f"{curve!r} needs one value per step and at least {need} of them; got {t.shape}, {y.shape}")
    if not np.isfinite(y).all() or not np.isfinite(t).all():
        raise InputError("steps and values are finite numbers; got some that are not")
    if (np.diff(t) <= 0).any() or t[0] < 0:
        raise InputError(f"steps rise, from 0 or more; got {list(steps)}")
    if not float(y.std()) > 0:
        raise MetricError("the values are all the same; there is no growth to fit")
    parameters, fitted = _fit(curve, t / t[-1], y)
    generator = np.random.default_rng(seed)
    chance = [_r2(lot, _fit(curve, t / t[-1], lot)[1]) for lot in (generator.permutation(y) for _ in range(n_controls))]
    names = CURVES[curve][1]
    return GrowthFit(
        curve, dict(zip(names, parameters.tolist(), strict=True)), tuple(t.tolist()), tuple(y.tolist()),
        tuple((y - fitted).tolist()), _r2(y, fitted), sum(chance) / len(chance) if chance else math.nan,
    )  # fmt: skip


def _fit(curve: str, t: Values, y: Values) -> tuple[Parameters, Values]:
    """Parameters and fitted values; the best of all starts."""
    from scipy.optimize import least_squares

    function, names, starts = CURVES[curve]
    low, span = float(y.min()), float(y.max() - y.min())
    scaled = (y - low) / span
    found = [least_squares(lambda p: function(p, t) - scaled, start, max_nfev=400) for start in starts]
    p = np.array(min(found, key=lambda one: float(one.cost)).x)
    p[0], p[-1] = p[0] * span, p[-1] * span + low
    if curve == "emergence":
        p[1:4] = np.abs(p[1:4])
    assert len(p) == len(names)
    return p, function(p, t)


def _r2(y: Values, fitted: Values) -> float:
    return 1 - float(((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
