"""As much of Ray as mechwork calls, in this process: actors that die when the dice say so, or that never come."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """What Ray raises when something of its own went wrong."""


class Handle:
    """An actor: calls wait in order, until it dies. `comes`: whether it ever is there."""

    def __init__(self, make: Callable[[], Any], *, comes: bool) -> None:
        self.make, self.comes, self.dead, self.inside = make, comes, False, None
        self.calls: list[Reference] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self.call(name, args))

    def call(self, name: str, args: tuple[Any, ...]) -> Reference:
        self.calls.append(Reference(self, name, args))
        return self.calls[-1]


class Reference:
    """A result to come."""

    def __init__(self, handle: Handle, name: str, args: tuple[Any, ...]) -> None:
        self.handle, self.name, self.args, self.done, self.value = handle, name, args, False, None


class FakeRay:
    """`deaths`: the chance that an actor dies instead of doing its next call; `absent`: how many never come;
    `stillborn`: all die instead of loading.
    """

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, seed: int, *, deaths: float = 0.0, absent: int = 0, stillborn: bool = False) -> None:
        self.dice, self.deaths, self.absent = random.Random(seed), deaths, absent
        self.stillborn = stillborn
        self.handles: list[Handle] = []
        self.waited = 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 3.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        assert options["max_restarts"] == options["max_task_retries"] == 0
        return lambda kind: SimpleNamespace(remote=lambda *args: self._make(kind, args))

    def _make(self, kind: Any, args: tuple[Any, ...]) -> Handle:
        self.handles.append(Handle(lambda: kind(*args), comes=len(self.handles) >= self.absent))
        return self.handles[-1]

    def kill(self, handle: Handle, *, no_restart: bool) -> None:
        assert no_restart
        handle.dead = True

    def wait(self, references: list[Reference], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert references, "Ray refuses to wait for nothing"
        self.waited += 1
        able = [one for one in references if one.done or one.handle.dead or one.handle.comes]
        if not able:
            return [], references
        chosen = self.dice.choice(able)
        if not chosen.done and not chosen.handle.dead:
            self._go_on(chosen.handle)
        return [chosen], [one for one in references if one is not chosen]

    def _go_on(self, handle: Handle) -> None:
        if self.stillborn or (handle.inside is not None and self.dice.random() < self.deaths):
            handle.dead = True
            return
        handle.inside = handle.inside or handle.make()
        call = handle.calls.pop(0)
        call.value, call.done = getattr(handle.inside, call.name)(*call.args), True

    def get(self, reference: Reference) -> Any:
        if not reference.done:
            assert reference.handle.dead
            raise RayError("The actor died unexpectedly before finishing this task.")
        return reference.value
