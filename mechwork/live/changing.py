"""Gestures that change the model's run, the pair that is looked at, or take changes back.

A change is answered at once without controls, then with them: the same at random other places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..errors import InputError
from ..tasks.task import Task
from .changes import AblateAt, AnyChange, PatchAt, ScaleAt, SteerAfter
from .circuits import Circuits
from .desk import Desk, Emit, PairChoice
from .feature_change import FeatureAt
from .gesture import Telling
from .state import LiveState
from .views import say_control, top_words

LONGEST_TEXT = 4000
"""Characters of a prompt."""
N_CONTROLS = 3


def controls_beside(change: AnyChange, others: Sequence[AnyChange], desk: Desk, pair: Task) -> list[AnyChange]:
    """The change at random other places that are not changed already."""
    taken = {other.place for other in others}
    drawn = change.controls(desk, pair, N_CONTROLS + len(taken))
    return [control for control in drawn if control.place not in taken][:N_CONTROLS]


@dataclass(frozen=True)
class _Changing(Telling):
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
class ScaleFeature(_Changing):
    """Multiply a feature of the session's sparse coders: ``resid_post.3/f17``, ``resid_post.3/f17@END``; 0: off."""

    place: str
    factor: float = 0.0
    do: ClassVar[str] = "feature"

    def change(self) -> AnyChange:
        return FeatureAt(self.place, self.factor)


@dataclass(frozen=True)
class ChooseRow(Telling):
    """Look at another pair of the task; changes stay."""

    row: int
    do: ClassVar[str] = "row"

    def check(self, desk: Desk, circuits: Circuits, state: LiveState) -> None:
        _check_pair(desk, self.then(state))

    def then(self, state: LiveState) -> LiveState:
        return replace(state, choice=PairChoice(self.row))


@dataclass(frozen=True)
class EditPrompts(Telling):
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
class Restore(Telling):
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
