"""The same work again and again in one process: resident memory, open files, threads and hooks stay flat.

``python -m tests.faults --part soak --minutes 30``. Memory is compared between the second and the last quarter.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.discovery.settings import Settings
from mechwork.tasks.task import Task
from tests.families import build_task
from tests.faults.core import Tally, model_of
from tests.faults.kills import LENS, ROWS

MOST_GROWTH = 0.03
"""Of resident memory, between the means of the second and the last quarter."""


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def turn(number: int, bundled: Any) -> None:
    """One round: another task each time, sweeps, scores, a lens, a report, now and then a discovery."""
    model = model_of(("gpt2", "llama", "gemma2")[number % 3])
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
    rows: list[tuple[int, int, int]] = []
    ends = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < ends or number < 12:
        turn(number, bundled)
        gc.collect()
        rows.append((resident(), files(), threading.active_count()))
        number += 1
    quarter = len(rows) // 4
    early, late = rows[quarter : 2 * quarter], rows[-quarter:]
    memory = [sum(row[0] for row in part) / len(part) for part in (early, late)]
    growth = memory[1] / memory[0] - 1
    print(
        f"    {number} rounds: {memory[0] / 1e6:.0f} MB, then {memory[1] / 1e6:.0f} MB ({growth:+.1%}); "
        f"{early[0][1]} to {late[-1][1]} open files; {early[0][2]} to {late[-1][2]} threads"
    )
    tally.tried += number - 1
    tally.check(growth < MOST_GROWTH, f"memory grows by {growth:.1%}")
    tally.check(late[-1][1] <= early[0][1] + 1, "open files grow")
    tally.check(late[-1][2] <= early[0][2], "threads grow")
    tally.check(torch.is_grad_enabled(), "gradients are off")
