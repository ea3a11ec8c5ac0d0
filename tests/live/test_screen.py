"""The page in a real browser: a host of canned answers hands it a port; mouse, keyboard, phone, no host, a frozen page;
and once the whole way, from `serve` to the screen.
"""

from __future__ import annotations

import html
import json
import threading
from pathlib import Path
from typing import Any

import pytest

import mechwork as mw
from mechwork.live import Ablate, Origin, Patch, Session, Worker, freeze
from mechwork.live.page import live_page
from mechwork.live.serve import Doorkeeper, build_app, listen
from tests.browser import OpenPage, Tab


@pytest.fixture(scope="module")
def session() -> Any:
    model = mw.load_model("gpt2-6l")
    made = Session(model, mw.tasks.ioi(model, n=16, seed=0), origin=Origin("ioi", 16, 0))
    yield made
    made.close()


HOST = """<!doctype html><html lang="en"><title>host</title><meta name="viewport" content="width=device-width">
<body style="margin:0">
<iframe title="page" style="border:0;width:100vw;height:100vh" sandbox="allow-scripts allow-downloads"></iframe>
<script>
const canned = CANNED, asked = []; window.asked = asked;
const channel = new MessageChannel(), port = channel.port1;
port.onmessage = ({ data }) => {
  asked.push(data);
  const what = data.gesture ? data.gesture.do : data.ask;
  const answer = canned[what];
  if (!answer) { port.postMessage({ id: data.id, what: "error", message: "refused: <b>" + what + "</b>" }); return; }
  const early = () => ({ ...answer.answer.data, controls: null });
  if (what === "ablate") port.postMessage({ id: data.id, what: "progress", data: early() });
  port.postMessage({ id: data.id, what: "result", ...answer });
};
const frame = document.querySelector("iframe");
const greet = () => frame.contentWindow.postMessage("mechwork-live", "*", [channel.port2]);
frame.addEventListener("load", greet, { once: true });
frame.srcdoc = PAGE;
</script>"""


def canned(session: Session) -> dict[str, Any]:
    """What a host would answer, from a real session."""
    found: dict[str, Any] = {"look": {"look": session.look()}}
    for gesture in ({"do": "attribution"}, {"do": "attention", "head": "a4.h1"}, {"do": "lens", "column": 7}):
        answer = session.do(gesture).to_json()
        found[gesture["do"]] = {"answer": answer, "look": session.look()}
    for gesture in ({"do": "ablate", "place": "a4.h1"}, {"do": "patch", "place": "a4.h1"}, {"do": "restore"}):
        answer = session.do(gesture).to_json()
        found[gesture["do"]] = {"answer": answer, "look": session.look()}
    for _ in range(3):
        session.undo()
    found["undo"] = {"look": session.look()}
    return found


