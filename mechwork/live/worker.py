"""One thread that runs the gestures of a session, in turn: progress, cancel, replacement of what has grown stale.

A request is ``{"id": ..., "gesture": {...}}`` (or ``"ask"``: look, undo, redo, pin, difference) with a `key`: a newer
request of the same key replaces one that still waits. Every request is answered once, by ``result``, ``error``,
``cancelled`` or ``replaced``; ``progress`` and ``working`` may come before. A running gesture is cancelled at the
next block of a pass that tells progress (`models.pulse`), others between units of their work (`execute`); hooks are
taken off on the way out.

Ids count per client: one tab cannot cancel another's work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..errors import Cancelled, InputError, MechworkError
from ..execute import executor
from .freeze import freeze
from .session import Session

Reply = Callable[[dict[str, Any]], None]
MOST_WAITING = 32
ASKS = ("look", "undo", "redo", "pin", "difference", "freeze")


@runtime_checkable
class TakesRequests(Protocol):
    """What a host needs: a `Worker`."""

    def ask(self, client: str, message: Mapping[str, Any], reply: Reply) -> None: ...

    def cancel(self, client: str, number: int | None = None) -> None: ...


@dataclass(eq=False)
class LiveRequest:
    """A request on its way."""

    client: str
    number: int
    message: Mapping[str, Any]
    reply: Reply
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> tuple[str, str]:
        """A newer request of the same client and key replaces a waiting one."""
        return self.client, str(self.message.get("key") or self.number)

    def say(self, what: str, data: Mapping[str, Any]) -> None:
        """Tell the client; one that is gone hears nothing, and its work goes on to the end of its unit."""
        try:
            self.reply({"id": self.number, "what": what, **data})
        except Exception:  # noqa: BLE001 - whatever carried messages to the client is gone: its work is of no use
            self.stop.set()


class Worker:
    """See the module. Starts its thread; `close` ends it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._waiting: deque[LiveRequest] = deque()
        self._running: LiveRequest | None = None
        self._changed = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="the live session", daemon=True)
        self._thread.start()

    def ask(self, client: str, message: Mapping[str, Any], reply: Reply) -> None:
        """Queue a request; raises `InputError` for one without a number, of unknown kind, or when too many wait."""
        number = message.get("id")
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(f"a request has a whole number as id; got {number!r:.40}")
        if "gesture" not in message and message.get("ask") not in ASKS:
            raise InputError(f"a request has a gesture, or asks for one of {', '.join(ASKS)}")
        request = LiveRequest(client, number, message, reply)
        with self._changed:
            stale = [other for other in self._waiting if other.key == request.key]
            if len(self._waiting) - len(stale) >= MOST_WAITING:
                raise InputError(f"{MOST_WAITING} requests wait already; wait for their answers, or cancel some")
            self._waiting = deque(other for other in self._waiting if other not in stale)
            self._waiting.append(request)
            self._changed.notify_all()
        for other in stale:
            other.say("replaced", {})

    def cancel(self, client: str, number: int | None = None) -> None:
        """Stop a client's request, or (None) all of them: waiting ones now, the running one as soon as it hears."""
        with self._changed:
            mine = [r for r in self._waiting if r.client == client and number in (None, r.number)]
            self._waiting = deque(other for other in self._waiting if other not in mine)
            running = self._running
            if running is not None and running.client == client and number in (None, running.number):
                running.stop.set()
        for request in mine:
            request.say("cancelled", {})

    def close(self, timeout: float = 10.0) -> None:
        """Stop what runs, drop what waits, and end the thread."""
        with self._changed:
            self._ends = True
            if self._running is not None:
                self._running.stop.set()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(timeout)

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ends:
                    self._changed.wait()
                if self._ends:
                    return
                request = self._running = self._waiting.popleft()
            what, data = self._answer(request)
            with self._changed:
                self._running = None
            request.say(what, data)

    def _answer(self, request: LiveRequest) -> tuple[str, dict[str, Any]]:
        def emit(what: str, data: dict[str, Any]) -> None:
            if request.stop.is_set():
                raise Cancelled("stopped, as asked")
            request.say(what, {"data": data})

        try:
            with executor("local", cancel=request.stop.is_set):
                return "result", self._run(request, emit)
        except Cancelled:
            return "cancelled", {}
        except MechworkError as error:
            return "error", {"message": str(error), "kind": type(error).__name__}
        except Exception as error:  # noqa: BLE001 - a session outlives what one gesture meets
            return "error", {"message": f"unexpected {type(error).__name__}: {error}"[:500], "kind": "unexpected"}

    def _run(self, request: LiveRequest, emit: Any) -> dict[str, Any]:
        message, session = request.message, self.session
        if "gesture" in message:
            answer = session.do(message["gesture"], emit).to_json()
            return {"answer": answer, "look": session.look()}
        match message["ask"]:
            case "undo":
                session.undo()
            case "redo":
                session.redo()
            case "pin":
                session.pin(str(message.get("name", "")))
            case "difference":
                return {"difference": session.difference(message.get("view"), emit=emit)}
            case "freeze":
                return {"page": freeze(session)}
        return {"look": session.look()}
