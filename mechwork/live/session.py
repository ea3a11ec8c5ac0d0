"""A session: a model, a task, a state that gestures change, and what was answered so far; no transport.

    session = Session(model, task)
    answer = session.do(Ablate("a4.h1"))
    answer.data["change"], answer.data["controls"]
    print(session.python())
    session.undo()

A session's gestures and a notebook's cells take turns at the model (`models.borrow.share`): a gesture waits for a cell
that holds the model and says so, a cell waits for a gesture, and neither sees the other's hooks.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..circuits import Circuit, EdgeScores
from ..errors import InputError
from ..features import FeatureSet, feature_names
from ..harmless import visible
from ..models.borrow import borrow, share
from ..models.identity import identify_model, source_of
from ..models.pulse import pulsing
from ..provenance import Provenance, build_provenance
from ..tasks.task import Task
from .circuits import Circuits, told
from .commands import Origin, say_command
from .desk import Desk, Emit
from .difference import subtract_views
from .gestures import VIEWS, ChooseRow, Gesture, gesture_json, read_gesture
from .state import METRIC, LiveState, say_changes, say_pair, to_json
from .views import prompt_words, top_words

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PATIENCE = 600.0
"""Seconds that a gesture waits for a cell that holds the model."""
MOST_STEPS = 1000
"""Steps of the history; older ones are forgotten."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a gesture found, as plain JSON values, and how to get the same numbers without a session."""

    gesture: Gesture
    data: dict[str, Any]
    python: str
    cli: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For a screen and for a page."""
        return {
            "gesture": gesture_json(self.gesture), "data": self.data, "python": self.python, "cli": self.cli,
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class LiveStep:
    """One entry of the history: the state that a gesture led to, and what it answered."""

    state: LiveState
    answer: Answer


def _silent(what: str, data: dict[str, Any]) -> None:
    """Nobody listens."""


class Session:
    """See the module. Cost of making one: 3 forwards of one pair.

    `circuit` and `scores` are what circuit gestures begin with, `features` what feature gestures change; `origin` says
    how the task was made, so that printed lines are whole. Raises `InputError` for a task of another model,
    and what `Desk` raises.
    """

    def __init__(
        self,
        model: TransformerBridge,
        task: Task,
        *,
        row: int = 0,
        circuit: Circuit | None = None,
        scores: EdgeScores | None = None,
        features: FeatureSet | None = None,
        origin: Origin | None = None,
        seed: int = 0,
    ) -> None:
        self._lock = threading.RLock()
        self.model, self.task, self.origin = model, task, origin or Origin()
        self._close = weakref.finalize(self, share(model))
        try:
            with borrow(model, passing=True, patience=PATIENCE):
                self.desk = Desk(model, task, seed=seed, features=features)
                self.circuits = Circuits(self.desk, circuit, scores)
                self.state = ChooseRow(row).then(LiveState())
                ChooseRow(row).check(self.desk, self.circuits, self.state)
                self.desk.tell(self.state.choice)
        except BaseException:
            self.close()  # who is refused leaves the model as it was
            raise
        self.history: list[LiveStep] = []
        self.pins: dict[str, LiveState] = {}
        self._undone: list[LiveStep] = []
        self.first = self.state
        self._weights = self._version()

    def close(self) -> None:
        """Let go of the model; plain forwards are as before."""
        self._close()

    # ---- gestures --------------------------------------------------------------------------------------------------

    def do(self, gesture: Gesture | dict[str, Any], emit: Emit = _silent) -> Answer:
        """Check and run a gesture; the state is changed when it has answered, and only then.

        `emit` hears what is known before the end. Raises `InputError` for a gesture that the state does not admit (the
        state stays), `BusyError` when a cell holds the model for longer than ten minutes.
        """
        gesture = read_gesture(gesture) if isinstance(gesture, dict) else gesture
        begun = time.perf_counter()
        with self._lock, self._model(emit, gesture.do):
            emit("working", {"done": 0, "total": 0, "words": gesture.do})  # stops what was cancelled while it waited
            before = self.state
            gesture.check(self.desk, self.circuits, before)
            data = gesture.ask(self.desk, self.circuits, before, emit)
            command = say_command(gesture, self.origin, source_of(self.model) or self._name(), before, self.circuits)
            answer = Answer(gesture, data, gesture.python(before), command, time.perf_counter() - begun)
            after = gesture.then(before)
            if after != before:
                self.state = after
                self.history = [*self.history, LiveStep(after, answer)][-MOST_STEPS:]
                self._undone.clear()
            return answer

    def look(self) -> dict[str, Any]:
        """The prompts, the model's shape and what the model says in the present state: what a screen begins with."""
        with self._lock, self._model(_silent):
            plain = self.desk.tell(self.state.choice)
            told = self.desk.tell(self.state.choice, self.state.changes)
            anatomy = self.desk.anatomy
            return {
                "model": self._name(),
                "task": self.task.name,
                "n_rows": len(self.task),
                "n_layers": anatomy.n_layers,
                "n_heads": anatomy.n_heads,
                "has_mlps": not anatomy.attn_only,
                "has_circuit": self.circuits.given is not None,
                "has_scores": self.circuits.scores is not None,
                "feature_sites": [] if self.desk.features is None else list(self.desk.features.places),
                "state": to_json(self.state),
                "plain": {"metric": plain.metric, "top": top_words(self.desk, plain)},
                "now": {"metric": told.metric, "kl": told.kl, "top": top_words(self.desk, told)},
                "history": [self._line(step) for step in self.history],
                "can_undo": bool(self.history),
                "can_redo": bool(self._undone),
                "pins": sorted(self.pins),
                "python": self.python(),
                **prompt_words(self.desk, self.state.choice),
            }

    def undo(self) -> bool:
        """Back to the state before the last gesture that changed it; False when there is none."""
        with self._lock:
            if not self.history:
                return False
            self._undone.append(self.history.pop())
            self.state = self.history[-1].state if self.history else self.first
            return True

    def redo(self) -> bool:
        """Forward again; False when nothing was undone."""
        with self._lock:
            if not self._undone:
                return False
            self.history.append(self._undone.pop())
            self.state = self.history[-1].state
            return True

    # ---- two states compared ---------------------------------------------------------------------------------------

    def pin(self, name: str) -> None:
        """Keep the present state under a name, ``"A"`` or ``"B"``."""
        if name not in ("A", "B"):
            raise InputError(f"states are pinned as A and B; got {name!r:.20}")
        with self._lock:
            self.pins[name] = self.state

    def difference(
        self, view: Gesture | dict[str, Any] | None = None, k: int = 5, emit: Emit = _silent
    ) -> dict[str, Any]:
        """What B says less what A says (B not pinned: now): the metric, and the tokens that moved most; or a `view`
        (lens, attention, direct shares, features) in both states, and its difference.

        Raises `InputError` when the two look at different prompts, or A is not pinned. Cost: 1 forward each.
        """
        view = read_gesture(view) if isinstance(view, dict) else view
        if view is not None and not isinstance(view, VIEWS):
            raise InputError(f"two states are compared in a view: {', '.join(cls.do for cls in VIEWS)}; got {view.do}")
        with self._lock, self._model(emit, "comparing"):
            if "A" not in self.pins:
                raise InputError("a difference is from pin A to pin B (or to now); pin A first")
            states = self.pins["A"], self.pins.get("B", self.state)
            a, b = states
            if a.choice != b.choice:
                raise InputError("two states are compared on one pair of prompts; these look at different ones")
            if view is not None:
                for state in states:
                    view.check(self.desk, self.circuits, state)
                first, second = (view.ask(self.desk, self.circuits, state, emit) for state in states)
                python = {"a": view.python(a), "b": view.python(b)}
                return {"view": view.do, **subtract_views(first, second), "python": python}
            first, second = (self.desk.tell(state.choice, state.changes) for state in states)
            p, q = (told.logits.double().softmax(dim=0) for told in (first, second))
            moved = (q - p).abs().topk(min(k, len(p))).indices.tolist()
            words = [{"word": self.desk.word(i), "a": float(p[i]), "b": float(q[i])} for i in moved]
            return {
                "a": first.metric, "b": second.metric, "change": second.metric - first.metric, "words": words,
                "python": {"a": say_changes(a.changes), "b": say_changes(b.changes)},
            }  # fmt: skip

    # ---- what is said of it ----------------------------------------------------------------------------------------

    def python(self) -> str:
        """A script that makes model, task and pair, and measures the present state."""
        return "\n".join([*self.setup(), say_changes(self.state.changes, (METRIC,))])

    def setup(self) -> list[str]:
        """The lines that make `mw`, `model`, `task` and `pair`."""
        made = self.origin
        source = source_of(self.model)
        model = f"model = mw.load_model({source!r})" if source else "# model: the one of this session"
        task = (
            f"task = mw.tasks.{made.task}(model, n={made.n}, seed={made.seed})" if made.task
            else f"# task: {visible(self.task.name)}, {len(self.task)} pairs"
        )  # fmt: skip
        lines = ["import mechwork as mw", model, task, say_pair(self.state.choice)]
        features = self.desk.features
        if features is not None and self._name() in feature_names():
            lines += ["from mechwork.features import load_features", "features = load_features(model)"]
        elif features is not None:
            lines.append(f"# features: {visible(features.name)}, those of this session")
        return lines

    def provenance(self) -> Provenance:
        """Model, task and versions."""
        return build_provenance(
            method="live session", model=identify_model(self.model), task=self.task.provenance(), seed=self.desk.seed
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, this thread alone uses the session and its model."""
        with self._lock, self._model(_silent):
            yield

    def _name(self) -> str:
        return str(self.model.cfg.model_name)

    def _line(self, step: LiveStep) -> dict[str, Any]:
        data = step.answer.data
        kept = {name: data[name] for name in ("metric", "change", "faithfulness") if name in data}
        return {**gesture_json(step.answer.gesture), **kept}

    def _version(self) -> int:
        return sum(parameter._version for parameter in self.model.parameters())

    @contextmanager
    def _model(self, emit: Emit, what: str = "") -> Iterator[None]:
        """The model for this thread alone; says so when it has to wait, and forgets what edited weights made stale.

        Who listens hears of every block that runs, so that a cancel is heard at once.
        """
        hears = None if emit is _silent else told(emit)

        def waits() -> None:
            emit("working", {"done": 0, "total": 0, "words": "waiting: other code is using the model"})

        with borrow(self.model, passing=True, patience=PATIENCE, waits=waits), pulsing(self.model, hears, what):
            self._refresh()
            yield

    def _refresh(self) -> None:
        version = self._version()
        if version != self._weights:
            self.desk.forget()
            self.circuits.forget()
            self._weights = version
