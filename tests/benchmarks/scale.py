"""Do workers pay? Forked workers and Ray against one process, on the same calls, with the same bits; and what the
simulator said.

    python -m tests.benchmarks.scale                        # an idle machine of two cores; eight minutes
    python -m tests.benchmarks.scale --no-ray --calls patch ablations attribute edges curve leaderboard
    python -m tests.benchmarks.scale --model gpt2-12l --n-pairs 16 --workers 3

Wall time, for that is what workers save: run it where nothing else runs (the load average is printed). Every run keeps
a ledger, so that all pay for it; units and their seconds come from it. `predicted` is
`execute.simulate` on these. Starts are said apart: a fork's is within its run, Ray's and its actors' before it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.ablation.sweep import sweep_ablations
from mechwork.circuits.testing.leaderboard import run_leaderboard
from mechwork.execute.ledger import EVENTS
from mechwork.execute.simulate import simulate
from tests.execute.work import find_numbers


def main() -> None:
    """One row per call and executor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MECHWORK_REAL_MODEL", "gpt2-12l"))
    parser.add_argument("--n-pairs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--calls", nargs="+", metavar="CALL", default=["patch", "sweep", "edges", "leaderboard"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model(args.model)
    task = mw.tasks.ioi(model, n=args.n_pairs, seed=0)
    forward = _clock(lambda: model(task.pairs.clean_tokens))[0]
    where = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    n_pos = task.pairs.clean_tokens.shape[1]
    print(f"{Path(args.model).name}, {len(task)} pairs of {n_pos} tokens, F = {forward:.2f} s; {where}")
    head = f"{'call':<13}{'units':>6}{'unit / F':>9}{'here':>9}"
    print(
        f"{head}{f'{args.workers} workers':>12}{'faster':>8}{'predicted':>11}{'units slower':>14}"
        f"{'overhead / unit':>17}  bits",
        flush=True,
    )
    chosen = {name: call for name, call in calls(model, task).items() if name in args.calls}
    serial: dict[str, Timed] = {}
    for name, call in chosen.items():
        serial[name] = _timed(call, "local", 1)
        found = _timed(call, "forked", args.workers)
        _row(f"{name}, forked", serial[name], found, args.workers, forward)
    begun = time.perf_counter()
    with mw.executor("forked", workers=args.workers):
        mw.attribute(model, task[:1], ["z"], rules="gradient")
    print(f"forked: a call of one unit takes {time.perf_counter() - begun:.2f} s with its start")
    if args.ray:
        _with_ray(model, task, chosen, serial, args.workers, forward)


def calls(model: Any, task: mw.Task) -> dict[str, Callable[[], Any]]:
    """What is timed: sweeps, scores, a curve, and a small leaderboard."""
    scores = mw.score_edges(model, task, preset="relp")
    test = {"fractions": (0.002, 0.02, 0.1, 0.5), "n_random": 1, "across_tasks": True}
    found: dict[str, Callable[[], Any]] = {
        "patch": lambda: mw.patch(model, task, ["mlp_out"], positions="spans", memory_budget="1GB"),
        "sweep": lambda: mw.patch(
            model, task, ["resid_pre", "attn_out", "mlp_out"], positions="spans", memory_budget="1GB"
        ),
        "ablations": lambda: sweep_ablations(model, task, ["heads"], kind="zero", memory_budget="1GB"),
        "attribute": lambda: mw.attribute(model, task, ["z", "mlp_out"], ig_steps=5, memory_budget="200MB"),
        "edges": lambda: mw.score_edges(model, task, preset="eap-ig", batch_size=2),
        "curve": lambda: mw.evaluate(model, task, scores, **test),
    }
    if task.splits:
        found["leaderboard"] = lambda: run_leaderboard(model, task, presets=["eap", "relp"], n_random=1)
    return found


@dataclass
class Timed:
    """Wall seconds of a call, seconds of the units of each of its works, and what it gave."""

    wall: float
    units: list[list[float]]
    found: Any


def _timed(call: Callable[[], Any], kind: str, n_workers: int) -> Timed:
    with tempfile.TemporaryDirectory() as place, mw.executor(kind, workers=n_workers, ledger=place):
        wall, found = _clock(call)
        return Timed(wall, _seconds(Path(place).iterdir()), found)


def _row(name: str, here: Timed, there: Timed, n_workers: int, forward: float) -> None:
    """`units slower`: what a unit takes more beside the others (cores share their memory's bandwidth), recording it
    anew included. `overhead`: what is left of the wall time when the workers' own seconds are played through.
    """
    units, serial = sum(map(len, here.units)), sum(map(sum, here.units))
    rest = max(0.0, here.wall - serial)
    predicted = sum(simulate(one, n_workers, overhead=3e-4).seconds for one in here.units) + rest
    played = sum(simulate(one, n_workers, overhead=0.0).seconds for one in there.units) + rest
    per_unit = max(0.0, there.wall - played) / max(1, units)
    slower = sum(map(sum, there.units)) / serial - 1
    print(
        f"{name:<20}{units:>5}{serial / units / forward:>9.2f}{here.wall:>8.1f}s{there.wall:>8.1f}s"
        f"{here.wall / there.wall:>7.2f}x{here.wall / predicted:>10.2f}x{slower:>14.0%}"
        f"{per_unit / (serial / units):>17.1%}  {_same(here.found, there.found)}",
        flush=True,
    )


def _with_ray(
    model: Any, task: mw.Task, chosen: dict[str, Callable[[], Any]], serial: dict[str, Timed], n_workers: int,
    forward: float,
) -> None:  # fmt: skip
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, mw.executor("ray", workers=n_workers, ledger=place):
        opened = time.perf_counter() - begun
        starting = _clock(lambda: mw.attribute(model, task, ["z"], rules="gradient", memory_budget="200MB"))[0]
        print(f"Ray: {opened:.1f} s to start, {starting:.1f} s for a first call, actors and models included")
        for name, call in chosen.items():
            before = set(Path(place).iterdir())
            wall, found = _clock(call)
            units = _seconds(set(Path(place).iterdir()) - before)
            _row(f"{name}, Ray", serial[name], Timed(wall, units, found), n_workers, forward)


def _clock(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def _seconds(places: Iterable[Path]) -> list[list[float]]:
    """Seconds of every unit, work by work, in the order in which the works were begun."""
    ledgers = sorted((place / EVENTS for place in places), key=lambda path: path.stat().st_ctime)
    return [[json.loads(line)["seconds"] for line in path.read_text().splitlines()] for path in ledgers]


def _same(wanted: Any, found: Any) -> str:
    a, b = find_numbers(wanted), find_numbers(found)
    return "equal" if all(torch.equal(a[at].nan_to_num(7e7), b[at].nan_to_num(7e7)) for at in a) else "DIFFERENT"


if __name__ == "__main__":
    main()
