"""Actors for the tests of Ray: they load no model, and square numbers, slowly or badly as the work's settings say."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from mechwork.execute import ray as engine
from mechwork.execute.unit import ModelRef, Tensors, Unit, Work

MODEL = ModelRef("none", "float32", "cpu", "0" * 64)


def squares(n: int, log: Path, **settings: Any) -> tuple[Work, list[Unit]]:
    """Work of `n` units. `settings`: seconds a unit takes, poison (its number) and how (raise, die)."""
    work = Work("patch.block", MODEL, {"log": str(log), **settings}, {"some": {"numbers": torch.arange(1000.0)}})
    return work, [work.unit(slice(i, i + 1)) for i in range(n)]


class Squares(engine._Inside):
    """An actor without a model."""

    def __init__(self, version: str, reference: dict[str, Any], n_gpus: float) -> None:
        self._key, self._run, self._refusal, self._model = "", None, None, None
        there: Any = engine
        there.build_operation = lambda _model, work: lambda unit: square(work, unit)


def square(work: Work, unit: Unit) -> Tensors:
    """The unit's number squared; what it is about to do is logged with its process."""
    says, number = work.settings, unit.rows[0]
    with Path(says["log"]).open("a", encoding="utf-8") as log:
        log.write(f"{number} {os.getpid()}\n")
    time.sleep(says.get("seconds", 0.0))
    if number == says.get("poison"):
        if says["how"] == "die":
            time.sleep(0.5)  # what came before has been heard of, so that this unit is blamed and no other
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("no such thing")
    assert float(work.data["some"]["numbers"].sum()) == 499500
    return {"square": torch.tensor([number**2])}
