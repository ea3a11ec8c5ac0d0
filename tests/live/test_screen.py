"""The page in a real browser: a host of canned answers hands it a port; mouse, keyboard, phone, no host, a frozen page;
and the whole way, from `serve` to the screen. The how-to page's picture is one of these (MECHWORK_ARTEFACTS=DIR keeps
them): live.png of the first test.
"""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mechwork as mw
from mechwork.features import load_features
from mechwork.live import Ablate, Origin, Patch, Session, Worker, freeze
from mechwork.live.page import live_page
from mechwork.live.serve import Doorkeeper, build_app, listen
from tests.browser import OpenPage, Tab
from tests.gate import fewer


@pytest.fixture(scope="module")
def session() -> Any:
    model = mw.load_model("gpt2-6l")
    task, features = mw.tasks.ioi(model, n=16, seed=0), load_features(model)
    made = Session(model, task, origin=Origin("ioi", 16, 0), features=features)
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


def shown(x: float) -> str:
    """As the screen writes a number."""
    return (f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}").replace("-", "\u2212")


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


@dataclass
class Served:
    """A real server of a session, and a browser that opened its address."""

    server: Any
    thread: threading.Thread
    context: Any
    tab: Any
    errors: list[str]

    @property
    def page(self) -> Any:
        return self.tab.frame_locator("iframe")

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@contextmanager
def serving(browser: Any, session: Session, **viewport: Any) -> Iterator[Served]:
    """`mechwork serve` without its command line, opened; no error may be logged but those of a server that ends."""
    pytest.importorskip("starlette")
    import uvicorn

    worker, door_socket = Worker(session), listen(0)
    door = Doorkeeper(door_socket.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(build_app(worker, live_page, door), log_level="critical", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door_socket]}, daemon=True)
    thread.start()
    context = browser.new_context(**(viewport or {"viewport": {"width": 1280, "height": 1000}}))
    errors: list[str] = []
    try:
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto(door.address)
        assert "token" not in tab.url
        served = Served(server, thread, context, tab, errors)
        served.page.locator("#lv-freeze:not([disabled])").wait_for(timeout=60000)
        yield served
        real = [e for e in errors if "ERR_CONNECTION_REFUSED" not in e and "ERR_INCOMPLETE_CHUNKED" not in e]
        assert real == []
    finally:
        context.close()
        server.should_exit = True
        worker.close()


def test_the_whole_way_from_the_printed_address_to_the_answer(browser: Any, session: Session) -> None:
    """Two tabs in one browser, one real server; the number on the screen is the session's."""
    with serving(browser, session) as served:
        page = served.page
        page.locator('[data-place="a4.h1"]').click(timeout=60000)
        page.locator('[data-action="ablate"]').click()
        page.locator("#lv-scale .control").nth(2).wait_for(state="attached", timeout=60000)
        metric = session.history[-1].answer.data["metric"]
        assert f"to {metric:.1f} (" in page.locator("#lv-says").inner_text()
        second = served.context.new_page()
        second.goto(served.tab.url)
        other = second.frame_locator("iframe")
        other.locator("#lv-history li").first.wait_for(timeout=60000)
        assert "ablate a4.h1" in other.locator("#lv-history").inner_text()
        second.close()
        assert page.locator("#lv-error").is_hidden()
        served.end()
        page.locator("#lv-error:not([hidden])").wait_for(timeout=20000)
        assert "The model has gone" in page.locator("#lv-error").inner_text()
    session.undo()


WRITTEN = [
    ("m3.n17+20", "ablate", "Without m3.n17+20"), ("a4.h1@END", "patch", "value at a4.h1@END"),
    ("a4.h1@5", "scale", "With a scaled a4.h1@5"), ("resid_post.3/f414@END", "ablate", "Without resid_post.3/f414@END"),
    ("a9.h9", "ablate", ""),
]  # fmt: skip


