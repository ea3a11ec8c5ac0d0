"""The simulator against a literal playing-through, against real workers, and against the arithmetic on paper."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch

from mechwork.discovery.scale import Machine, find_shape, parse_machine, plan_workers
from mechwork.errors import InputError, UnknownNameError
from mechwork.execute.drive import run_units
from mechwork.execute.executors import Execution
from mechwork.execute.forked import Forked
from mechwork.execute.simulate import paying_workers, simulate
from tests.execute.work import WORK


def test_by_hand() -> None:
    assert simulate([1.0] * 8, 2).seconds == 4
    assert simulate([1.0] * 7, 3).seconds == 3
    assert simulate([3.0, 1.0, 1.0, 1.0], 2).seconds == 4, "the third unit waits behind the first, as in the pools"
    late = simulate([1.0] * 8, 2, start=10, shared=0.5)
    assert late.seconds == 14.5
    assert late.speed_up == pytest.approx(8.5 / 14.5)
    assert simulate([0.01] * 1000, 64, overhead=0.001).seconds == pytest.approx(1.0, abs=0.03), "one driver hands out"
    assert simulate([], 4).speed_up == 1
    with pytest.raises(InputError, match="one worker or more"):
        simulate([1.0], 0)
    with pytest.raises(InputError, match="times of zero or more"):
        simulate([-1.0], 1)


@pytest.mark.parametrize("n_workers", [2, 3])
def test_real_workers_take_as_long(n_workers: int) -> None:
    """Units that sleep take as long on a busy machine as on an idle one, but for what handing out costs there."""
    dice = random.Random(n_workers)
    seconds = [0.0] * 16
    units = [WORK.unit(slice(i, i + 1)) for i in range(16)]

    def run(unit: Any) -> Any:
        time.sleep(seconds[unit.rows[0]])
        return {"x": torch.zeros(1)}

    def clock() -> float:
        begun = time.perf_counter()
        assert len(list(run_units(WORK, units, run, execution=Execution(Forked(n_workers))))) == 16
        return time.perf_counter() - begun

    overhead = clock()
    seconds = [dice.uniform(0.05, 0.4) for _ in range(16)]
    took, predicted = clock(), simulate(seconds, n_workers)
    assert predicted.seconds <= took < 1.2 * predicted.seconds + 3 * overhead
    assert sum(seconds) / n_workers <= predicted.seconds < sum(seconds)


def test_the_arithmetic_of_eight_and_seventy_billion() -> None:
    small, large = find_shape("llama-8b"), find_shape("llama-70b")
    assert small.parameters == pytest.approx(8.03e9, rel=2e-3)
    assert large.parameters == pytest.approx(70.55e9, rel=2e-3)
    assert find_shape("llama-1b").parameters == pytest.approx(1.236e9, rel=2e-3)
    rows = {row.work: row for row in plan_workers(small, n_workers=64, n_pos=256).rows}
    assert rows["exact effects"].one == pytest.approx(3550, rel=0.1)
    assert rows["exact effects"].paying == 12
    assert rows["edges, EAP-IG 5"].paying == 1
    assert all(row.gpus == 1 for row in rows.values())
    seventy = {row.work: row for row in plan_workers(large, n_workers=8, n_pos=256).rows}
    assert seventy["exact effects"].one == pytest.approx(87_000, rel=0.05)
    assert seventy["exact effects"].paying == 50
    assert min(row.gpus for row in seventy.values()) == 2
    assert "1: more do not pay" in repr(plan_workers(small, n_workers=8))


def test_more_workers_are_never_slower_on_paper_and_start_is_paid() -> None:
    shape = find_shape("llama-1b")
    times = [plan_workers(shape, n_workers=n, n_pos=256).rows[0].all for n in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert all(time > Machine().seconds_to_start(shape) for time in times)
    assert paying_workers([1.0] * 100, 2.0, 64) == 10
    assert paying_workers([1.0] * 3, 0.0, 64) == 3


def test_what_is_no_plan() -> None:
    with pytest.raises(UnknownNameError, match="unknown model shape 'llama-9b'"):
        find_shape("llama-9b")
    with pytest.raises(InputError, match="counts from 1"):
        plan_workers(find_shape("llama-8b"), n_workers=0)
    with pytest.raises(InputError, match="gpu-memory is a positive number of bytes"):
        parse_machine("much", 4e14, None)
    with pytest.raises(InputError, match="above 0"):
        parse_machine("80GB", 0.0, None)
