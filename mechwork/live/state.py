"""The state of a session, as one value: which pair is looked at, what is changed, and which circuit is kept.

Gestures make a new state out of the old one; undo goes back to the old value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .changes import AnyChange
from .circuits import CircuitChoice
from .desk import PairChoice
from .parts import PrintedCode

METRIC = "metric = float(pair.measure(run_to_metric(model, pair, pair.pairs)).mean())"


@dataclass(frozen=True)
class LiveState:
    """What gestures change. `changes` by the order in which they were made, one per place and kind."""

    choice: PairChoice = field(default_factory=PairChoice)
    changes: tuple[AnyChange, ...] = ()
    circuit: CircuitChoice | None = None

    def with_change(self, change: AnyChange) -> LiveState:
        """With one change more; an earlier one at its place gives way to it."""
        return replace(self, changes=(*self.without(change.place).changes, change))

    def without(self, place: str = "") -> LiveState:
        """Without the changes at `place` (empty: without any)."""
        kept = tuple(change for change in self.changes if place and change.place != place)
        return replace(self, changes=kept)


def say_pair(choice: PairChoice) -> str:
    """The line that makes `pair`."""
    if choice.texts is None:
        return f"pair = task[{choice.row}:{choice.row + 1}]"
    texts = ", ".join(map(repr, choice.texts))
    return f"pair = mw.tasks.from_text(model, {texts}, metric=task.metric)"


def say_changes(changes: Sequence[AnyChange], body: Sequence[str] = (METRIC,), imports: Sequence[str] = ()) -> str:
    """Python that runs `body` under `changes`. It uses `mw`, `model`, `task` and `pair`."""
    if body == (METRIC,):
        if alone := _alone(changes):
            return alone
        imports = ("from mechwork.runs.record import run_to_metric",)
    codes = [change.code("" if len(changes) == 1 else str(i + 1)) for i, change in enumerate(changes)]
    lines = merge_imports([*imports, *(line for code in codes for line in code.imports)])
    lines += [line for code in codes for line in code.lines]
    if codes:
        lines.append(f"with {', '.join(code.context for code in codes)}:")
    return "\n".join([*lines, *(("    " if codes else "") + line for line in body)])


def _alone(changes: Sequence[AnyChange]) -> str:
    """The one call of `mw.ablate` that says one ablation or patch of a component; empty where none does."""
    if len(changes) != 1:
        return ""
    code: PrintedCode = changes[0].code()
    if not code.lines or "fit_ablation(" not in code.lines[0]:
        return ""
    spec = code.lines[0].split("fit_ablation(model, ", 1)[1].rsplit(", task).bind", 1)[0]
    reference = "" if "'corrupt'" in spec else ", reference=task"
    return f"result = mw.ablate(model, pair, {spec}{reference})\nmetric = float(result.ablated_per_example.mean())"


def merge_imports(lines: Sequence[str]) -> list[str]:
    """Import lines, one per module, sorted."""
    names: dict[str, set[str]] = {}
    for line in lines:
        module, _, listed = line.removeprefix("from ").partition(" import ")
        names.setdefault(module, set()).update(name.strip() for name in listed.split(","))
    return [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]


def to_json(state: LiveState) -> dict[str, Any]:
    """The state as JSON values, for the screen."""
    return {
        "row": state.choice.row,
        "own": state.choice.texts is not None,
        "changes": [{"do": change.name, "place": change.place, **vars(change)} for change in state.changes],
        "circuit": None if state.circuit is None else vars(state.circuit) | {"without": list(state.circuit.without)},
    }
