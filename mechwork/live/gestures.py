"""Gestures: one live action each, as a value. The closed list that a host may ask for; nothing else is ever run.

Every gesture says whether the state admits it (`check`), what state it leads to (`then`), and what it asks of the model
(`ask`): an answer of plain JSON values. `python` prints what gives the same numbers; `cli` the command, where one does.

| gesture | answers with |
|---|---|
| `Ablate`, `Patch`, `Scale`, `Steer` | the metric before and after, random controls, the most probable tokens |
| `Row`, `Edit`, `Restore` | what the model says about the pair and the changes that are left |
| `ReadLens`, `Attention`, `Attribution` | a view of the state reached |
| `PatchEach`, `Score` | every head measured; every edge estimated (jobs) |
| `Keep`, `Toggle` | the circuit's faithfulness beside random circuits |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from ..encoding import Decoder
from ..errors import InputError, UnknownNameError
from ..runs.attention import parse_head
from ..tasks.task import Task
from .changes import AblateAt, AnyChange, PatchAt, ScaleAt, SteerAfter
from .circuits import Circuits, say_circuit
from .desk import Desk, Emit, PairChoice
from .state import CircuitChoice, LiveState, say_changes
from .views import (
    attribute,
    patch_everywhere,
    prompt_words,
    read_column,
    read_head,
    say_control,
    top_words,
    view_code,
)  # fmt: skip

LONGEST_TEXT = 4000
"""Characters of a prompt."""
N_CONTROLS = 3


@runtime_checkable
class Gesture(Protocol):
    """See the module. `job`: may take longer than a moment on any model."""

    do: ClassVar[str]
    job: ClassVar[bool]

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None: ...

    def then(self, state: LiveState) -> LiveState: ...

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]: ...

    def python(self, state: LiveState) -> str: ...


@dataclass(frozen=True)
class _Telling:
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


def controls_beside(change: AnyChange, others: Sequence[AnyChange], desk: Desk, pair: Task) -> list[AnyChange]:
    """The change at random other places that are not changed already."""
    taken = {other.place for other in others}
    drawn = change.controls(desk, pair, N_CONTROLS + len(taken))
    return [control for control in drawn if control.place not in taken][:N_CONTROLS]


@dataclass(frozen=True)
class _Changing(_Telling):
    """Gestures that add a change: answered at once without controls, then with them."""

    def change(self) -> AnyChange:
        raise NotImplementedError

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        self.change().check(desk, desk.check(state.choice))

    def then(self, state: LiveState) -> LiveState:
        return state.with_change(self.change())

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        change, choice = self.change(), before.choice
        others = before.without(change.place).changes
        without = desk.tell(choice, others)
        told = desk.tell(choice, (*others, change))
        answer = {
            "place": change.place,
            "before": without.metric,
            "metric": told.metric,
            "change": told.metric - without.metric,
            "plain": desk.tell(choice).metric,
            "kl": told.kl,
            "top": top_words(desk, told),
            "top_before": top_words(desk, without),
            "controls": None,
        }
        emit("progress", answer)
        controls = []
        for control in controls_beside(change, others, desk, desk.pair(choice)):
            metric = desk.tell(choice, (*others, control)).metric
            controls.append({"place": say_control(control), "metric": metric, "change": metric - without.metric})
            emit("working", {"done": len(controls), "total": N_CONTROLS, "words": "random controls"})
        return {**answer, "controls": controls}


@dataclass(frozen=True)
class Ablate(_Changing):
    """Take away a component at `place`."""

    place: str
    kind: str = "mean"
    do: ClassVar[str] = "ablate"

    def change(self) -> AnyChange:
        return AblateAt(self.place, self.kind)


@dataclass(frozen=True)
class Patch(_Changing):
    """Put in what the other prompt has at `place`."""

    place: str
    do: ClassVar[str] = "patch"

    def change(self) -> AnyChange:
        return PatchAt(self.place)


@dataclass(frozen=True)
class Rescale(_Changing):
    """Multiply what is at `place`."""

    place: str
    factor: float = 2.0
    do: ClassVar[str] = "scale"

    def change(self) -> AnyChange:
        return ScaleAt(self.place, self.factor)


@dataclass(frozen=True)
class Steer(_Changing):
    """Steer after block `layer` along the task's fitted direction."""

    layer: int
    strength: float = 1.0
    method: str = "add"
    do: ClassVar[str] = "steer"

    def change(self) -> AnyChange:
        return SteerAfter(self.layer, self.strength, self.method)


