"""`explore`: the live workbench in a notebook, over the same session as `mechwork serve`.

Two outputs stand below the cell: the page in a sandboxed frame, as plain HTML that a stored notebook keeps, and a small
widget (anywidget, extra ``[notebook]``) that finds the frame and hands it a message port. Reopened without a kernel the
page is still there; its buttons say how to make it live.
"""

from __future__ import annotations

import html
import importlib
import uuid
import weakref
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..arguments import checked
from ..circuits import Circuit, EdgeScores
from ..discovery.found import Discovery
from ..errors import InputError, MechworkError
from ..features import FeatureSet
from ..models.identity import weights_sha256
from ..tasks import find_task
from ..tasks.task import Task
from .commands import Origin
from .freeze import freeze, session_record
from .page import live_page
from .session import Session
from .worker import TakesRequests, Worker

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HEIGHT = 980
"""Pixels of the frame."""
FEWEST = 8
"""Pairs of a task that the command line makes."""
MOST_LETTERS = 64 * 1024
"""Of a message from the page."""


class Explorer:
    """A session with a notebook's outputs: `session` for code, `freeze` for a page, `close` when it is done.

    Shown at the end of a cell it becomes the page and its widget.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.worker = session, Worker(session)
        self._widget: Any = None
        self._mark = f"mw-live-{uuid.uuid4().hex}"
        self._close = weakref.finalize(self, _close, self.worker, session)

    def freeze(self, path: str, *, force: bool = False) -> str:
        """Write the session as an offline page; returns the path. Raises what `live.freeze.freeze` raises."""
        freeze(self.session, path, force=force)
        return path

    def close(self) -> None:
        """End the worker and let go of the model."""
        self._close()

    def page(self) -> str:
        """The frame with the page and its present record, as HTML for a notebook's output."""
        page = live_page(session_record(self.session))
        return (
            f'<iframe id="{self._mark}" title="mechwork live" sandbox="allow-scripts allow-downloads" '
            f'allow="clipboard-write" width="100%" height="{HEIGHT}" frameborder="0" srcdoc="{html.escape(page)}">'
            "</iframe>"
        )

    @property
    def widget(self) -> Any:
        """The relay between the frame and this process. Raises `InputError` without anywidget."""
        if self._widget is None:
            self._widget = make_widget(self.worker, self._mark)
        return self._widget

    def _ipython_display_(self) -> None:
        from IPython.display import display

        widget = self.widget
        display({"text/html": self.page(), "text/plain": repr(self)}, raw=True)
        display(widget)

    def _display_(self) -> Any:
        """What marimo shows."""
        marimo: Any = importlib.import_module("marimo")
        return marimo.vstack([marimo.Html(self.page()), marimo.ui.anywidget(self.widget)])


def _close(worker: Worker, session: Session) -> None:
    worker.close()
    session.close()


def require_notebook() -> None:
    """Raises `InputError` when the package of the extra is not installed."""
    try:
        importlib.import_module("anywidget")
    except ImportError as error:
        raise InputError(
            "in a notebook mw.explore needs anywidget, which is missing. pip install 'mechwork[notebook]', and restart "
            "the kernel; mechwork serve needs none."
        ) from error


@cache
def _relay() -> str:
    return resources.files("mechwork.live").joinpath("widget.js").read_text(encoding="utf-8")


def make_widget(worker: TakesRequests, name: str) -> Any:
    """A widget that relays messages between the frame called `name` and the worker."""
    require_notebook()
    anywidget: Any = importlib.import_module("anywidget")  # an extra, so that no type checker need have it
    import traitlets

    class LiveRelay(anywidget.AnyWidget):
        """Finds the frame by its name, and carries messages both ways."""

        _esm = _relay()
        mark = traitlets.Unicode(name).tag(sync=True)

    relay = LiveRelay()
    relay.on_msg(lambda _widget, content, _buffers: hear(worker, content, relay.send))
    return relay


def hear(worker: TakesRequests, content: Any, send: Any) -> None:
    """One message of a page: acknowledged, then queued, or answered with an error."""
    if not isinstance(content, dict) or not isinstance(content.get("client"), str) or len(str(content)) > MOST_LETTERS:
        return
    message = {name: value for name, value in content.items() if name != "client"}
    client, number = content["client"], message.get("id")
    send({"what": "heard", "client": client})  # a page that hears nothing says that the kernel is busy, or has gone
    what = message.pop("what", None)
    if what == "ping":
        return
    if what == "cancel":
        worker.cancel(client, number if isinstance(number, int) else None)
        return
    try:
        worker.ask(client, message, lambda answer: send({**answer, "client": client}))
    except InputError as error:
        send({"id": number, "client": client, "what": "error", "message": str(error)})


@checked
def explore(
    model: TransformerBridge | Discovery,
    task: Task | TransformerBridge | None = None,
    *,
    row: int = 0,
    circuit: Circuit | None = None,
    scores: EdgeScores | None = None,
    features: FeatureSet | None = None,
) -> Explorer:
    """The live workbench on a model and a task, or on a discovery: ablate, patch and steer what you click.

    ``explore(found)`` brings the discovery's task, scores and circuit; one that was read from a folder needs its model:
    ``explore(found, model)``. In a notebook the result, at the end of a cell, is the page; `Explorer.session` takes the
    same gestures from code; `features` are sparse coders whose features can be scaled. Cost: 3 forwards of one pair.

    Raises `InputError` for what is neither, a model of other weights, a task of another model.

    >>> live = explore(model, task)
    >>> from mechwork.live import Ablate
    >>> round(live.session.do(Ablate("a4.h1")).data["change"], 1) < 0
    True
    >>> live.close()
    """
    if isinstance(model, Discovery):
        found, given = model, model.model if task is None else task
        if given is None or isinstance(given, Task):
            raise InputError(f"a discovery needs its model: explore(found, load_model({found.model_name!r}))")
        if weights_sha256(given) != found.request.get("weights", weights_sha256(given)):
            raise InputError(f"this discovery is of {found.model_name} with other weights. Pass that model.")
        kept = found.circuit if "circuit" in found.named else None
        return Explorer(
            Session(
                given,
                found.task,
                row=row,
                circuit=circuit or kept,
                scores=scores or found.named.get("scores"),
                features=features,
            )
        )
    if not isinstance(task, Task):
        raise InputError(
            f"explore takes (model, task) or a discovery; got {type(model).__name__}, {type(task).__name__}"
        )
    return Explorer(
        Session(
            model, task, row=row, circuit=circuit, scores=scores, features=features, origin=find_origin(model, task)
        )
    )


def find_origin(model: TransformerBridge, task: Task) -> Origin:
    """How the task was made, where making it of its name and size with seed 0 gives the same pairs."""
    try:
        again = find_task(task.name)(model, n=len(task), seed=0)
    except MechworkError:
        return Origin()
    same = len(task) >= FEWEST and again.provenance() == task.provenance()
    return Origin(task.name, len(task), 0) if same else Origin()
