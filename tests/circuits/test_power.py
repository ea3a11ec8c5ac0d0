"""Power curves: literal samples, a known circuit that passes and its damaged form that fails, and nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from mechwork.circuits import Circuit, PowerCurves, study_power
from mechwork.circuits.ground_truth.cases import find_case
from mechwork.errors import InputError
from mechwork.statistics import binomial_interval


def test_the_true_circuit_passes_and_the_damaged_one_fails(tmp_path: Path) -> None:
    case = find_case("induction")
    found = study_power(case.model, case.task, case.truth(), sizes=(6, 12, 500), n_samples=6, n_random=39)
    assert found.sizes == (6, 12)
    assert found.faithfulness[0] == pytest.approx(1)
    assert found.faithfulness[1] < 0.5
    assert found.reached("given", "equivalence") == 6
    assert found.reached("damaged", "equivalence") == 6
    assert len(found.removed) == 1
    for row in found.rows:
        assert 0 <= row.passed + row.failed <= 1
        assert row.interval[0] <= row.interval[1]
    assert str(PowerCurves.load(found.save(tmp_path / "power"))) == str(found)
    assert "pairs" in found.to_html()


def test_intervals_of_shares_equal_those_of_scipy() -> None:
    for k, n in ((0, 10), (3, 10), (10, 10), (57, 200)):
        ends = stats.binomtest(k, n).proportion_ci(method="exact")
        assert binomial_interval(k, n) == pytest.approx((ends.low, ends.high), abs=1e-9)
    with pytest.raises(InputError, match="k of n"):
        binomial_interval(3, 2)


def test_nothing_to_say_is_said() -> None:
    case = find_case("induction")
    true = case.truth()
    few = study_power(case.model, case.task[:3], true)
    assert "3 different pairs" in str(few)
    assert not few.rows
    assert "nothing to damage" in study_power(case.model, case.task, Circuit(true.space, true.space.mask)).reason
    with pytest.raises(InputError, match="from 6"):
        study_power(case.model, case.task, true, sizes=(2,))
    with pytest.raises(InputError, match="fewer can be removed"):
        study_power(case.model, case.task, true, damage=3)
