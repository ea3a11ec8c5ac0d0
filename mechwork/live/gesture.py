"""What a gesture is, and the simplest: it answers with what the model says in the state that it leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from .circuits import Circuits
from .desk import Desk, Emit
from .state import LiveState, say_changes
from .views import prompt_words, top_words


@runtime_checkable
class Gesture(Protocol):
    """One live action, as a value. `job`: may take longer than a moment on any model."""

    do: ClassVar[str]
    job: ClassVar[bool]

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None: ...

    def then(self, state: LiveState) -> LiveState: ...

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]: ...

    def python(self, state: LiveState) -> str: ...


@dataclass(frozen=True)
class Telling:
    """Gestures whose answer is what the model says in the state that they lead to."""

    job: ClassVar[bool] = False

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None: ...

    def then(self, state: LiveState) -> LiveState:
        return state

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        after = self.then(before)
        told = desk.tell(after.choice, after.changes)
        return {"metric": told.metric, "kl": told.kl, "top": top_words(desk, told), **prompt_words(desk, after.choice)}

    def python(self, state: LiveState) -> str:
        return say_changes(self.then(state).changes)