@pytest.mark.slow
def test_every_gesture_by_mouse_and_touch(browser: Any, session: Session, artefacts: Path) -> None:
    """Each answers with the session's own number, also where only its place was written; then again on a phone."""
    with serving(browser, session) as served:
        page = served.page

        def says(selector: str, text: str) -> str:
            page.locator(selector, has_text=text).wait_for(timeout=60000)
            return page.locator(selector).inner_text()

        for place, action, words in WRITTEN:
            page.locator("#lv-text").fill(place)
            page.locator("#lv-choose").click()
            page.locator(f'[data-action="{action}"]').click()
            if not words:
                assert "layers of this model" in says("#lv-error", "layer")
                continue
            said = says("#lv-says", words)  # with the effect; then come the controls
            assert ("active feature" if "/f" in place else "other place") in says("#lv-control", "changes it by")
            answer = session.history[-1].answer.data
            assert f"to {shown(answer['metric'])} (" in said
        assert page.locator("#lv-changes button").count() == 4
        page.locator("#lv-changes button").first.click()
        page.locator("#lv-changes button").nth(3).wait_for(state="detached", timeout=60000)
        page.locator('#lv-spans [data-at="S2"]').click()
        page.locator('[data-place="resid_pre.3"]').click()
        page.locator('[data-action="patch"]').click()
        says("#lv-says", "value at resid_pre.3@S2")
        page.locator('[data-action="steer"]').click()
        says("#lv-says", "Steered after resid_post.3")
        page.locator("#lv-active").click()
        says("#lv-view", "are active")
        # a pair of one's own, which has no span S2
        page.locator('[data-place="resid_pre.3"]').click()
        page.locator('[data-action="restore"]').click()
        page.locator("#lv-changes button", has_text="S2").wait_for(state="detached", timeout=60000)
        page.locator("#lv-edit").click()
        page.locator("#lv-c1").fill("When Mary and John went to the shop, John gave a drink to")
        page.locator("#lv-c2").fill("When Mary and John went to the shop, Mary gave a drink to")
        page.locator("#lv-a1").fill(" Maryland ho")
        page.locator("#lv-a2").fill(" John")
        page.locator("#lv-ask").click()
        says("#lv-error", "token")  # an answer of two tokens: said here, and the session goes on
        page.locator("#lv-a1").fill(" Mary")
        page.locator("#lv-a1").press("Enter")
        says("#lv-lead", "Mary")
        page.locator("#lv-undo").click()
        says("#lv-lead", "Erin")
        # two states, and views as their difference
        page.locator("#lv-pinB").click()
        for _ in range(len(session.state.changes)):
            page.locator("#lv-undo").click()
        page.locator('[data-action="restore"]').click()
        page.locator("#lv-pinA").click()
        page.locator("#lv-difference:not([disabled])").click()
        says("#lv-view", "From A to B")
        says("#lv-colours", "difference in direct share")
        page.locator('[data-action="lens"]').click()
        says("#lv-view", "in A and in B")
        page.locator('[data-place="a5.h0"]').click()
        page.locator("#lv-attention").click()
        says("#lv-view", "less in A")
        page.locator("#lv-difference").click()
        # a circuit: scored, kept, an edge and two nodes together taken out
        method = fewer(["eap-ig"], ["relp"])[0]
        page.locator("#lv-method").select_option(method)
        page.locator("#lv-score").click()
        says("#lv-circuit-says", f"scored by {method}")
        page.locator("#lv-edges").fill("60")
        says("#lv-circuit-says", "On this pair the circuit alone says")
        page.locator("#lv-parts summary").click()
        page.locator("#lv-edge-list button").first.click()
        page.locator('#lv-edge-list [aria-pressed="false"]').wait_for(timeout=60000)
        page.locator("#lv-several").click()
        for i in (1, 2):
            page.locator("#lv-nodes button").nth(i).click()
        page.locator("#lv-together").click()
        page.locator('#lv-nodes [aria-pressed="false"]').nth(1).wait_for(timeout=60000)
        assert session.state.circuit is not None
        assert len(session.state.circuit.without) == 3
        faithfulness = session.history[-1].answer.data["faithfulness"]
        assert f"faithfulness {shown(faithfulness)}" in says("#lv-circuit-says", "held-out")
        served.tab.screenshot(path=str(artefacts / "live-circuit.png"), full_page=True)
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with serving(browser, session, **phone) as served:
        page = served.page
        page.locator('[data-place="a4.h1"]').tap()
        for action, words in (
            ("ablate", "Without"),
            ("patch", "other prompt"),
            ("scale", "scaled"),
            ("steer", "Steered"),
        ):
            page.locator(f'[data-action="{action}"]').tap()
            page.locator("#lv-says", has_text=words).wait_for(timeout=60000)
        page.locator('[data-action="attention"]').tap()
        page.locator("#lv-view h3", has_text="looks").wait_for(timeout=60000)
        served.tab.screenshot(path=str(artefacts / "live-phone-served.png"))
    while session.undo():
        pass


@pytest.mark.slow
def test_the_tour_goes_through_by_itself(browser: Any, session: Session, artefacts: Path) -> None:
    """*Do it* at every step that has it; the keyboard alone would do."""
    with serving(browser, session) as served:
        page = served.page
        page.locator("#lv-tour").click()
        for step in range(1, 9):
            page.locator("#lv-guide-says", has_text=f"{step} of 8").wait_for(timeout=60000)
            if page.locator("#lv-guide-do").is_visible():
                page.locator("#lv-guide-do").press("Enter")
                done = {4: ("#lv-says", "Without"), 5: ("#lv-says", "other prompt"), 6: ("#lv-view", "stream says"),
                        7: ("#lv-circuit-says", "held-out")}  # fmt: skip
                if step in done:
                    page.locator(done[step][0], has_text=done[step][1]).wait_for(timeout=60000)
                if step == 4:
                    served.tab.screenshot(path=str(artefacts / "live-tour.png"))
            page.locator("#lv-guide-next").press("Enter")
        page.locator("#lv-guide").wait_for(state="hidden")
        assert page.locator("#lv-error").is_hidden()
    while session.undo():
        pass
