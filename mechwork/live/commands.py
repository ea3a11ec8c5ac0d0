"""Gestures in the shell: ``mechwork ablate set`` for one ablation or patch of a task's own pair; empty elsewhere."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from .changes import STREAM, AblateAt, PatchAt
from .gestures import Ablate, Gesture, Patch
from .state import LiveState


@dataclass(frozen=True)
class Origin:
    """How the task can be made again: its name, number of pairs and seed; empty where nobody said."""

    task: str = ""
    n: int = 64
    seed: int = 0


def say_command(gesture: Gesture, origin: Origin, model: str, state: LiveState) -> str:
    """The command that prints the same metric, where there is one: no other changes, a pair of a named task."""
    if not isinstance(gesture, Ablate | Patch) or not origin.task or state.choice.texts is not None:
        return ""
    change = gesture.change()
    assert isinstance(change, AblateAt | PatchAt)
    others = state.without(change.place).changes
    if others or change.where.what in STREAM:
        return ""
    kind = change.kind if isinstance(change, AblateAt) else "corrupt"
    place = str(replace(change.where, at=""))
    words = ["mechwork", "ablate", "set", origin.task, "--model", model, "--targets", place, "--kind", kind]
    if change.where.at:
        words += ["--positions", change.where.at]
    words += ["--row", str(state.choice.row), "-n", str(origin.n), "--seed", str(origin.seed)]
    return shlex.join(words)