@dataclass(frozen=True)
class ChooseRow(_Telling):
    """Look at another pair of the task; changes stay."""

    row: int
    do: ClassVar[str] = "row"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        _check_pair(desk, self.then(state))

    def then(self, state: LiveState) -> LiveState:
        return replace(state, choice=PairChoice(self.row))


@dataclass(frozen=True)
class EditPrompts(_Telling):
    """Look at a person's own pair; changes stay. Means still come from the task's prompts."""

    clean: str
    corrupt: str
    correct: str
    incorrect: str
    do: ClassVar[str] = "edit"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        for what, text in vars(self).items():
            if not 0 < len(text) <= LONGEST_TEXT:
                raise InputError(f"{what} is a text of 1 to {LONGEST_TEXT} characters; it has {len(text)}")
        _check_pair(desk, self.then(state))

    def then(self, state: LiveState) -> LiveState:
        texts = (self.clean, self.corrupt, self.correct, self.incorrect)
        return replace(state, choice=PairChoice(0, texts))


@dataclass(frozen=True)
class Restore(_Telling):
    """Take the changes at `place` back (empty: all of them)."""

    place: str = ""
    do: ClassVar[str] = "restore"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        if self.place and all(change.place != self.place for change in state.changes):
            there = ", ".join(change.place for change in state.changes) or "nothing"
            raise InputError(f"changed are {there}; got {self.place!r:.60}")

    def then(self, state: LiveState) -> LiveState:
        return state.without(self.place)


def _check_pair(desk: Desk, state: LiveState) -> None:
    """The pair is one, and has the positions that changes name."""
    pair = desk.check(state.choice)
    for change in state.changes:
        change.check(desk, pair)


# ---- views of the state reached --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadLens(_Telling):
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
class Attention(_Telling):
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
class Attribution(_Telling):
    """Every head's and MLP's direct share of the logit difference, in the state reached."""

    do: ClassVar[str] = "attribution"

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return attribute(desk, before)

    def python(self, state: LiveState) -> str:
        return view_code("attribution", state)


@dataclass(frozen=True)
class PatchEach(_Telling):
    """Every head and MLP patched alone from the other prompt, in the unchanged model: a job."""

    do: ClassVar[str] = "sweep"
    job: ClassVar[bool] = True

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        desk.check(state.choice).pairs.require_corrupt()

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return patch_everywhere(desk, before, emit)

    def python(self, state: LiveState) -> str:
        return view_code("sweep", state)


# ---- circuits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreEdges(_Telling):
    """Estimate every edge on the task's training pairs: a job."""

    rules: str = "relp"
    do: ClassVar[str] = "score"
    job: ClassVar[bool] = True

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        circuits.check_rules(self.rules)

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return circuits.score(self.rules, emit)

    def python(self, state: LiveState) -> str:
        return f"scores = mw.score_edges(model, task.train, rules={self.rules!r})"


@dataclass(frozen=True)
class _Choosing(_Telling):
    """Gestures whose answer is the faithfulness of the circuit they lead to, on eight held-out pairs: jobs."""

    job: ClassVar[bool] = True

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        circuits.circuit(self.then(state).circuit)

    def ask(self, desk: Desk, circuits: Circuits, before: LiveState, emit: Emit) -> dict[str, Any]:
        return circuits.evaluate(self.then(before).circuit, emit)


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


def read_gesture(data: object) -> Gesture:
    """A gesture from JSON values, ``{"do": "ablate", "place": "a3.h1"}``; raises `InputError` for anything else."""
    if not isinstance(data, Mapping) or not isinstance(data.get("do"), str):
        raise InputError(f"a gesture is an object that says what to do; got {data!r:.80}")
    named = dict(data)
    cls = GESTURES.get(named.pop("do"))
    if cls is None:
        raise UnknownNameError("gesture", data["do"], GESTURES)
    try:
        return cast(Gesture, Decoder({}).build(cls, named, data["do"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"{error}") from error


def gesture_json(gesture: Gesture) -> dict[str, Any]:
    """The gesture as JSON values; `read_gesture` reads them."""
    return {"do": gesture.do, **{f.name: getattr(gesture, f.name) for f in fields(cast(Any, gesture))}}


GESTURES: dict[str, type] = {
    cls.do: cls
    for cls in (
        Ablate, Patch, Rescale, Steer, ChooseRow, EditPrompts, Restore, ReadLens, Attention, Attribution, PatchEach,
        ScoreEdges, KeepEdges, ToggleParts,
    )
}  # fmt: skip
"""What a host may ask for, by its word."""
