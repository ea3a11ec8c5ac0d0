"""Gestures that look: views of the state reached, sweeps, edge scores, and circuits with their faithfulness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..errors import InputError
from ..runs.attention import parse_head
from .circuits import Circuits, say_circuit, say_score
from .desk import Desk, Emit
from .feature_change import parse_feature
from .gesture import Telling
from .state import CircuitChoice, LiveState
from .views import attribute, patch_everywhere, read_active, read_column, read_head, view_code


@dataclass(frozen=True)
class ReadLens(Telling):
    """What the stream says at each layer, at one `column` of the clean prompt (-1: at all)."""

    column: int = -1
    do: ClassVar[str] = "lens"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        n = int(desk.check(state.choice).pairs.lengths[0])
        if not -1 <= self.column < n:
            raise InputError(f"this prompt has positions 0 to {n - 1} (-1: all); got {self.column}")

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return read_column(desk, before, self.column)

    def python(self, state: LiveState) -> str:
        return view_code("lens", state, self.column)


@dataclass(frozen=True)
class Attention(Telling):
    """Where a head looks, in the state reached."""

    head: str
    do: ClassVar[str] = "attention"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        parse_head(desk.anatomy, self.head)

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return read_head(desk, before, self.head)

    def python(self, state: LiveState) -> str:
        return view_code("attention", state, self.head)


@dataclass(frozen=True)
class Attribution(Telling):
    """Every head's and MLP's direct share of the logit difference, in the state reached."""

    do: ClassVar[str] = "attribution"

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return attribute(desk, before)

    def python(self, state: LiveState) -> str:
        return view_code("attribution", state)


@dataclass(frozen=True)
class PatchEach(Telling):
    """Every head and MLP patched alone from the other prompt, in the unchanged model: a job."""

    do: ClassVar[str] = "sweep"
    job: ClassVar[bool] = True

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        desk.check(state.choice).pairs.require_corrupt()

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return patch_everywhere(desk, before, emit)

    def python(self, state: LiveState) -> str:
        return view_code("sweep", state)


@dataclass(frozen=True)
class ReadFeatures(Telling):
    """The most active features of one of the session's coders, at one `column` (-1: the answer's), state reached."""

    site: str
    column: int = -1
    do: ClassVar[str] = "features"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        parse_feature(desk, f"{self.site}/f0")
        n = int(desk.check(state.choice).pairs.lengths[0])
        if not -1 <= self.column < n:
            raise InputError(f"this prompt has positions 0 to {n - 1} (-1: the answer's); got {self.column}")

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return read_active(desk, before, self.site, self.column)

    def python(self, state: LiveState) -> str:
        return view_code("features", state, self.site, self.column)


# ---- circuits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreEdges(Telling):
    """Estimate every edge on the task's training pairs (`method`: relp, eap, eap-ig, ...): a job."""

    method: str = "relp"
    do: ClassVar[str] = "score"
    job: ClassVar[bool] = True

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        circuits.check_method(self.method)

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return circuits.score(self.method, emit)

    def python(self, state: LiveState) -> str:
        return say_score(self.method)


@dataclass(frozen=True)
class _Choosing(Telling):
    """Gestures whose answer is the faithfulness of the circuit they lead to, on eight held-out pairs: jobs."""

    job: ClassVar[bool] = True

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        circuits.circuit(self.then(state).circuit)

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        after = self.then(before)
        return circuits.evaluate(after.circuit, after.choice, emit)


@dataclass(frozen=True)
class KeepEdges(_Choosing):
    """The circuit of the `n_edges` strongest scored edges (0: the one that the session began with)."""

    n_edges: int
    do: ClassVar[str] = "keep"

    def then(self, state: LiveState) -> LiveState:
        return replace(state, circuit=CircuitChoice(self.n_edges or None))

    def python(self, state: LiveState) -> str:
        return say_circuit(self.then(state).circuit)


@dataclass(frozen=True)
class ToggleParts(_Choosing):
    """Take nodes or edges out of the circuit, or put back those that were taken out: several are a supernode."""

    parts: tuple[str, ...]
    do: ClassVar[str] = "toggle"

    def then(self, state: LiveState) -> LiveState:
        choice = state.circuit or CircuitChoice()
        kept = tuple(part for part in choice.without if part not in self.parts)
        new = tuple(part for part in self.parts if part not in choice.without)
        return replace(state, circuit=replace(choice, without=(*kept, *new)))

    def python(self, state: LiveState) -> str:
        return say_circuit(self.then(state).circuit)
