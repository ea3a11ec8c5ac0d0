"""Workers on several GPUs or machines: Ray actors, each with a model that it loads itself.

An actor loads the model by its reference and refuses other weights; the work's tensors go through the object store
once. Ray's own restarts and retries are off: a lost actor is replaced by a new one, the unit it was at has spent an
attempt, and the unit behind it comes back uncharged. Units go to actors that are ready: one that never comes (a machine
that has left the cluster) holds nothing up while others work. Actors stay from one work to the next while the model is
the same. The driver keeps the ledger and writes results.

Start-up takes seconds (Ray, and every actor imports torch and loads the model), so Ray pays for long work only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ArtefactError, InputError, MechworkError
from ..models.borrow import borrow
from ..provenance import package_version
from .executors import Outcome
from .forked import LOOKAHEAD, MAX_IDLE_DEATHS, PATIENCE, QUEUE, WorkerLost
from .operations import build_operation
from .unit import ModelRef, Run, Tensors, Unit, Work
from .wire import pack, pack_error, unpack, unpack_error

START = 1200.0
"""Seconds in which one worker at least must have loaded its model."""


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
            check_answers(address)
            here: dict[str, Any] = {
                "address": "local",  # not one that an earlier process left behind
                "num_cpus": max(n_workers, os.cpu_count() or 1),
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",  # nobody else is to reach it, and no network is asked
            }
            try:
                self._ray.init(
                    **(here if address is None else {"address": address}), log_to_driver=False, logging_level="error"
                )
            except Exception as error:  # Ray raises bare ones, too, when a node does not start in time
                where = "a cluster here" if address is None else f"the one at {address!r}"
                said = (str(error) or type(error).__name__).splitlines()[0]
                raise InputError(f"Ray has no cluster for us: {where} cannot be used ({said}).") from error
            self._own = True
        try:
            self._check_room()
        except BaseException:
            self.close()
            raise

    def _check_room(self) -> None:
        """Raises `InputError` when the workers do not fit the cluster: they would be waited for without end."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        n, each = self.n_workers, self._gpus
        if each and sum(int(node.get("GPU", 0) // each) for node in nodes) < n:
            there = " + ".join(f"{node.get('GPU', 0):g}" for node in nodes)
            raise InputError(
                f"{n} workers of {each:g} GPUs, each on one machine, need {n * each:g} GPUs; the cluster has {there}. "
                "Ask for fewer."
            )
        cpus = sum(node.get("CPU", 0) for node in nodes)
        if cpus < n:
            raise InputError(f"{n} workers need a CPU core each; the cluster has {cpus:g}. Use fewer workers.")

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
        assert self._model is not None
        self._made += 1
        remote: Any = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)(_Inside)
        handle = remote.remote(package_version("mechwork"), vars(self._model), self._gpus)
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


def _waits(actor: _Actor) -> bool:
    return bool(actor.queue) or not actor.alive


class RayPool:
    """The executor's actors, at one work."""

    def __init__(self, executor: RayExecutor, work: Work) -> None:
        self._executor, self._ray = executor, executor._ray
        self.window = LOOKAHEAD * executor.n_workers
        content = (work.operation, work.model, dict(work.settings), {k: pack(v) for k, v in work.data.items()})
        try:
            self._work = self._ray.put(content)
        except self._ray.exceptions.RayError as error:
            n_bytes = sum(len(packed) for packed in content[3].values())
            raise MechworkError(
                f"Ray's object store has no room for the data of this work, {n_bytes / 1e6:.0f} MB "
                f"({_first_line(error)}). Start Ray with a larger object_store_memory."
            ) from error
        self._key = work.key
        self._deaths, self._since = 0, time.monotonic()

    def offer(self, unit: Unit) -> bool:
        actors = self._executor._actors
        while len(actors) < self._executor.n_workers:
            actors.append(self._executor.actor())
        ready = [actor for actor in actors if actor.alive]
        actor = min(ready, key=lambda one: len(one.queue), default=None)
        if actor is None or len(actor.queue) >= QUEUE:
            return False
        actor.queue.append((actor.handle.run.remote(self._key, self._work, unit), unit))
        return True

    def wait(self) -> list[Outcome]:
        """What has come back; nothing after `PATIENCE`, or when an actor has become ready and can be given a unit."""
        actors = self._executor._actors
        heads = {actor.queue[0][0] if actor.alive else actor.ready: actor for actor in actors if _waits(actor)}
        done, _ = self._ray.wait(list(heads), num_returns=1, timeout=PATIENCE)
        if any(actor.alive for actor in actors):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > START:
            raise MechworkError(
                f"no worker has loaded the model in {START // 60:.0f} minutes. Are the cluster's machines alive and "
                "free ('ray status')?"
            )
        return [outcome for reference in done for outcome in self._hear(heads[reference])]

    def _hear(self, actor: _Actor) -> list[Outcome]:
        try:
            if not actor.alive:
                self._check_ready(actor)
                return []
            reference, unit = actor.queue[0]
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
        """A lost actor: the first unit not heard of is blamed (an answer on its way dies with the actor); a new actor
        comes with the next unit.
        """
        self._executor._actors.remove(actor)
        with contextlib.suppress(Exception):  # it is dead, or at least not to be trusted any more
            self._ray.kill(actor.handle, no_restart=True)
        if not actor.alive:
            self._deaths += 1
            if self._deaths > MAX_IDLE_DEATHS or "No module named" in str(error):
                raise MechworkError(
                    f"{self._deaths} workers died before they had loaded the model. Is mechwork installed, and enough "
                    f"memory free, on every machine of the cluster? The last one: {_last_line(error)}"
                ) from error
        lost = WorkerLost(f"{actor.name} died: {_first_line(error)}")
        return [Outcome(unit, None, lost, actor.name, blamed=i == 0) for i, (_, unit) in enumerate(actor.queue)]

    @property
    def pids(self) -> list[int]:
        """The process ids of actors that have loaded their model."""
        return self._ray.get([actor.handle.pid.remote() for actor in self._executor._actors if actor.alive])

    def close(self) -> None:
        if any(actor.queue for actor in self._executor._actors):
            self._executor.stop_actors()  # what they are at is not waited for


class _Inside:
    """An actor's inside: one model, and the operation of the last work."""

    def __init__(self, version: str, reference: dict[str, Any], n_gpus: float) -> None:
        torch.set_num_threads(1)
        self._key, self._run, self._refusal, self._model = "", None, None, None
        try:
            check_version(version)
            self._model = ModelRef(**reference).load(device_map="auto" if n_gpus > 1 else None)
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
            with nullcontext() if self._model is None else borrow(self._model):  # once, not by every hook within
                values: Tensors = self._run(unit)
            return True, pack(values), time.perf_counter() - begun
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver decides
            return False, pack_error(error), time.perf_counter() - begun


def _work(content: tuple[Any, ...]) -> Work:
    operation, model, settings, data = content
    return Work(operation, model, settings, {name: unpack(tensors) for name, tensors in data.items()})


def check_version(other: str) -> None:
    """Raises `ArtefactError` in a worker whose mechwork is not the driver's."""
    here = package_version("mechwork")
    if other != here:
        raise ArtefactError(
            f"a worker has mechwork {here}, and the process that sends work {other}: they may compute different "
            "numbers. Install one version on every machine."
        )


def check_answers(address: str | None, seconds: float = 5.0) -> None:
    """Raises `InputError` for an address that is none, or where nothing answers (Ray itself would wait for minutes)."""
    if address is None or address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"address is HOST:PORT of a running Ray cluster, or 'auto'; got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nothing answers at {address} ({error}). Is a Ray cluster running there ('ray start --head' says its "
            "address), and can this machine reach it?"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "executor('ray') needs Ray: pip install 'mechwork[ray]'. Without it, use executor('forked')."
        ) from error
    return ray
