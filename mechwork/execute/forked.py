"""Workers on the cores of this machine: forked processes that share this one's weights and whatever the work has
recorded.

A fork costs a few hundredths of a second and no memory for the weights. It needs Unix and a model on the CPU (a CUDA
context does not survive a fork), and one torch thread: OpenMP's threads do not survive it either. Workers ignore Ctrl-C
(the driver kills them) and end by themselves within a second or the unit they are at when the driver is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..errors import InputError, MechworkError
from .executors import Outcome
from .unit import Run, Unit, Work
from .wire import pack, pack_error, unpack, unpack_error

QUEUE = 2
"""Units that a worker holds: the one it is at, and the next."""
LOOKAHEAD = 8
"""Units per worker that may be on their way or wait for an earlier one's result."""
PATIENCE = 1.0
"""Seconds after which a pool that hears nothing lets the driver ask whether to stop."""
MAX_IDLE_DEATHS = 3
"""Workers that may die without having had a unit; one more stops the run."""


class Forked:
    """`n_workers` forked processes per work."""

    kind = "forked"

    def __init__(self, n_workers: int) -> None:
        if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "win32":
            raise InputError(
                "forked workers need a system that can fork (Linux, macOS). Use executor('local') or 'ray' here."
            )
        self.n_workers = n_workers

    def open(self, work: Work, here: Run) -> ForkedPool:
        if work.model.device != "cpu" or torch.cuda.is_initialized():
            raise InputError(
                "forked workers share a model on the CPU, in a process that has not used a GPU; "
                f"this one is on {work.model.device}. Use executor('ray', gpus_per_worker=1), or load the model on "
                "the CPU."
            )
        if torch.get_num_threads() != 1:
            raise InputError(
                f"forked workers run on one torch thread, and so must this process; it has {torch.get_num_threads()}. "
                "Call torch.set_num_threads(1), or open the executor with mw.executor('forked'), which does."
            )
        return ForkedPool(here, self.n_workers)

    def close(self) -> None:
        """Pools stop their own workers."""


@dataclass(eq=False)
class _Worker:
    name: str
    process: Any
    pipe: Connection
    queue: deque[Unit] = field(default_factory=deque)


class ForkedPool:
    """Forks its workers with the first unit, so that they share what was recorded until then."""

    def __init__(self, here: Run, n_workers: int) -> None:
        self._here, self._n = here, n_workers
        self.window = LOOKAHEAD * n_workers
        self._workers: list[_Worker] = []
        self._made = self._idle_deaths = 0

    def offer(self, unit: Unit) -> bool:
        while len(self._workers) < self._n:
            self._workers.append(self._fork())
        worker = min(self._workers, key=lambda one: len(one.queue))
        if len(worker.queue) >= QUEUE:
            return False
        worker.queue.append(unit)
        with contextlib.suppress(OSError):  # it has died: `wait` sees that and gives the unit back
            worker.pipe.send(unit)
        return True

    def wait(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        busy = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(busy), PATIENCE):
            assert isinstance(pipe, Connection)
            outcomes += self._hear(busy[pipe])
        return outcomes

    def _hear(self, worker: _Worker) -> list[Outcome]:
        try:
            ok, content, seconds = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        unit = worker.queue.popleft()
        values, error = (unpack(content), None) if ok else (None, unpack_error(content))
        return [Outcome(unit, values, error, worker.name, seconds)]

    def _bury(self, worker: _Worker) -> list[Outcome]:
        """A dead worker: the unit it was at is blamed, the next comes back; a new worker takes its place with the next
        unit.
        """
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        if not worker.queue:
            self._idle_deaths += 1
            if self._idle_deaths > MAX_IDLE_DEATHS:
                raise MechworkError(
                    f"{self._idle_deaths} workers died without work (the last with exit code "
                    f"{worker.process.exitcode}). "
                    "Is there enough memory? Use fewer workers."
                )
            self._workers.append(self._fork())
        error = WorkerLost(
            f"{worker.name} (process {worker.process.pid}) died with exit code {worker.process.exitcode}"
        )
        return [Outcome(unit, None, error, worker.name, blamed=i == 0) for i, unit in enumerate(worker.queue)]

    def _fork(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        inherited = [ours, *(worker.pipe for worker in self._workers)]
        context = multiprocessing.get_context("fork")
        self._made += 1
        name = f"worker {self._made}"
        process = context.Process(
            target=_work, args=(theirs, inherited, self._here, os.getpid()), name=name, daemon=True
        )
        with warnings.catch_warnings():
            # Python warns of forking beside threads. torch's idle ones are never called in a worker, which has one
            # thread.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        return _Worker(name, process, ours)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self._workers = []


class WorkerLost(Exception):  # noqa: N818 - an event, told to the driver alone
    """A worker that died with a unit."""


def _work(pipe: Connection, inherited: Sequence[Connection], here: Run, driver: int) -> None:
    """A worker's life: units in, results out, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in inherited:  # or a sibling would keep the driver's pipes open after its death
        other.close()
    torch.set_num_threads(1)
    while True:
        while not pipe.poll(0.5):
            if os.getppid() != driver:
                return
        try:
            unit = pipe.recv()
        except (EOFError, OSError):
            return
        begun = time.perf_counter()
        try:
            message = (True, pack(here(unit)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver decides
            message = (False, pack_error(error))
        try:
            pipe.send((*message, time.perf_counter() - begun))
        except OSError:
            return
