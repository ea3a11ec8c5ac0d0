"""Who runs units: the interface of executors and their pools, and the executor that is in force.

    with mw.executor("forked", workers=4):
        effects = mw.patch(model, task, ["resid_pre"])        # the same numbers, bit for bit

| kind | workers | for |
|---|---|---|
| ``local`` | this process | the default |
| ``forked`` | processes that share the weights (Unix, CPU) | the cores of one machine |
| ``ray`` | Ray actors that load the model themselves (``pip install 'mechwork[ray]'``) | several GPUs or machines |

Units are the same for all: they come from the task, the settings and the budget. Results are joined in unit order. Bits
hold for one kind of device and one number of threads, so ``forked`` and ``ray`` run on one thread per worker, and here
too while they are in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from ..errors import InputError, UnknownNameError
from .unit import Run, Tensors, Unit, Work

KINDS = ("local", "forked", "ray")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a unit: its values, or an error. `blamed`: whether the error counts as an attempt of this unit."""

    unit: Unit
    values: Tensors | None
    error: Exception | None
    worker: str
    seconds: float = 0.0
    blamed: bool = True


@runtime_checkable
class Pool(Protocol):
    """Workers for one work. `window`: how many units may be on their way at a time."""

    window: int

    def offer(self, unit: Unit) -> bool:
        """Take the unit; False: no worker has room for it now."""
        ...

    def wait(self) -> list[Outcome]:
        """What has come back; nothing, after a while, when nothing has."""
        ...

    def close(self) -> None:
        """Stop the workers, whatever they do."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Makes pools."""

    kind: str
    n_workers: int

    def open(self, work: Work, here: Run) -> Pool:
        """Workers for `work`; `here` runs its units in this process. Raises `InputError` for work that they
        cannot do.
        """
        ...

    def close(self) -> None:
        """Let go of what pools share."""
        ...


@dataclass(frozen=True, eq=False)
class Execution:
    """An executor with how failures, keeping and stopping are dealt with."""

    executor: Executor
    attempts: int = 3
    ledger: Path | None = None
    cancel: Callable[[], bool] | None = None


_current: ContextVar[Execution | None] = ContextVar("mechwork_execution", default=None)


def current_execution() -> Execution:
    """The execution in force: that of the innermost `executor`, or this process."""
    from .local import Local

    return _current.get() or Execution(Local())


@contextmanager
def executor(
    kind: str = "local",
    *,
    workers: int = 1,
    gpus_per_worker: float = 0,
    address: str | None = None,
    attempts: int = 3,
    ledger: str | Path | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Iterator[Executor]:
    """Inside, `patch`, ablation sweeps, `score_edges` and `evaluate` run their units on these workers.

    `address`: of a running Ray cluster (``"auto"`` finds one; None starts one here). `gpus_per_worker`: of each Ray
    actor. A unit that fails `attempts` times is given up; the others finish, and `UnitError` names it at the end.
    `ledger`: a folder in which every call keeps its finished units, so that the same call goes on where it was.
    `cancel`: asked between units; when it says True, `Cancelled` is raised.

    Raises `InputError` before any work for settings that do not fit together, or Ray missing.

    >>> with executor("forked", workers=2):
    ...     effects = patch(model, task, ["resid_pre"])
    """
    if kind not in KINDS:
        raise UnknownNameError("executor", kind, KINDS)
    for name, value, least in (
        ("workers", workers, 1),
        ("attempts", attempts, 1),
        ("gpus_per_worker", gpus_per_worker, 0),
    ):
        if isinstance(value, bool) or not value >= least:
            raise InputError(f"{name} is a number of at least {least}; got {value!r}")
    if kind != "ray" and (address is not None or gpus_per_worker):
        raise InputError(f"address and gpus_per_worker belong to executor('ray'); got them with {kind!r}")
    if kind == "local" and workers != 1:
        raise InputError(f"the local executor is this process alone; use executor('forked', workers={workers})")
    made = _make(kind, workers, gpus_per_worker, address)
    threads = torch.get_num_threads()
    token = _current.set(Execution(made, attempts, None if ledger is None else Path(ledger), cancel))
    try:
        if kind != "local":
            torch.set_num_threads(1)
        yield made
    finally:
        _current.reset(token)
        made.close()
        torch.set_num_threads(threads)


def _make(kind: str, workers: int, gpus_per_worker: float, address: str | None) -> Executor:
    if kind == "forked":
        from .forked import Forked

        return Forked(workers)
    if kind == "ray":
        from .ray import RayExecutor

        return RayExecutor(workers, gpus_per_worker, address)
    from .local import Local

    return Local()
