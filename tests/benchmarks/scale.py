"""Do workers pay? Two workers against one process, on the same calls, with the same bits; and what the simulator said.

    python -m tests.benchmarks.scale --model PATH.gguf      # an idle machine; about ten minutes on two cores
    python -m tests.benchmarks.scale --ray                  # Ray too, its start apart
    python -m tests.benchmarks.scale --model gpt2-12l --n-pairs 16 --workers 3

Wall time, for that is what workers save: run it where nothing else runs (the load average is printed). Units, their
seconds and the driver's overhead come from the ledger of the serial run; `predicted` is `execute.simulate` on these.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
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
    """One row per call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MECHWORK_REAL_MODEL", "gpt2-12l"))
    parser.add_argument("--n-pairs", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="CALL")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model(args.model)
    task = mw.tasks.ioi(model, n=args.n_pairs, seed=0)
    forward = _clock(lambda: model(task.pairs.clean_tokens))[0]
    where = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    n_pos = task.pairs.clean_tokens.shape[1]
    print(f"{Path(args.model).name}, {len(task)} pairs of {n_pos} tokens, F = {forward:.2f} s; {where}")
    head = f"{'call':<14}{'units':>6}{'unit / F':>9}{'here':>9}"
    print(f"{head}{f'{args.workers} forked':>10}{'faster':>8}{'predicted':>11}{'overhead / unit':>17}  bits")
    chosen = {name: call for name, call in calls(model, task).items() if not args.only or name in args.only}
    for name, call in chosen.items():
        _row(name, call, args.workers, forward)
    if args.ray:
        _with_ray(chosen, args.workers)


def calls(model: Any, task: mw.Task) -> dict[str, Callable[[], Any]]:
    """What is timed: sweeps, scores, a curve, and a small leaderboard."""
    scores = mw.score_edges(model, task, preset="relp")
    test = {"fractions": (0.002, 0.02, 0.1, 0.5), "n_random": 1, "across_tasks": True}
    found: dict[str, Callable[[], Any]] = {
        "patch": lambda: mw.patch(model, task, ["resid_pre", "mlp_out"], memory_budget="1GB"),
        "ablations": lambda: sweep_ablations(model, task, ["heads"], kind="zero", memory_budget="1GB"),
        "attribute": lambda: mw.attribute(model, task, ["z", "mlp_out"], ig_steps=5, memory_budget="200MB"),
        "edges": lambda: mw.score_edges(model, task, preset="eap-ig", batch_size=2),
        "curve": lambda: mw.evaluate(model, task, scores, **test),
    }
    if task.splits:
        found["leaderboard"] = lambda: run_leaderboard(model, task, presets=["eap", "relp", "eap-ig"], n_random=1)
    return found


def _row(name: str, call: Callable[[], Any], n_workers: int, forward: float) -> None:
    with tempfile.TemporaryDirectory() as place, mw.executor("local", ledger=place):
        call()
        seconds = _seconds(Path(place))
    here, wanted = _clock(call)
    with mw.executor("forked", workers=n_workers):
        there, found = _clock(call)
    units = sum(map(len, seconds))
    serial = sum(map(sum, seconds))
    per_unit = max(0.0, there * n_workers - here) / max(1, units)
    predicted = sum(simulate(one, n_workers, overhead=3e-4).seconds for one in seconds) + max(0.0, here - serial)
    print(
        f"{name:<14}{units:>6}{serial / units / forward:>9.2f}{here:>8.1f}s{there:>9.1f}s{here / there:>7.2f}x"
        f"{here / predicted:>10.2f}x{per_unit / (serial / units):>16.1%}  {_same(wanted, found)}",
        flush=True,
    )


def _with_ray(chosen: dict[str, Callable[[], Any]], n_workers: int) -> None:
    begun = time.perf_counter()
    with mw.executor("ray", workers=n_workers):
        opened = time.perf_counter() - begun
        first = next(iter(chosen.values()))
        starting = _clock(first)[0]
        print(f"Ray: {opened:.1f} s to start, {starting:.1f} s for the first call, actors and models included")
        for name, call in chosen.items():
            print(f"{name:<14}{_clock(call)[0]:>8.1f}s on {n_workers} actors", flush=True)


def _clock(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def _seconds(place: Path) -> list[list[float]]:
    """Seconds of every unit, work by work, in the order in which the works were begun."""
    ledgers = sorted(place.glob(f"*/{EVENTS}"), key=lambda path: path.stat().st_ctime)
    return [[json.loads(line)["seconds"] for line in path.read_text().splitlines()] for path in ledgers]


def _same(wanted: Any, found: Any) -> str:
    a, b = find_numbers(wanted), find_numbers(found)
    return "equal" if all(torch.equal(a[at].nan_to_num(7e7), b[at].nan_to_num(7e7)) for at in a) else "DIFFERENT"


if __name__ == "__main__":
    main()
