"""In a notebook: the frame that a stored notebook keeps, the relay beside it, and what cannot be explored."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mechwork as mw
from mechwork.cli import main
from mechwork.errors import InputError
from mechwork.live import Ablate, Explorer, gesture_json
from mechwork.live.explore import hear
from tests.browser import OpenPage


@pytest.fixture(scope="module")
def live() -> Any:
    model = mw.load_model("gpt2-6l")
    made = mw.explore(model, mw.tasks.ioi(model, n=16, seed=0))
    yield made
    made.close()
    assert "forward" not in vars(model)


class Asked:
    """A worker that answers at once."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ask(self, client: str, message: Any, reply: Any) -> None:
        if message.get("id") == 13:
            raise InputError("too many")
        self.asked.append((client, dict(message)))
        reply({"id": message["id"], "what": "result"})

    def cancel(self, client: str, number: int | None = None) -> None:
        self.asked.append((client, "cancel", number))


def test_messages_go_to_the_worker_and_back_to_their_own_page() -> None:
    worker, sent = Asked(), []
    hear(worker, {"client": "a", "id": 1, "ask": "look"}, sent.append)
    hear(worker, {"client": "a", "id": 1, "what": "cancel"}, sent.append)
    hear(worker, {"client": "b", "id": 13, "ask": "look"}, sent.append)
    for wrong in ("look", {"id": 1}, {"client": 3, "id": 1}, {"client": "a", "id": 1, "pad": "x" * 70000}):
        hear(worker, wrong, sent.append)
    assert worker.asked == [("a", {"id": 1, "ask": "look"}), ("a", "cancel", 1)]
    heard = [{"what": "heard", "client": name} for name in "aab"]  # said at once, whatever comes of it
    assert [message for message in sent if message["what"] == "heard"] == heard
    assert [message for message in sent if message["what"] != "heard"] == [
        {"id": 1, "what": "result", "client": "a"},
        {"id": 13, "client": "b", "what": "error", "message": "too many"},
    ]
    hear(worker, {"client": "a", "what": "ping"}, sent.append)
    assert sent[-1] == {"what": "heard", "client": "a"}
    assert len(worker.asked) == 2


def test_what_cannot_be_explored(bundled_model: Any, live: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\(model, task\) or a discovery"):
        mw.explore(bundled_model)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(InputError, match=r"pip install 'mechwork\[notebook\]'"):
        assert live.widget


def test_the_widget_knows_its_frame(live: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """anywidget's own part is played by a class with its two methods."""
    traitlets = pytest.importorskip("traitlets")

    class AnyWidget(traitlets.HasTraits):
        def on_msg(self, hears: Any) -> None:
            self.hears = hears

        def send(self, message: Any) -> None:
            self.sent = message

    fake = ModuleType("anywidget")
    fake.AnyWidget = AnyWidget  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anywidget", fake)
    widget = live.widget
    assert f'id="{widget.mark}"' in live.page()
    widget.hears(widget, {"client": "a", "id": 1, "what": "cancel"}, [])
    assert live.widget is widget


def test_a_stored_notebook_keeps_the_page_and_the_relay_makes_it_live(
    open_page: OpenPage, live: Explorer, tmp_path: Path
) -> None:
    live.session.do(Ablate("a4.h1"))
    live.freeze(str(tmp_path / "kept.html"))
    look = live.session.look()
    relay = resources.files("mechwork.live").joinpath("widget.js").read_text(encoding="utf-8")
    stored = f"<!doctype html><title>stored</title>{live.page()}"
    tab = open_page(stored, wait="iframe")
    page = tab.page.frames[1]
    page.wait_for_selector("#lv-history li")
    assert page.locator("#lv-offline").is_visible()
    script = (
        relay.replace("export default { render };", "")
        + """
    const heard = {}; window.told = [];
    const model = { get: () => document.querySelector("iframe").id, on: (k, f) => { heard[k] = f; }, off: () => {},
      send: (m) => { told.push(m); heard["msg:custom"]({ id: m.id, client: m.client, what: "result", look: window.look,
                     answer: { gesture: m.gesture ?? {}, data: { values: {}, what: "direct share" } } }); } };
    render({ model, el: document.body }); null;  // what is left would be called
    """
    )
    tab.page.evaluate("(look) => { window.look = look; }", look)
    tab.page.evaluate(script)
    tab.page.wait_for_function("() => told.length >= 2")
    tab.settle()
    page = tab.page.frames[1]
    page.wait_for_selector("#lv-freeze:not([disabled])")
    assert page.locator("#lv-offline").is_hidden()
    live.session.undo()


@pytest.mark.slow
def test_a_discovery_brings_its_task_and_circuit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mw.load_model("attn-only-2l")
    task = mw.tasks.induction(model, n=16, seed=0)
    found = mw.discover(model, task, out=tmp_path / "found", mode="quick")
    live = mw.explore(found)
    try:
        assert live.session.circuits.given is not None
        answer = live.session.do({"do": "keep", "n_edges": 0})
        assert answer.data["n_edges"] == found.circuit.n_edges
        answer = live.session.do({"do": "toggle", "parts": [found.circuit.nodes[1]]})
        assert answer.data["n_edges"] < found.circuit.n_edges
        capsys.readouterr()
        gesture = json.dumps(gesture_json(answer.gesture))
        assert main(["ask", str(tmp_path / "found"), gesture, "--json"]) == 0  # opened as `mechwork serve FOLDER` does
        assert json.loads(capsys.readouterr().out)["answers"][0]["data"] == json.loads(json.dumps(answer.data))
        read = mw.load_discovery(tmp_path / "found")
        with pytest.raises(InputError, match="needs its model"):
            mw.explore(read)
        with pytest.raises(InputError, match="other weights"):
            mw.explore(read, mw.load_model("gpt2-6l"))
    finally:
        live.close()
