"""The pool of actors, played through with a Ray that is not there (`fake_ray`): in milliseconds, and in every gate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mechwork.errors import InputError, MechworkError, UnitError
from mechwork.execute import Ledger, executor
from mechwork.execute import ray as engine
from mechwork.execute.drive import run_units
from mechwork.execute.ledger import EVENTS
from tests.execute import actors
from tests.execute.fake_ray import FakeRay
from tests.execute.work import numbers


@pytest.fixture
def using(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``using(fake)`` lets mechwork find that Ray, and actors that square numbers."""

    def use(fake: FakeRay) -> FakeRay:
        monkeypatch.setattr(engine, "_import_ray", lambda: fake)
        monkeypatch.setattr(engine, "_Inside", actors.Squares)
        monkeypatch.setattr(engine, "build_operation", engine.build_operation)
        return fake

    return use


def nowhere(unit: Any) -> Any:
    raise AssertionError("units run on the workers")


@pytest.mark.parametrize("seed", range(20))
def test_actors_that_die_at_any_moment(seed: int, tmp_path: Path, using: Any) -> None:
    fake = using(FakeRay(seed, deaths=0.1))
    work, units = actors.squares(40, tmp_path / "log")
    with executor("ray", workers=1 + seed % 3, attempts=40), Ledger(tmp_path / "l", work.identity()) as ledger:
        assert numbers(list(run_units(work, units, nowhere, ledger=ledger))) == [i**2 for i in range(40)]
    events = [line for line in (tmp_path / "l" / EVENTS).read_text().splitlines() if '"done"' in line]
    assert len(events) == 40, "every unit is finished once"
    assert len(fake.handles) > 1 + seed % 3, "some died"
    assert all(handle.dead for handle in fake.handles), "no actor is left"


def test_actors_that_die_while_they_load(tmp_path: Path, using: Any) -> None:
    using(FakeRay(0, stillborn=True))
    work, units = actors.squares(3, tmp_path / "log")
    with executor("ray", workers=2), pytest.raises(MechworkError, match="4 workers died before they had loaded"):
        list(run_units(work, units, nowhere))
    assert not (tmp_path / "log").exists()


def test_actors_that_never_come_hold_nothing_up(tmp_path: Path, using: Any) -> None:
    fake = using(FakeRay(0, absent=2))
    work, units = actors.squares(20, tmp_path / "log")
    with executor("ray", workers=3):
        assert numbers(list(run_units(work, units, nowhere))) == [i**2 for i in range(20)]
    assert len(fake.handles) == 3
    assert {pid for _, pid in (line.split() for line in (tmp_path / "log").read_text().splitlines())} == {
        str(os.getpid())
    }


def test_when_nobody_comes_one_message_says_so(tmp_path: Path, using: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    using(FakeRay(0, absent=9))
    monkeypatch.setattr(engine, "START", 0.0)
    work, units = actors.squares(3, tmp_path / "log")
    with executor("ray", workers=2), pytest.raises(MechworkError, match="no worker has loaded the model in 0 minutes"):
        list(run_units(work, units, nowhere))


def test_a_stop_is_heard_while_workers_load(tmp_path: Path, using: Any) -> None:
    fake = using(FakeRay(0, absent=9))
    work, units = actors.squares(3, tmp_path / "log")
    with executor("ray", workers=2, cancel=lambda: fake.waited >= 3), pytest.raises(MechworkError, match="as asked"):
        list(run_units(work, units, nowhere))


def test_a_poison_unit(tmp_path: Path, using: Any) -> None:
    using(FakeRay(1))
    log = tmp_path / "log"
    work, units = actors.squares(17, log, poison=5, how="raise")
    found: list[Any] = []
    with executor("ray", workers=2), pytest.raises(UnitError, match=f"1 units failed 3 times.*{units[5].key[:12]}"):
        found.extend(run_units(work, units, nowhere))
    assert numbers(found) == [i**2 for i in range(17) if i != 5]
    assert len(log.read_text().splitlines()) == 19, "innocent units run once"


def test_what_the_cluster_does_not_have(using: Any) -> None:
    using(FakeRay(0))
    for settings, says in (
        ({"workers": 5}, "5 workers need a CPU core each; the cluster has 4"),
        ({"workers": 2, "gpus_per_worker": 2}, "2 workers of 2 GPUs, each on one machine, need 4 GPUs; .* has 3"),
    ):
        given: Any = settings
        with pytest.raises(InputError, match=says), executor("ray", **given):
            pass
    with executor("ray", workers=3, gpus_per_worker=1):
        pass
