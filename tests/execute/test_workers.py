"""The same bits from one process and from forked workers, in any order of arrival; workers and units that fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation.sweep import sweep_ablations
from mechwork.errors import InputError, MetricError, UnitError, UnknownNameError
from mechwork.execute import Ledger, executor
from mechwork.execute.drive import run_units
from mechwork.execute.executors import Execution
from mechwork.execute.forked import Forked
from mechwork.execute.ledger import EVENTS
from tests.execute.work import SQUARES, UNITS, WORK, Shuffled, die, fail, numbers, runs


def numbers_of(model: Any) -> dict[str, torch.Tensor]:
    """A sweep and an ablation sweep of several blocks and chunks."""
    task = mw.tasks.ioi(model, n=4, seed=0)
    exact = mw.patch(model, task, ["z", "mlp_out"], positions="all", memory_budget="20MB")
    ablated = sweep_ablations(model, task, ["heads"], kind="zero", memory_budget="20MB")
    edges = mw.score_edges(model, task, batch_size=2)
    return {
        **{kind: exact[kind].per_example for kind in exact},
        "ablated": ablated["z"].per_example,
        "edges": edges.values,
    }


def test_every_executor_gives_the_same_bits(bundled_model: Any, tmp_path: Path) -> None:
    serial = numbers_of(bundled_model)
    assert all(float(values.abs().max()) > 1e-3 for values in serial.values())
    for n_workers in (1, 2, 3):
        with executor("forked", workers=n_workers, ledger=tmp_path if n_workers == 3 else None):
            found = numbers_of(bundled_model)
        assert all(torch.equal(found[name], values) for name, values in serial.items())
    with executor("local", ledger=tmp_path), pytest.MonkeyPatch.context() as patch:  # begun there, taken up here
        patch.setattr("mechwork.patching.execute._step_through", None)
        found = numbers_of(bundled_model)
    assert all(torch.equal(found[name], values) for name, values in serial.items())


@pytest.mark.parametrize("order", range(3))
def test_results_come_in_order_however_they_arrive(order: int) -> None:
    found = list(run_units(WORK, iter(UNITS), runs(), execution=Execution(Shuffled(order))))
    assert numbers(found) == SQUARES
    assert [unit for unit, _ in found] == UNITS


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    log, pids = tmp_path / "log", tmp_path / "pids"

    def slow() -> None:
        if not pids.exists():
            pids.write_text(str(os.getpid()))
            time.sleep(60)

    with Ledger(tmp_path / "l", WORK.identity()) as ledger:
        results = run_units(WORK, UNITS, runs(log, 2, slow), ledger=ledger, execution=Execution(Forked(2)))
        found = [next(results)]
        while not (pids.exists() and pids.read_text()):
            time.sleep(0.01)
        os.kill(int(pids.read_text()), signal.SIGKILL)
        found += results
    assert numbers(found) == SQUARES
    ran = [int(number) for number in log.read_text().split()]
    assert sorted(ran) == sorted([*range(17), 2]), "only the unit that was cut off is run twice"
    assert '"failed"' in (tmp_path / "l" / EVENTS).read_text()


@pytest.mark.parametrize("how", [fail, die], ids=["raises", "kills its worker"])
def test_a_poison_unit_is_given_up_and_named_at_the_end(how: Any, tmp_path: Path) -> None:
    log, found = tmp_path / "log", []
    with Ledger(tmp_path / "l", WORK.identity()) as ledger:
        with pytest.raises(UnitError, match=rf"1 units failed 3 times each.*{UNITS[5].key[:12]}"):
            found.extend(run_units(WORK, UNITS, runs(log, 5, how), ledger=ledger, execution=Execution(Forked(2))))
        assert numbers(found) == [n for n in SQUARES if n != 25]
        ran = log.read_text().split()
        assert ran.count("5") == 3
        assert sorted(set(map(int, ran))) == list(range(17))
        assert len(ran) == 19, "innocent units run once"
        assert numbers(list(run_units(WORK, UNITS, runs(log), ledger=ledger))) == SQUARES
    assert len(log.read_text().split()) == 20, "resuming runs the given-up unit alone"


def test_errors_of_mechwork_are_raised_as_they_are() -> None:
    def undefined() -> None:
        raise MetricError("no gap")

    results = run_units(WORK, UNITS, runs(None, 5, undefined), execution=Execution(Forked(2)))
    assert numbers([next(results) for _ in range(5)]) == SQUARES[:5]
    with pytest.raises(MetricError, match="no gap"):
        next(results)


def test_no_worker_outlives_its_driver(tmp_path: Path) -> None:
    log = tmp_path / "log"
    driver = os.fork()
    if driver == 0:
        with log.open("w") as file:

            def run(unit: Any) -> Any:
                file.write(f"{os.getpid()}\n")
                file.flush()
                time.sleep(0.3)
                return {"square": torch.zeros(1)}

            list(run_units(WORK, UNITS, run, execution=Execution(Forked(2))))
    while len(set(log.read_text().split()) if log.exists() else ()) < 2:
        time.sleep(0.02)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    workers = [int(pid) for pid in set(log.read_text().split())]
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < until, f"{workers} are still there"
        time.sleep(0.1)


def test_an_interrupted_caller_leaves_no_worker() -> None:
    pools = []

    class Seen(Forked):
        def open(self, work: Any, here: Any) -> Any:
            pools.append(super().open(work, here))
            return pools[-1]

    results = run_units(WORK, UNITS, runs(), execution=Execution(Seen(2)))
    next(results)
    pids = pools[0].pids
    results.close()  # type: ignore[attr-defined]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_settings_that_do_not_fit_are_refused(bundled_model: Any, tiny_gpt2: Any, tiny_task: Any) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"kind": "local", "workers": 2}, "executor\\('forked', workers=2\\)"),
        ({"kind": "forked", "workers": 0}, "workers is a number of at least 1"),
        ({"kind": "forked", "attempts": 0}, "attempts is a number"),
        ({"kind": "forked", "address": "1.2.3.4:5"}, "belong to executor\\('ray'\\)"),
    )
    for settings, says in cases:
        with pytest.raises(InputError, match=says), executor(**settings):
            pass
    with pytest.raises(UnknownNameError, match="unknown executor"), executor("spark"):
        pass


def test_threads_are_as_before_after_an_executor() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), executor("forked"):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before
