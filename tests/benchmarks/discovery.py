"""Predicted against real cost of every stage: ``python -m tests.benchmarks.discovery [MODEL] [TASK] [PAIRS] [DEPTH]``.

DEPTH is a mode (default, quick, thorough) or a budget (5min).

F is the CPU time of one batched forward of the train pairs in this process, measured before and after. One line
per stage: the plan's
forwards, those it took, and the ratio. The last line is the sum, which the plan's time is judged by.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

import mechwork as mw
from mechwork.tasks.task import Task


class Clock:
    """An observer that keeps the CPU seconds of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, says: str, done: int, n: int, seconds_left: float) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.seconds[says] = time.process_time() - begun


def forward(model: Any, task: Task) -> float:
    """CPU seconds of one forward: the fastest of three."""
    spent = []
    for _ in range(3):
        begun = time.process_time()
        with torch.no_grad():
            model(task.pairs.clean_tokens)
        spent.append(time.process_time() - begun)
    return min(spent)


def main(name: str = "gpt2-6l", task_name: str = "ioi", n: int = 32, depth: str = "default") -> None:
    """Run once, print the table."""
    from mechwork.discovery.stages import STAGES

    how: Any = {"mode": depth} if depth in ("default", "quick", "thorough") else {"budget": depth}
    torch.set_num_threads(1)
    model = mw.load_model(name)
    build, clock = mw.tasks.TASKS[task_name], Clock()
    task = build(model, n=n, seed=0)
    before = forward(model, task.train)
    found = mw.discover(model, task, again=lambda seed: build(model, n=n, seed=seed), observer=clock, **how)
    unit = min(before, forward(model, task.train)) * found.plan.n_train / len(task.train)
    print(f"{name}, {task_name}, {found.plan.n_train} train pairs, F = {unit:.3f} s of CPU")
    print(f"{'stage':<13}{'planned F':>11}{'real F':>9}{'real / planned':>16}")
    planned = real = 0.0
    for row in found.plan.rows:
        took = clock.seconds[STAGES[row.stage].says] / unit
        planned, real = planned + row.forwards, real + took
        print(f"{row.stage:<13}{row.forwards:>11.1f}{took:>9.1f}{took / max(row.forwards, 0.1):>16.2f}")
    print(f"{'all':<13}{planned:>11.1f}{real:>9.1f}{real / planned:>16.2f}")


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    if len(arguments) > 2:
        arguments[2] = int(arguments[2])
    main(*arguments)
