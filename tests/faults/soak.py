"""The same work again and again in one process: resident memory, open files, threads and hooks stay flat.

``python -m tests.faults --part soak --minutes 30``. After the first quarter of the rounds a line is fitted to the means
of memory over `BLOCKS` runs of rounds: growth from there to the end is the line's rise, with a 95 % interval (Student's
t), and holds when even the interval's upper end is below `MOST_GROWTH`. Open files, threads and hooks (entries of every
hook point and module of every model, and torch's global ones) are counted after each round; at the end there may be no
more of them than after the first quarter.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats

import mechwork as mw
from mechwork.discovery.settings import Settings
from mechwork.tasks.task import Task
from tests.families import build_task
from tests.faults.core import Tally, model_of, thread_state
from tests.faults.kills import LENS, ROWS

MOST_GROWTH = 0.03
"""Of resident memory, from the first quarter of the rounds to the last one."""
BLOCKS = 12
FAMILIES = ("gpt2", "llama", "gemma2")


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def hooks(models: list[Any]) -> int:
    """Entries of all hook points and modules, and torch's global hooks."""
    state = thread_state()
    found = int(state["global hooks"]) + int(state["function modes"]) + int(state["dispatch modes"])
    for model in models:
        found += sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())
        for module in model.modules():
            tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            found += sum(len(table) for table in tables)
    return found


def growth_of(memory: list[int]) -> tuple[float, float, float]:
    """The rise of a line through the means of blocks, as a share of the first block's mean, and its 95 % interval."""
    size = max(1, len(memory) // BLOCKS)
    means = [fmean(memory[i : i + size]) for i in range(0, len(memory) - size + 1, size)]
    line: Any = stats.linregress(range(len(means)), means)
    rise, half = (x * (len(means) - 1) for x in (line.slope, line.stderr * stats.t.ppf(0.975, len(means) - 2)))
    return rise / means[0], (rise - half) / means[0], (rise + half) / means[0]


def turn(number: int, bundled: Any) -> None:
    """One round: another task each time, sweeps, scores, a lens, a report, now and then a discovery."""
    model = model_of(FAMILIES[number % len(FAMILIES)])
    task: Task = build_task(n=3, seed=number)
    mw.patch(model, task, ["z", "resid_pre"])
    scores = mw.score_edges(model, task)
    mw.evaluate(model, task, scores, fractions=(0.1, 0.5), n_random=1)
    mw.train_lens(model, ROWS, LENS)
    with tempfile.TemporaryDirectory() as place:
        mw.patch(model, task, ["mlp_out"], checkpoint=Path(place) / "c")
        mw.report(Path(place) / "r.html", task, scores)
        if number % 8 == 0:
            mw.discover(
                bundled, mw.tasks.induction(bundled, n=8, seed=number), out=Path(place) / "d",
                settings=Settings(min_accuracy=0.01), mode="quick",
            )  # fmt: skip


def run(tally: Tally, minutes: float = 3.0) -> None:
    """Rounds for that long."""
    bundled = mw.load_model("attn-only-2l")
    models = [bundled, *map(model_of, FAMILIES)]
    rows: list[tuple[int, int, int, int]] = []
    begun = told = time.monotonic()
    number = 0
    while time.monotonic() < begun + 60 * minutes or number < 16:
        turn(number, bundled)
        gc.collect()
        rows.append((resident(), files(), threading.active_count(), hooks(models)))
        number += 1
        if time.monotonic() > told + 60:
            told = time.monotonic()
            print(f"    after {(told - begun) / 60:.0f} minutes, {number} rounds: {line_of(rows[-1])}", flush=True)
    early, late = rows[number // 4], rows[-1]
    growth, low, high = growth_of([row[0] for row in rows[number // 4 :]])
    print(f"    {number} rounds; after a quarter {line_of(early)}; at the end {line_of(late)}")
    print(f"    memory grows by {growth:+.2%} [{low:+.2%}, {high:+.2%}] from a quarter of the rounds to the end")
    tally.tried += number - 1
    tally.check(high < MOST_GROWTH, f"memory grows by {growth:.2%} [{low:.2%}, {high:.2%}]")
    tally.check(late[1] <= early[1] + 1, "open files grow")
    tally.check(late[2] <= early[2], "threads grow")
    tally.check(late[3] <= early[3], "hooks are left")
    tally.check(torch.is_grad_enabled(), "gradients are off")


def line_of(row: tuple[int, int, int, int]) -> str:
    return f"{row[0] / 1e6:.1f} MB, {row[1]} open files, {row[2]} threads, {row[3]} hooks"
