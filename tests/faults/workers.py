"""Ray: workers killed at random moments, and drivers stopped, killed and taken up again: the bytes of the serial run.

A worker gets SIGKILL while the sweep runs, and the sweep ends as if nothing had been. A driver gets SIGKILL, SIGTERM or
SIGINT; none of its processes outlives it, and the same call, here or on a new Ray, goes on where it was. Each start of
Ray and of a worker costs seconds, so there are few cases. Where Ray is not installed nothing is tried, which is said.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.execute import executor
from tests.faults.core import Tally
from tests.faults.kills import SIGNALS, _digest

ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_worker_niceness": "0",
    "PYTHONPATH": str(ROOT),
}
PATIENCE = 400.0
"""Seconds that a driver may take to begin, and its processes to end."""


@cache
def subject() -> tuple[Any, Any]:
    model = mw.load_model("gpt2-6l")
    return model, mw.tasks.ioi(model, n=8, seed=1)


def sweep(folder: Path) -> str:
    """The digest of a sweep of many units, kept in `folder`."""
    model, task = subject()
    effects = mw.patch(model, task, ["z"], positions="all", checkpoint=folder, memory_budget="3MB")
    return _digest(effect.per_example for effect in effects.values())


def finished(folder: Path) -> int:
    """Units whose results are kept."""
    results = folder / "results"
    return sum(path.suffix == ".safetensors" for path in results.iterdir()) if results.is_dir() else 0


class Driver:
    """A process that makes the sweep on its own Ray; it kills its workers after so many units each."""

    def __init__(self, folder: Path, workers: int, deaths: list[int]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.workers", str(folder), str(workers), json.dumps(deaths)],
            cwd=ROOT, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait_for(self, n: int) -> bool:
        """Until so many units are kept; False where it ended or did not get there before that."""
        until = time.monotonic() + PATIENCE
        while finished(self.folder) < n:
            if self.process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def said(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=2 * PATIENCE)
        if self.process.returncode:
            return {"error": f"exit {self.process.returncode}: {err.strip()[-300:]}"}
        return json.loads(out.splitlines()[-1])


def driver(folder: Path, workers: int, deaths: list[int]) -> None:
    """What the process does."""
    import threading

    import psutil

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of what runs in the background ignores it
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        """After so many units each, a worker that has not been killed before."""
        for n in deaths:
            alive: list[int] = []
            while finished(folder) < n or not alive:
                if over.wait(0.005):
                    return
                names = {p.pid: p.name() for p in psutil.Process().children(recursive=True) if p.is_running()}
                alive = [pid for pid, name in names.items() if name.startswith("ray::_Inside") and pid not in killed]
            os.kill(alive[n % len(alive)], signal.SIGKILL)
            killed.append(alive[n % len(alive)])

    with executor("ray", workers=workers, attempts=len(deaths) + 1):
        thread = threading.Thread(target=kill)
        thread.start()
        try:
            digest = sweep(folder)
        finally:
            over.set()
            thread.join()
    print(json.dumps({"digest": digest, "killed": len(killed)}), flush=True)


def workers_die(tally: Tally, whole: str, n_units: int, n: int) -> None:
    """`n` deaths of workers in one sweep."""
    deaths = sorted(tally.draw.sample(range(1, n_units - 1), n))
    with tempfile.TemporaryDirectory() as place:
        said = Driver(Path(place) / "c", 2, deaths).said()
    killed = said.get("killed", 0)
    held = killed > 0 and said.get("digest") == whole
    for number in range(max(1, killed)):
        tally.check(held, f"a worker killed (death {number} of those after {deaths} units): {said}")


def driver_dies(tally: Tally, whole: str, n_units: int, sent: int, *, again: bool) -> None:
    """The driver dies after a random number of units and a moment; the call is repeated here, or on a new Ray."""
    import psutil

    draw = tally.draw
    n, moment = draw.randint(1, n_units - 2), draw.uniform(0, 0.05)
    what = f"a driver that got signal {sent} after {n} of {n_units} units and {moment:.3f} s"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "c"
        first = Driver(folder, 1, [])
        if not first.wait_for(n):
            tally.check(False, f"{what} did not get there: {first.said()}")
            return
        time.sleep(moment)
        children = psutil.Process(first.process.pid).children(recursive=True)
        first.process.send_signal(sent)
        first.process.communicate(timeout=PATIENCE)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
        for child in alive:
            child.kill()
        tally.check(not alive, f"{what}: {len(alive)} processes outlived it")
        kept = finished(folder)
        if again:
            said = Driver(folder, 1, []).said()
        else:
            with executor("local"):
                said = {"digest": sweep(folder)}
        tally.check(kept >= n and said.get("digest") == whole, f"{what}, {kept} kept, then: {said}")


def run(tally: Tally) -> None:
    """Drivers that get each signal, then workers."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("psutil") is None:
        print("    Ray is not installed (pip install 'mechwork[ray]'): nothing was tried", flush=True)
        return
    with tempfile.TemporaryDirectory() as place, executor("local"):
        whole, n_units = sweep(Path(place) / "c"), finished(Path(place) / "c")
    for _ in range(tally.times(1)):
        for sent in SIGNALS:
            driver_dies(tally, whole, n_units, sent, again=sent == signal.SIGKILL)
    workers_die(tally, whole, n_units, tally.times(6))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    driver(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
