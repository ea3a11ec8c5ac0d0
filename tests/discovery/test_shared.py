"""A plan on workers: what is shared is divided, starts are paid for, and workers that do not pay are said to."""

from __future__ import annotations

import pytest

from mechwork.discovery.plan import Plan, Step
from mechwork.discovery.shared import FORK, share_plan
from mechwork.discovery.stages import STAGES


def plan(seconds: float) -> Plan:
    """A stage that runs here, and two that are shared."""
    rows = [Step(name, 1.0, seconds, 10**9) for name in ("check", "scores", "curve")]
    return Plan(tuple(rows), 8, 8, 1.0)


def test_forked_workers_divide_what_is_shared_and_start_with_every_stage() -> None:
    found = share_plan(plan(30.0), "forked", 2, n_bytes=10**9, cores=2)
    assert [row.shared for row in found.rows] == pytest.approx([30.0, 15.0 + FORK, 15.0 + FORK])
    assert [row.bytes for row in found.rows] == [10**9, 2 * 10**9, 2 * 10**9]
    assert found.seconds == pytest.approx(60.0 + 2 * FORK)
    assert found.paying == 2
    assert "They pay." in repr(found)


def test_workers_beyond_the_cores_add_nothing() -> None:
    two, eight = (share_plan(plan(30.0), "forked", n, n_bytes=10**9, cores=2) for n in (2, 8))
    assert eight.seconds == two.seconds
    assert "At most 2 pay: give --workers 2." in repr(eight)


def test_ray_that_starts_longer_than_it_works_does_not_pay() -> None:
    found = share_plan(plan(3.0), "ray", 8, n_bytes=10**9, gpus_per_worker=2)
    assert found.gpus == 16
    assert found.seconds > found.start > 20
    assert "They do not pay: one process is as fast. Leave --workers out." in repr(found)


def test_long_work_pays_many_actors() -> None:
    found = share_plan(plan(1e5), "ray", 8, n_bytes=10**9)
    assert found.paying > 8
    assert found.here / found.seconds == pytest.approx(3e5 / (1e5 + 2e5 / 8), rel=1e-2)


def test_stages_say_where_they_run() -> None:
    assert {stage.name for stage in STAGES.values() if stage.here} == {
        "check", "components", "stream", "completeness", "rivals",
    }  # fmt: skip
