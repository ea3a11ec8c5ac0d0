"""The graph at first sight in a real browser: levels, keys on a fresh page, links, edges, touch."""

import json
from urllib.parse import parse_qs

import pytest

from mechwork.render import GraphOptions, render_graph
from tests.browser import OpenPage, Tab
from tests.render import synthetic

OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('.mw-nodes .mw-node')].filter((n) => n.style.display !== 'none')
    .map((n) => n.querySelector('.mw-label').getBoundingClientRect());
  let found = 0;
  boxes.forEach((a, i) => boxes.forEach((b, j) => {
    if (i < j && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) found++;
  }));
  return [boxes.length, found, Math.min(...boxes.map((b) => b.height))];
}"""


@pytest.fixture
def tab(open_page: OpenPage) -> Tab:
    return open_page(
        render_graph(synthetic.circuit(), GraphOptions(curve=synthetic.curve()), scores=synthetic.scores())
    )


def test_the_first_view_is_the_skeleton_and_says_what_it_carries(tab: Tab) -> None:
    shown = tab.state()["shown"]
    assert 12 <= shown <= 25
    assert len(tab.drawn()) == shown
    assert (
        "of the faithfulness (between measured sizes, corrupt ablation)" in tab.page.locator(".mw-share").text_content()
    )
    n, overlaps, height = tab.page.evaluate(OVERLAPS)
    assert n > 5
    assert overlaps == 0
    assert height >= 10
    more = tab.page.evaluate("() => mechwork.graphs[0].graph().m")
    tab.page.locator(".mw-exact").fill(str(more))
    tab.page.locator(".mw-exact").press("Enter")
    assert len(tab.drawn()) == more
    assert tab.page.evaluate(OVERLAPS)[1] == 0


def test_keys_work_on_a_fresh_page(tab: Tab) -> None:
    before = tab.state()["shown"]
    tab.page.keyboard.press("]")
    assert tab.state()["shown"] > before
    tab.page.keyboard.press("Control+z")
    assert tab.state()["shown"] == before
    tab.page.keyboard.press("ArrowUp")
    assert tab.page.evaluate("() => document.activeElement.closest('.mw-node') !== null")


def test_the_state_is_in_the_address_and_comes_back(tab: Tab) -> None:
    tab.click_node("a4.h1")
    tab.page.keyboard.press("p")
    state = tab.state()
    address = tab.address("pins")
    said = json.loads(parse_qs(address.lstrip("#"))["mw-graph-0"][0])
    assert said["focus"] == "a4.h1"
    assert said["pins"] == ["a4.h1"]
    tab.page.reload()
    tab.page.wait_for_selector(".mw-nodes .mw-node", state="attached")
    assert {k: tab.state()[k] for k in ("focus", "pins", "shown")} == {k: state[k] for k in ("focus", "pins", "shown")}
    tab.page.evaluate("() => { location.hash = '#mw-graph-0=%7Bbroken'; location.reload() }")
    tab.page.wait_for_selector(".mw-nodes .mw-node", state="attached")
    assert tab.state()["focus"] is None


def test_a_reload_right_after_a_gesture_loses_nothing(tab: Tab) -> None:
    page = tab.page

    def again() -> dict[str, object]:
        page.wait_for_selector(".mw-nodes .mw-node", state="attached")
        return tab.state()

    tab.node("a4.h1").click()
    page.reload()
    assert again()["focus"] == "a4.h1"
    # within one task, before any frame could be drawn
    with page.expect_navigation():
        page.evaluate("() => { mechwork.graphs[0].actions.pin('a4.h1'); location.reload() }")
    assert again()["pins"] == ["a4.h1"]
    # what follows faster than the address is written: put aside, or left and come back to
    several = "() => { for (const n of [3, 4, 5, 6]) mechwork.graphs[0].store.set({ shown: n }, 'shown') }"
    page.evaluate(several)
    page.evaluate("() => { Object.defineProperty(document, 'hidden', { get: () => true }); "
                  "document.dispatchEvent(new Event('visibilitychange')) }")  # fmt: skip
    assert "shown%22%3A6" in page.evaluate("() => location.hash")
    page.evaluate(several.replace("5, 6", "5, 7"))
    page.goto("about:blank")
    page.go_back()
    assert again()["shown"] == 7


def test_a_click_on_an_edge_tells_it_and_a_node_under_the_pointer_shows_its_edges(tab: Tab) -> None:
    x, y = tab.page.evaluate(
        """() => { const path = document.querySelector('.mw-edges path:last-child'),
        at = path.getPointAtLength(path.getTotalLength() / 2);
        const p = at.matrixTransform(path.getScreenCTM()); return [p.x, p.y] }"""
    )
    tab.page.mouse.click(x, y)
    tab.settle()
    assert "→" in tab.page.locator(".mw-said").text_content()
    assert "score" in tab.page.locator(".mw-said").text_content()
    tab.node("a4.h1").hover()
    tab.settle()
    assert tab.page.locator(".mw-near .mw-value").count() > 1
    values = set(tab.page.locator(".mw-near .mw-value").all_text_contents())
    assert all(value[0] in "+−0" for value in values)


def test_nodes_outside_the_first_view_come_in_with_a_focus(tab: Tab) -> None:
    far = tab.page.evaluate(
        "() => { const g = mechwork.graphs[0].graph(); return g.names[[...g.core.keys()].find((i) => !g.core[i])] }"
    )
    tab.page.evaluate("(name) => mechwork.select(name, null)", far)
    tab.settle()
    assert tab.node(far).is_visible()
    assert tab.page.evaluate(OVERLAPS)[1] == 0
