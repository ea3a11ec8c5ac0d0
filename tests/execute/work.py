"""Small work for the tests of executors: units that need no model, and an executor whose results arrive in random
order.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mechwork.execute.executors import Outcome
from mechwork.execute.unit import ModelRef, Run, Tensors, Unit, Work

WORK = Work("patch.block", ModelRef(None, "float32", "cpu", "0" * 64), {"a": 1})
UNITS = [WORK.unit(slice(i, i + 1), ["cell", i]) for i in range(17)]


def runs(log: Path | None = None, poison: int = -1, how: Callable[[], Any] | None = None) -> Run:
    """What runs `UNITS`: the unit's number squared. `log` gets the number of every unit that is run; `how` is done at
    unit `poison`.
    """

    def run(unit: Unit) -> Tensors:
        number = unit.rows[0]
        if log is not None:
            with log.open("a") as file:
                file.write(f"{number}\n")
        if number == poison and how is not None:
            how()
        return {"square": torch.tensor([number**2])}

    return run


def fail() -> None:
    raise RuntimeError("no such thing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def numbers(results: list[tuple[Unit, Tensors]]) -> list[int]:
    """The results as numbers."""
    return [int(values["square"]) for _, values in results]


SQUARES = [i**2 for i in range(17)]


class Shuffled:
    """Units run here, a dozen at a time, and come back in random order."""

    kind, n_workers = "local", 3

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def open(self, work: Work, here: Run) -> ShuffledPool:
        return ShuffledPool(here, self.random)

    def close(self) -> None: ...


class ShuffledPool:
    window = 12

    def __init__(self, here: Run, order: random.Random) -> None:
        self.here, self.random, self.units = here, order, list[Unit]()

    def offer(self, unit: Unit) -> bool:
        self.units.append(unit)
        return True

    def wait(self) -> list[Outcome]:
        unit = self.units.pop(self.random.randrange(len(self.units)))
        return [Outcome(unit, self.here(unit), None, "here")]

    def close(self) -> None: ...