def script(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c")


def host(session: Session) -> str:
    return HOST.replace("CANNED", script(canned(session))).replace("PAGE", script(live_page()))


def test_a_click_ablates_and_the_answer_stands_beside_its_controls(open_page: OpenPage, session: Session) -> None:
    tab: Tab = open_page(host(session), wait="iframe", width=1280, height=1000)
    page = tab.page.frames[1]
    page.wait_for_selector(".lv-cell[style]")
    assert page.locator("#lv-offline").is_hidden()
    page.locator('[data-place="a4.h1"]').click()
    assert "a4.h1 at every token" in page.locator("#lv-place").inner_text()
    page.locator('[data-action="ablate"]').click()
    page.wait_for_function("() => document.querySelector('#lv-control').textContent.includes('random other place')")
    data = canned(session)["ablate"]["answer"]["data"]
    assert f"{data['metric']:.1f}" in page.locator("#lv-says").inner_text()
    assert page.locator("#lv-scale .control").count() == 3
    assert "mw.ablate(model, pair" in page.locator("#lv-python").inner_text()
    assert page.locator("#lv-cli").inner_text().startswith("mechwork ablate set ioi")
    assert "changed" in str(page.locator('[data-place="a4.h1"]').get_attribute("class"))
    assert page.locator("#lv-history li").count() == 1
    tab.picture("live")
    # keys: the focus stays at the box, every answer is announced
    page.locator('[data-place="a4.h1"]').focus()
    page.page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "a4.h2"
    page.page.keyboard.press("p")
    page.wait_for_function("() => document.querySelector('#lv-says').textContent.startsWith('With the other')")
    assert page.evaluate("document.activeElement.dataset.place") == "a4.h2"
    assert "goes from" in page.locator("#lv-live").inner_text()
    page.page.keyboard.press("Control+z")
    page.page.keyboard.press("l")
    page.wait_for_selector("#lv-view table")
    page.locator('[data-at="3"]').click()
    assert "token 3" in page.locator("#lv-place").inner_text()
    page.page.keyboard.press("s")  # the host refuses it: the message stands as text, the page goes on
    page.wait_for_selector("#lv-error:not([hidden])")
    assert page.locator("#lv-error").inner_text() == "refused: <b>steer</b>"
    sent = [m["gesture"] for m in tab.page.evaluate("asked") if "gesture" in m]
    assert {"do": "ablate", "place": "a4.h1", "kind": "mean"} in sent
    assert {"do": "patch", "place": "a4.h2"} in sent
    assert {"do": "steer", "layer": 4, "strength": 1} in sent


def test_on_a_phone_the_gestures_are_under_the_thumb(open_page: OpenPage, session: Session) -> None:
    tab = open_page(host(session), wait="iframe", width=390, height=844, touch=True)
    page = tab.page.frames[1]
    page.wait_for_selector(".lv-cell[style]")
    page.locator('[data-place="a4.h1"]').tap()
    box = page.locator('[data-action="ablate"]').bounding_box()
    assert box is not None
    assert box["height"] >= 44
    assert box["y"] + box["height"] <= 844
    page.locator('[data-action="ablate"]').tap()
    page.wait_for_selector("#lv-answer:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.picture("live-phone")


def test_a_frozen_page_shows_its_answers_and_asks_nobody(
    open_page: OpenPage, session: Session, tmp_path: Path, axe: str
) -> None:
    session.do(Ablate("a4.h1"))
    session.do(Patch("a5.h0@END"))
    freeze(session, tmp_path / "kept.html")
    for _ in range(2):
        session.undo()
    tab = open_page((tmp_path / "kept.html").read_text(encoding="utf-8"), wait="#lv-history li")
    page = tab.page
    assert page.locator("#lv-history li").count() == 2
    assert page.locator("#lv-offline").is_visible()
    page.locator("#lv-history button").first.click()
    assert "Without a4.h1" in page.locator("#lv-says").inner_text()
    assert page.locator('[data-action="ablate"]').is_disabled()
    assert page.locator("#lv-sweep").is_disabled()
    page.evaluate(axe)
    found = page.evaluate("axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.nodes[0].html))")
    assert found == []


def test_hostile_text_is_text(open_page: OpenPage, session: Session) -> None:
    record = {"look": session.look(), "answers": []}
    record["look"]["clean"][1] = "<img src=x onerror=alert(1)>\u202e"
    record["look"]["now"]["top"][0]["word"] = "</script><script>alert(2)</script>"
    tab = open_page(live_page(record), wait=".lv-token")
    assert tab.page.locator("#lv-clean img").count() == 0
    assert tab.page.locator("#lv-clean .lv-token").nth(1).inner_text().startswith("<img src=x")
    assert html.unescape("&lt;/script") in tab.page.locator("#lv-top").inner_text()


def test_the_whole_way_from_the_printed_address_to_the_answer(browser: Any, session: Session) -> None:
    """Two tabs in one browser, one real server; the number on the screen is the session's."""
    pytest.importorskip("starlette")
    import uvicorn

    worker, door_socket = Worker(session), listen(0)
    door = Doorkeeper(door_socket.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(build_app(worker, live_page, door), log_level="critical", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door_socket]}, daemon=True)
    thread.start()
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    errors: list[str] = []
    try:
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto(door.address)
        assert "token" not in tab.url
        page = tab.frame_locator("iframe")
        page.locator('[data-place="a4.h1"]').click(timeout=60000)
        page.locator('[data-action="ablate"]').click()
        page.locator("#lv-scale .control").nth(2).wait_for(state="attached", timeout=60000)
        metric = session.history[-1].answer.data["metric"]
        assert f"to {metric:.1f} (" in page.locator("#lv-says").inner_text()
        second = context.new_page()
        second.goto(tab.url)
        other = second.frame_locator("iframe")
        other.locator("#lv-history li").first.wait_for(timeout=60000)
        assert "ablate a4.h1" in other.locator("#lv-history").inner_text()
        second.close()
        assert page.locator("#lv-error").is_hidden()
        server.should_exit = True
        thread.join(20)
        page.locator("#lv-error:not([hidden])").wait_for(timeout=20000)
        assert "The model has gone" in page.locator("#lv-error").inner_text()
        real = [e for e in errors if "ERR_CONNECTION_REFUSED" not in e and "ERR_INCOMPLETE_CHUNKED" not in e]
        assert real == []
    finally:
        context.close()
        server.should_exit = True
        worker.close()
        session.undo()
