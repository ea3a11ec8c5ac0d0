"""Freeze: a session as one offline page with its gestures, answers, controls and provenance.

Before it is written, every answer that is on it is computed again by the printed lines' own functions, without what the
session keeps; one number that differs stops it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError, MechworkError, VerificationError
from ..files import write_text
from ..provenance import stable
from .changing import controls_beside
from .desk import Desk
from .gestures import Ablate, ChooseRow, EditPrompts, Patch, Rescale, Restore, ScaleFeature, Steer
from .page import live_page
from .session import Session
from .state import LiveState
from .views import attribute

MOST = 60
"""Steps that are computed again and shown, the last ones."""


def session_record(session: Session) -> dict[str, Any]:
    """What a frozen page holds, as JSON values; raises `VerificationError` for a number that is not found again.

    Cost: a fitting and 2 forwards per changing step, 3 more for its controls, and 1.
    """
    with session.alone():
        steps = session.history[-MOST:]
        before = session.history[-MOST - 1].state if len(session.history) > MOST else session.first
        desk = Desk(session.model, session.task, seed=session.desk.seed, features=session.desk.features)
        desk.restarts = False  # every block runs: nothing that the session kept is trusted
        for step in steps:
            _again(desk, before, step.answer.gesture, step.answer.data)
            before = step.state
        look = session.look()
        try:
            shares = attribute(desk, session.state)
        except MechworkError:  # of a metric that is no difference of logits
            shares = {"values": None, "what": ""}
        return {
            "look": look,
            "values": shares["values"],
            "values_what": shares["what"],
            "answers": [step.answer.to_json() for step in steps],
            "provenance": stable(session.provenance()),
            "setup": session.setup(),
        }


def _again(desk: Desk, before: LiveState, gesture: Any, data: dict[str, Any]) -> None:
    if not isinstance(gesture, Ablate | Patch | Rescale | Steer | ScaleFeature | ChooseRow | EditPrompts | Restore):
        return  # circuits are measured by `mw.evaluate` itself
    after = gesture.then(before)
    found = desk.tell(after.choice, after.changes).metric
    if found != data["metric"]:
        raise VerificationError(f"{gesture} answered {data['metric']!r}; computed again it is {found!r}. Not saved.")
    if isinstance(gesture, ChooseRow | EditPrompts | Restore):
        return
    change, others = gesture.change(), before.without(gesture.change().place).changes
    drawn = controls_beside(change, others, desk, desk.pair(before.choice))
    for control, told in zip(drawn, data["controls"], strict=True):
        metric = desk.tell(before.choice, (*others, control)).metric
        if metric != told["metric"]:
            raise VerificationError(f"control {told['place']} of {gesture}: {told['metric']!r}, again {metric!r}")


def freeze(session: Session, path: str | Path | None = None, *, force: bool = False) -> str:
    """The page as text, and written to `path` where one is given.

    Raises `InputError` for a file that exists (without `force`), `VerificationError` for numbers that differ.
    """
    target = None if path is None else Path(path)
    if target is not None and target.exists() and not force:
        raise InputError(f"{target} exists. Pass force=True to replace it, or choose another path.")
    page = live_page(session_record(session))
    if target is not None:
        write_text(target, page)
    return page
