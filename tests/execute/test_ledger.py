"""A ledger survives its process at any moment, belongs to one work, and to one process at a time."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.errors import ArtefactError, Cancelled, InputError
from mechwork.execute.drive import run_units
from mechwork.execute.executors import Execution
from mechwork.execute.ledger import EVENTS, PLAN, RESULTS, Ledger
from mechwork.execute.local import Local
from mechwork.patching import patch
from mechwork.patching.exact import RESULT
from mechwork.tasks.task import Task
from tests.execute.work import SQUARES, UNITS, WORK, numbers, runs

IDENTITY = WORK.identity()
FEW = UNITS[:5]


def fork(what: Any) -> int:
    """Do `what` in a fork; returns the fork's status (0: done)."""
    child = os.fork()
    if child == 0:
        try:
            what()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def kill_at(renames: int, *, after: bool) -> None:
    """Let this process die at its rename number `renames` (from 0), before or after it."""
    plain, count = Path.replace, [0]

    def replace(self: Path, target: Any) -> Path:
        if count[0] == renames and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        moved = plain(self, target)
        if count[0] == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        return moved

    Path.replace = replace


def test_a_driver_killed_at_every_rename_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with Ledger(whole, IDENTITY) as ledger:
        assert numbers(list(run_units(WORK, FEW, runs(), ledger=ledger))) == SQUARES[:5]
    wanted = {file.name: file.read_bytes() for file in (whole / RESULTS).iterdir()}
    for at in range(len(FEW) + 1):
        for after in (False, True):
            folder, log = tmp_path / f"{at}-{after}", tmp_path / f"log-{at}-{after}"

            def drive(folder: Path = folder, log: Path = log, at: int = at, *, after: bool = after) -> None:
                kill_at(at, after=after)
                with Ledger(folder, IDENTITY) as ledger:
                    list(run_units(WORK, FEW, runs(log), ledger=ledger))

            assert fork(drive) == signal.SIGKILL
            done = {file.stem for file in (folder / RESULTS).glob("*.safetensors")}
            assert len(done) == max(0, at - 1 + after)
            before = log.read_text().split() if log.exists() else []
            with Ledger(folder, IDENTITY) as ledger:
                assert numbers(list(run_units(WORK, FEW, runs(log), ledger=ledger))) == SQUARES[:5]
            again = {FEW[int(number)].key for number in log.read_text().split()[len(before) :]}
            assert not again & done, "a finished unit was run again"
            assert {file.name: file.read_bytes() for file in (folder / RESULTS).glob("*.safetensors")} == wanted
            assert (folder / PLAN).read_bytes() == (whole / PLAN).read_bytes()


def test_a_killed_patch_resumes_byte_for_byte(tiny_gpt2: Any, tiny_task: Task, tmp_path: Path) -> None:
    def run(folder: Path) -> None:
        patch(tiny_gpt2, tiny_task, ["resid_pre"], positions="each", checkpoint=folder)

    run(tmp_path / "whole")
    n = len(list((tmp_path / "whole" / RESULTS).iterdir()))
    for at in (0, 1, n // 2, n):
        folder = tmp_path / str(at)

        def killed(folder: Path = folder, at: int = at) -> None:
            kill_at(at, after=at % 2 == 0)
            run(folder)

        assert fork(killed) == signal.SIGKILL
        run(folder)
        for name in (PLAN, RESULT):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        held = Ledger(folder, IDENTITY)
        os.write(go, b"x")
        time.sleep(60)
        held.close()
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(ArtefactError, match="another process is at work"):
            Ledger(folder, IDENTITY)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)
    with Ledger(folder, IDENTITY), pytest.raises(ArtefactError, match="another process is at work"):
        Ledger(folder, IDENTITY)
    with Ledger(folder, IDENTITY):
        pass


def test_foreign_and_damaged_ledgers_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with Ledger(folder, IDENTITY) as ledger:
        list(run_units(WORK, UNITS[:3], runs(), ledger=ledger))
    with pytest.raises(ArtefactError, match=r"its threads differ .*99 here"):
        Ledger(folder, {**IDENTITY, "threads": 99})
    with pytest.raises(ArtefactError, match="its work differ"):
        Ledger(folder, {**IDENTITY, "work": "another"})
    one, two = (folder / RESULTS / f"{unit.key}.safetensors" for unit in UNITS[:2])
    content = one.read_bytes()
    for damage, says in ((content[:30], "damaged"), (two.read_bytes(), "belongs to another work"), (b"", "damaged")):
        one.write_bytes(damage)
        with Ledger(folder, IDENTITY) as ledger, pytest.raises(ArtefactError, match=says):
            list(run_units(WORK, UNITS, runs(), ledger=ledger))
    one.unlink()
    with Ledger(folder, IDENTITY) as ledger:
        assert numbers(list(run_units(WORK, UNITS, runs(), ledger=ledger))) == SQUARES
    for damage in ("{", "[1]", "[" * 100_000):
        (folder / PLAN).write_text(damage)
        with pytest.raises(ArtefactError, match="damaged"):
            Ledger(folder, IDENTITY)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Ledger(tmp_path / "file", IDENTITY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ArtefactError, match=r"no checkpoint: it has no plan.json but thesis.txt"):
        Ledger(tmp_path / "mine", IDENTITY)


def test_left_over_parts_are_no_strangers(tmp_path: Path) -> None:
    (tmp_path / f"{PLAN}.part").write_text("{")
    (tmp_path / RESULTS).mkdir()
    with Ledger(tmp_path, IDENTITY) as ledger:
        assert numbers(list(run_units(WORK, UNITS, runs(), ledger=ledger))) == SQUARES
    events = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert [event["event"] for event in events] == ["done"] * len(UNITS)


def test_a_stop_between_units_keeps_what_is_done(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", []
    asked = Execution(Local(), cancel=lambda: len(seen) == 5)
    with Ledger(tmp_path / "l", IDENTITY) as ledger, pytest.raises(Cancelled, match="is kept in"):
        seen.extend(run_units(WORK, UNITS, runs(log), ledger=ledger, execution=asked))
    assert log.read_text().split() == list("01234")
    with Ledger(tmp_path / "l", IDENTITY) as ledger:
        assert numbers(list(run_units(WORK, UNITS, runs(log), ledger=ledger))) == SQUARES
    assert sorted(map(int, log.read_text().split())) == list(range(17))
    assert torch.equal(ledger.read(UNITS[3])["square"], torch.tensor([9]))
