"""A discovery's plan on several workers: what each stage would take, the memory and GPUs of all, and whether it pays.

    shared(stage) = seconds / workers + start        for stages whose work is units; others run in this process

Forked workers start anew with every stage, Ray's once. Units are taken to divide evenly, which flatters short stages.
Forked workers beyond the machine's cores add nothing. Workers pay while their start is at most a fifth of their work.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..execute.simulate import paying_workers
from ..result import Result, Table
from .plan import Plan, duration
from .scale import PER_BYTE, START
from .stages import STAGES

FORK = 0.1
"""Seconds until forked workers are there."""


@dataclass(frozen=True)
class SharedStep:
    """A stage: seconds here and on workers, bytes beside the weights of all workers that are at it."""

    stage: str
    here: float
    shared: float
    bytes: int


@dataclass(frozen=True, eq=False)
class SharedPlan(Result, what="discovery plan on workers"):
    """`paying`: how many workers pay, at most; `start`: seconds until the first unit is begun."""

    rows: tuple[SharedStep, ...]
    kind: str
    n_workers: int
    gpus: float
    start: float
    paying: int

    @property
    def here(self) -> float:
        """Seconds in one process."""
        return sum(row.here for row in self.rows)

    @property
    def seconds(self) -> float:
        """Seconds on the workers, their start included."""
        return sum(row.shared for row in self.rows) + (self.start if self.kind == "ray" else 0.0)

    def _table(self) -> Table:
        """One row per stage."""
        return [{**vars(row)} for row in self.rows]

    def __repr__(self) -> str:
        lines = [
            f"{'stage':<13}{'here':>10}{f'{self.n_workers} workers':>12}{'memory':>9}",
            *(
                f"{row.stage:<13}{duration(row.here):>10}{duration(row.shared):>12}{row.bytes / 1e9:>6.1f} GB"
                for row in self.rows
            ),
            f"{'all':<13}{duration(self.here):>10}{duration(self.seconds):>12}{self.here / self.seconds:>8.1f}x",
            (
                f"{self.n_workers} {self.kind} workers, {self.gpus:g} GPUs in all; start {duration(self.start)}. "
                f"{self._verdict()}"
            ),
        ]
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.here <= self.seconds or self.paying < 2:
            return "They do not pay: one process is as fast. Leave --workers out."
        if self.n_workers > self.paying:
            return f"At most {self.paying} pay: give --workers {self.paying}."
        return "They pay."


def share_plan(
    plan: Plan, kind: str, n_workers: int, *, n_bytes: int, gpus_per_worker: float = 0, cores: int = 1
) -> SharedPlan:
    """What the plan's stages would take on workers of this kind; `n_bytes`: of the model's weights, `cores`: of this
    machine, by which forked workers are limited. Cost: none.
    """
    start = START + PER_BYTE * n_bytes if kind == "ray" else FORK
    useful = n_workers if kind == "ray" else min(n_workers, cores)
    once = 0.0 if kind == "ray" else start
    rows = []
    for row in plan.rows:
        own = STAGES[row.stage].here
        shared = row.seconds if own else row.seconds / useful + once
        rows.append(SharedStep(row.stage, row.seconds, shared, row.bytes * (1 if own else n_workers)))
    work = [row.seconds for row in plan.rows if not STAGES[row.stage].here]
    most = max(1, int(sum(work) / (5 * start)))
    paying = paying_workers([sum(work) / most] * most, start, most if kind == "ray" else min(most, cores))
    return SharedPlan(tuple(rows), kind, n_workers, n_workers * gpus_per_worker, start, paying)
