"""Small work for the tests of executors: units that need no model, and an executor whose results arrive in random
order.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mechwork.execute.executors import Outcome
from mechwork.execute.operations import build_operation
from mechwork.execute.unit import ModelRef, Run, Tensors, Unit, Work
from mechwork.execute.wire import pack, unpack

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


class Elsewhere:
    """Units run here, in random order, by what another process would have: the work's data and the model alone."""

    kind, n_workers = "elsewhere", 3

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.random, self.seen = model, random.Random(seed), list[str]()

    def open(self, work: Work, here: Run) -> ShuffledPool:
        assert work.here_only is None
        self.seen.append(work.operation)
        settings = json.loads(json.dumps(work.settings))
        data = {name: unpack(pack(tensors)) for name, tensors in work.data.items()}
        return ShuffledPool(build_operation(self.model, replace(work, settings=settings, data=data)), self.random)

    def close(self) -> None: ...


def find_numbers(result: Any) -> dict[str, torch.Tensor]:
    """Every tensor and number of a result, by where it is; what differs from run to run (time, seconds) left out."""
    found: dict[str, torch.Tensor] = {}

    def walk(value: Any, at: str) -> None:
        if isinstance(value, torch.Tensor):
            found[at] = value
        elif isinstance(value, float):
            found[at] = torch.tensor(value, dtype=torch.float64)
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                walk(inner, f"{at}.{name}")
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                walk(inner, f"{at}[{i}]")
        elif is_dataclass(value):
            for one in fields(value):
                if one.name not in ("provenance", "seconds", "space"):
                    walk(getattr(value, one.name), f"{at}.{one.name}")

    walk(result, "")
    return found
