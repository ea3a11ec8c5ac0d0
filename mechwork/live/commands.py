"""Gestures in the shell: ``mechwork ablate set`` for one ablation or patch of a task's own pair, ``mechwork ask`` for
all others, after whatever led to the state.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace

from .changes import STREAM, AblateAt, AnyChange, PatchAt, ScaleAt, SteerAfter
from .circuits import Circuits
from .feature_change import FeatureAt
from .gestures import (
    Ablate,
    EditPrompts,
    Gesture,
    KeepEdges,
    Patch,
    Rescale,
    ScaleFeature,
    ScoreEdges,
    Steer,
    ToggleParts,
    gesture_json,
)
from .state import CircuitChoice, LiveState

_PLAIN = re.compile(r"[\w.@+/-]+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


@dataclass(frozen=True)
class Origin:
    """How the task can be made again: its name, number of pairs and seed, or the folder of a discovery; empty where
    nobody said.
    """

    task: str = ""
    n: int = 64
    seed: int = 0
    folder: str = ""


def say_gesture(gesture: Gesture) -> str:
    """A gesture as ``mechwork ask`` reads it: ``ablate place=a4.h1 kind=mean``, or JSON where words do not do."""
    facts = gesture_json(gesture)
    words = [str(facts["do"])]
    for name, value in facts.items():
        if name == "do":
            continue
        told = str(value) if isinstance(value, str) else json.dumps(value)
        plain = _NUMBER.fullmatch(told) if not isinstance(value, str) else _PLAIN.fullmatch(told)
        if not plain or (isinstance(value, str) and _NUMBER.fullmatch(told)):
            return json.dumps(facts, ensure_ascii=False)
        words.append(f"{name}={told}")
    return " ".join(words)


def say_command(gesture: Gesture, origin: Origin, model: str, state: LiveState, circuits: Circuits) -> str:
    """The command that prints the same numbers; empty where nobody said how the task was made."""
    if not origin.task and not origin.folder:
        return ""
    if isinstance(gesture, Ablate | Patch) and origin.task and (alone := _alone(gesture, origin, model, state)):
        return alone
    before = _led_to(state)
    if isinstance(gesture, KeepEdges | ToggleParts):
        choice = state.circuit if isinstance(gesture, ToggleParts) else CircuitChoice(gesture.n_edges or None)
        if choice is not None and choice.n_edges is not None and not (circuits.method or origin.folder):
            return ""
        if choice is not None and choice.n_edges is not None and circuits.method:
            before.append(ScoreEdges(circuits.method))
        if isinstance(gesture, ToggleParts) and choice is not None:
            if choice.n_edges is not None:
                before.append(KeepEdges(choice.n_edges))
            if choice.without:
                before.append(ToggleParts(choice.without))
    words = ["mechwork", "ask", origin.folder or origin.task, *map(say_gesture, [*before, gesture])]
    if not origin.folder:
        words += ["--model", model, "-n", str(origin.n), "--seed", str(origin.seed)]
    if state.choice.texts is None:
        words += ["--row", str(state.choice.row)]
    return shlex.join(words)


def _led_to(state: LiveState) -> list[Gesture]:
    """Gestures that lead to a state's prompts and changes, from the task's pair."""
    found: list[Gesture] = [] if state.choice.texts is None else [EditPrompts(*state.choice.texts)]
    return [*found, *map(_again, state.changes)]


def _again(change: AnyChange) -> Gesture:
    match change:
        case AblateAt():
            return Ablate(change.place, change.kind)
        case PatchAt():
            return Patch(change.place)
        case ScaleAt():
            return Rescale(change.place, change.factor)
        case FeatureAt():
            return ScaleFeature(change.place, change.factor)
        case SteerAfter():
            return Steer(change.layer, change.strength, change.method)


def _alone(gesture: Ablate | Patch, origin: Origin, model: str, state: LiveState) -> str:
    """One ablation or patch of a component, of a pair of the task and nothing else, as a measured study."""
    change = gesture.change()
    assert isinstance(change, AblateAt | PatchAt)
    if state.choice.texts is not None or state.without(change.place).changes or change.where.what in STREAM:
        return ""
    kind = change.kind if isinstance(change, AblateAt) else "corrupt"
    place = str(replace(change.where, at=""))
    words = ["mechwork", "ablate", "set", origin.task, "--model", model, "--targets", place, "--kind", kind]
    if change.where.at:
        words += ["--positions", change.where.at]
    words += ["--row", str(state.choice.row), "-n", str(origin.n), "--seed", str(origin.seed)]
    return shlex.join(words)
