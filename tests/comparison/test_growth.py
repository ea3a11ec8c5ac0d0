"""Curves along training: a planted curve is found again, and a walk by lot is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from mechwork.comparison import GrowthFit, fit_growth
from mechwork.errors import InputError, MetricError, UnknownNameError

STEPS = [0, 100, 200, 300, 400, 500, 700, 900, 1200, 1500, 2000, 2500]


def test_a_planted_emergence_is_found_again(tmp_path: Any) -> None:
    t = np.array(STEPS) / 2500
    x = 12 * t + 1.5
    values = (300 * np.exp(-0.1 * x) * np.log(x) + 20).tolist()
    found = fit_growth(STEPS, values)
    assert found.r2 > 0.9999
    assert found.control < 0.9
    assert found.at(STEPS) == pytest.approx(values, rel=0.02)
    assert max(map(abs, found.residuals)) < 1
    again = GrowthFit.load(found.save(tmp_path / "growth"))
    assert again.parameters == found.parameters
    assert "in an order by lot" in str(found)


def test_a_power_law_is_scipys_own() -> None:
    generator = np.random.default_rng(0)
    t = np.array(STEPS) / 2500
    values = 3 * (t + 1) ** -1.7 + 0.4 + 0.01 * generator.standard_normal(len(t))
    found = fit_growth(STEPS, values.tolist(), "power")
    best, _ = curve_fit(lambda t, a, b, k: a * (t + 1) ** b + k, t, values, p0=[3, -1.7, 0.4], maxfev=20000)
    sums = [
        float(((np.array(v) - values) ** 2).sum()) for v in (found.at(STEPS), best[0] * (t + 1) ** best[1] + best[2])
    ]
    assert sums[0] <= sums[1] * 1.001
    assert found.r2 > 0.95 > found.control


def test_noise_alone_fits_no_better_than_by_lot() -> None:
    values = np.random.default_rng(3).standard_normal(len(STEPS)).tolist()
    found = fit_growth(STEPS, values, n_controls=8)
    assert found.r2 < found.control + 0.4


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="curve"):
        fit_growth(STEPS, STEPS, "line")
    with pytest.raises(InputError, match="at least 6"):
        fit_growth(STEPS[:5], STEPS[:5])
    with pytest.raises(InputError, match="finite"):
        fit_growth(STEPS, [float("nan"), *STEPS[1:]])
    with pytest.raises(InputError, match="steps rise"):
        fit_growth(STEPS[::-1], STEPS)
    with pytest.raises(MetricError, match="all the same"):
        fit_growth(STEPS, [1.0] * len(STEPS))
