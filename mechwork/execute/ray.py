"""Workers on several GPUs or machines: Ray actors, each with a model that it loads itself.

An actor loads the model by its reference and refuses other weights; the work's tensors go through the object store
once. Ray's own restarts and
retries are off: a lost actor is replaced by a new one, the unit it was at has spent an attempt, and the unit behind it
comes back uncharged. Actors stay from one work to the next while the model is the same. The driver keeps the ledger and
writes results.

Start-up takes seconds (Ray, and every actor imports torch and loads the model), so Ray pays for long work only.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ArtefactError, InputError, MechworkError
from .executors import Outcome
from .forked import LOOKAHEAD, MAX_IDLE_DEATHS, QUEUE, WorkerLost
from .operations import build_operation
from .unit import ModelRef, Run, Tensors, Unit, Work
from .wire import pack, pack_error, unpack, unpack_error


class RayExecutor:
    """`n_workers` actors with `gpus_per_worker` GPUs each, on the cluster at `address` (None: one is started here)."""

    kind = "ray"

    def __init__(self, n_workers: int, gpus_per_worker: float, address: str | None) -> None:
        self._ray = _import_ray()
        self.n_workers, self._gpus, self._own = n_workers, gpus_per_worker, False
        self._actors: list[_Actor] = []
        self._model: ModelRef | None = None
        self._made = 0
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a change to come
            try:
                self._ray.init(
                    address=address,
                    num_cpus=max(n_workers, os.cpu_count() or 1) if address is None else None,
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level="error",
                )
            except (ConnectionError, ValueError, OSError, RuntimeError) as error:
                where = "a cluster here" if address is None else f"the one at {address!r}"
                raise InputError(
                    f"Ray has no cluster for us: {where} cannot be used ({str(error).splitlines()[0]})."
                ) from error
            self._own = True
        there = self._ray.cluster_resources().get("GPU", 0)
        if n_workers * gpus_per_worker > there:
            self.close()
            raise InputError(
                f"{n_workers} workers of {gpus_per_worker} GPUs need {n_workers * gpus_per_worker}; the cluster has "
                f"{there:.0f}"
            )

    def open(self, work: Work, here: Run) -> RayPool:
        if work.here_only is not None:
            raise InputError(f"this work cannot be sent to Ray's workers: {work.here_only}.")
        if work.model.source is None:
            work.model.load()  # says what is missing
        if (work.model.device == "cuda") != (self._gpus > 0):
            raise InputError(
                f"numbers have the same bits on one kind of device only: the model here is on {work.model.device}, "
                "and workers have "
                f"{self._gpus:g} GPUs each. Load it on the workers' kind of device, or change gpus_per_worker."
            )
        if self._model != work.model:
            self.stop_actors()
            self._model = work.model
        return RayPool(self, work)

    def actor(self) -> _Actor:
        """A new actor, loading its model."""
        self._made += 1
        remote: Any = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)(_Inside)
        handle = remote.remote(self._model)
        return _Actor(f"actor {self._made}", handle, handle.ready.remote())

    def stop_actors(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor.handle, no_restart=True)
        self._actors = []

    def close(self) -> None:
        if self._ray.is_initialized():
            self.stop_actors()
            if self._own:
                self._ray.shutdown()


@dataclass(eq=False)
class _Actor:
    name: str
    handle: Any
    ready: Any
    alive: bool = False
    queue: deque[tuple[Any, Unit]] = field(default_factory=deque)


class RayPool:
    """The executor's actors, at one work."""

    def __init__(self, executor: RayExecutor, work: Work) -> None:
        self._executor, self._ray = executor, executor._ray
        self.window = LOOKAHEAD * executor.n_workers
        self._work = self._ray.put(
            (work.operation, work.model, dict(work.settings), {k: pack(v) for k, v in work.data.items()})
        )
        self._key = work.key
        self._deaths = 0

    def offer(self, unit: Unit) -> bool:
        actors = self._executor._actors
        while len(actors) < self._executor.n_workers:
            actors.append(self._executor.actor())
        actor = min(actors, key=lambda one: len(one.queue))
        if len(actor.queue) >= QUEUE:
            return False
        actor.queue.append((actor.handle.run.remote(self._key, self._work, unit), unit))
        return True

    def wait(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while not outcomes:
            heads = {actor.queue[0][0]: actor for actor in self._executor._actors if actor.queue}
            done, _ = self._ray.wait(list(heads), num_returns=1)
            for reference in done:
                outcomes += self._hear(heads[reference])
        return outcomes

    def _hear(self, actor: _Actor) -> list[Outcome]:
        reference, unit = actor.queue[0]
        try:
            if not actor.alive:
                self._check_ready(actor)
            ok, content, seconds = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return self._bury(actor, error)
        actor.queue.popleft()
        values, failure = (unpack(content), None) if ok else (None, unpack_error(content))
        return [Outcome(unit, values, failure, actor.name, seconds)]

    def _check_ready(self, actor: _Actor) -> None:
        refusal = self._ray.get(actor.ready)
        if refusal is not None:
            error = unpack_error(refusal)
            raise (
                error if isinstance(error, MechworkError) else ArtefactError(f"a worker cannot load the model: {error}")
            )
        actor.alive = True

    def _bury(self, actor: _Actor, error: Exception) -> list[Outcome]:
        """A lost actor: the unit it was at is blamed, unless it never was ready; a new one comes with the next unit."""
        self._executor._actors.remove(actor)
        if not actor.alive:
            self._deaths += 1
            if self._deaths > MAX_IDLE_DEATHS:
                raise MechworkError(f"{self._deaths} workers died before they had loaded the model: {error}") from error
        lost = WorkerLost(f"{actor.name} died: {str(error).splitlines()[0]}")
        blamed = actor.alive
        return [
            Outcome(unit, None, lost, actor.name, blamed=blamed and i == 0) for i, (_, unit) in enumerate(actor.queue)
        ]

    @property
    def pids(self) -> list[int]:
        """The actors' process ids, once they have loaded."""
        return self._ray.get([actor.handle.pid.remote() for actor in self._executor._actors])

    def close(self) -> None:
        if any(actor.queue for actor in self._executor._actors):
            self._executor.stop_actors()  # what they are at is not waited for


class _Inside:
    """An actor's inside: one model, and the operation of the last work."""

    def __init__(self, reference: ModelRef) -> None:
        torch.set_num_threads(1)
        self._key, self._run, self._refusal, self._model = "", None, None, None
        try:
            self._model = reference.load()
        except Exception as error:  # noqa: BLE001 - told to the driver, which says it
            self._refusal = pack_error(error)

    def ready(self) -> tuple[str, str] | None:
        """None, or why the model could not be loaded."""
        return self._refusal

    def pid(self) -> int:
        return os.getpid()

    def run(self, key: str, content: tuple[Any, ...], unit: Unit) -> tuple[bool, Any, float]:
        """Whether it went well, the packed values or error, and the seconds."""
        begun = time.perf_counter()
        try:
            if key != self._key or self._run is None:
                self._run = build_operation(self._model, _work(content))  # pyright: ignore[reportArgumentType]
                self._key = key
            values: Tensors = self._run(unit)
            return True, pack(values), time.perf_counter() - begun
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver decides
            return False, pack_error(error), time.perf_counter() - begun


def _work(content: tuple[Any, ...]) -> Work:
    operation, model, settings, data = content
    return Work(operation, model, settings, {name: unpack(tensors) for name, tensors in data.items()})


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "executor('ray') needs Ray: pip install 'mechwork[ray]'. Without it, use executor('forked')."
        ) from error
    return ray
