"""The graph as the reader has made it, in a real browser: collapsed, or pinned nodes alone; keys after dialogs;
fingers.
"""

import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mechwork.circuits.graph.circuit import Circuit
from mechwork.render import GraphOptions, render_graph, render_report
from tests.browser import OpenPage, Tab
from tests.render import synthetic

THROUGH = """() => { const a = mechwork.graphs[0], g = a.graph(), seen = a.seen(); let found = 0;
  const inside = (x, y, i) => Math.abs(x - g.x[i]) < g.width[i] / 2 && Math.abs(y - g.y[i]) < g.height[i] / 2;
  document.querySelectorAll('.mw-edges path').forEach((path) => { if (path.style.display === 'none') return;
    const length = path.getTotalLength(), ends = [path.getPointAtLength(0), path.getPointAtLength(length)];
    const own = [...g.names.keys()].filter((i) => ends.some((p) => Math.hypot(Math.max(0, Math.abs(p.x - g.x[i]) -
      g.width[i] / 2), Math.max(0, Math.abs(p.y - g.y[i]) - g.height[i] / 2)) < 10));
    for (const i of g.names.keys()) if (seen.nodeOn[i] && !own.includes(i))
      for (let k = 0; k <= 40; k++) { const p = path.getPointAtLength((k / 40) * length);
        if (inside(p.x, p.y, i)) { found++; break } } });
  return found }"""
PINS = ["input", "a0.h1", "a2.h0", "a4.h1", "logits"]


@pytest.fixture
def tab(open_page: OpenPage) -> Tab:
    return open_page(
        render_graph(synthetic.circuit(), GraphOptions(curve=synthetic.curve()), scores=synthetic.scores())
    )


def weights(circuit: Circuit) -> dict[tuple[str, str], float]:
    """The score of every edge by its two nodes, kinds of reader summed."""
    assert circuit.scores is not None
    found: dict[tuple[str, str], float] = {}
    for edge in circuit.edges:
        ends = edge.split("->")[0], edge.split("->")[1].split("<")[0]
        found[ends] = found.get(ends, 0.0) + float(circuit.scores[circuit.space.edge_index(edge)])
    return found


def drawn_scores(tab: Tab) -> dict[tuple[str, str], float]:
    rows = tab.page.evaluate(
        "() => { const a = mechwork.graphs[0], g = a.graph(), seen = a.seen(); return [...Array(g.m).keys()]"
        ".filter((e) => seen.edgeOn[e]).map((e) => [g.names[g.source[e]], g.names[g.target[e]], g.score[e]]) }"
    )
    found: dict[tuple[str, str], float] = {}
    for source, target, score in rows:
        found[source, target] = found.get((source, target), 0.0) + score
    return found


@pytest.mark.parametrize("by", ["layer", "attention", "role"])
def test_a_collapse_sums_the_edges_between_its_groups(tab: Tab, by: str) -> None:
    circuit = synthetic.circuit()
    tab.page.locator(".mw-exact").fill(str(circuit.n_edges))
    tab.page.locator(".mw-exact").press("Enter")
    tab.page.get_by_label("Collapse nodes into one").select_option(by)
    tab.settle()

    def group(node: str) -> str:
        if node in ("input", "logits"):
            return node
        head, layer = node.startswith("a"), node[1:].split(".", maxsplit=1)[0]
        if by == "role":
            return circuit.roles.get(node, node)
        return f"layer {layer}" if by == "layer" else f"attention {layer}" if head else node

    size: dict[str, set[str]] = {}
    for node in circuit.nodes:
        size.setdefault(group(node), set()).add(node)
    expected: dict[tuple[str, str], float] = {}
    for (source, target), score in weights(circuit).items():
        ends = tuple(group(n) if len(size[group(n)]) > 1 else n for n in (source, target))
        if ends[0] != ends[1]:
            expected[ends] = expected.get(ends, 0.0) + score  # type: ignore[index,arg-type]
    found = drawn_scores(tab)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert any(len(members) > 1 for members in size.values())
    assert "collapsed" in tab.page.locator(".mw-active").text_content()
    tab.picture(f"graph-collapsed-{by}")
    tab.page.keyboard.press("Escape")
    tab.page.get_by_label("Collapse nodes into one").select_option("")
    assert len(tab.drawn()) == circuit.n_edges


def test_a_collapse_by_layer_runs_around_foreign_nodes(tab: Tab) -> None:
    tab.page.get_by_label("Collapse nodes into one").select_option("layer")
    tab.settle()
    assert tab.page.locator(".mw-edges path:visible").count() > 5
    assert tab.page.evaluate(THROUGH) == 0


def test_pinned_nodes_stand_alone_with_the_edges_between_them(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    page.keyboard.press("o")
    assert "Pin nodes first" in page.locator(".mw-said").text_content()
    for name in PINS:
        page.evaluate("(name) => mechwork.graphs[0].actions.pin(name)", name)
    page.keyboard.press("o")
    tab.settle()
    assert tab.page.locator(".mw-nodes .mw-node:visible").count() == len(PINS)
    expected = {ends: v for ends, v in weights(synthetic.circuit()).items() if set(ends) <= set(PINS)}
    assert drawn_scores(tab) == pytest.approx(expected, rel=1e-4)
    assert len(expected) >= 3
    assert page.evaluate(THROUGH) == 0
    assert page.locator(".mw-share").text_content() == ""
    tab.picture("graph-pinned-alone")
    said = json.loads(parse_qs(tab.address("only").lstrip("#"))["mw-graph-0"][0])
    assert said["only"] is True
    page.reload()
    page.wait_for_selector(".mw-nodes .mw-node", state="attached")
    assert drawn_scores(tab) == pytest.approx(expected, rel=1e-4)

    page.get_by_role("button", name="Export ▾").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Circuit JSON").click()
    taken = Circuit.load(Path(download.value.path()))
    assert {(e.split("->")[0], e.split("->")[1].split("<")[0]) for e in taken.edges} == set(expected)
    page.get_by_role("button", name="Export ▾").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="JSON (graph and state)").click()
    state = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["state"]
    assert (state["only"], state["pins"]) == (True, PINS)
    page.get_by_role("button", name="Back to the whole graph").click()
    tab.settle()
    assert tab.state()["only"] is False


def test_keys_work_after_every_dialog(tab: Tab) -> None:
    page = tab.page

    def answers() -> None:
        before = tab.state()["shown"]
        page.keyboard.press("]")
        assert tab.state()["shown"] > before
        page.keyboard.press("[")

    page.keyboard.press("?")
    page.get_by_role("button", name="Close").click()
    answers()
    page.keyboard.press("?")
    page.keyboard.press("Escape")
    answers()
    page.get_by_role("button", name="Export ▾").click()
    page.keyboard.press("Escape")
    answers()
    for name in ("a4.h1", "a4.h2"):
        page.evaluate("(name) => mechwork.graphs[0].actions.pin(name)", name)
    page.get_by_role("button", name="Group pinned").click()
    tab.settle()
    answers()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert len(tab.state()["groups"]) == 0


def test_in_a_report_the_graph_in_view_answers(open_page: OpenPage) -> None:
    tab = open_page(render_report(synthetic.task(), synthetic.scores(), synthetic.circuit()), width=1440)
    before = tab.state()["shown"]
    tab.page.keyboard.press("]")
    assert tab.state()["shown"] == before  # the first screen is in view, not the graph
    tab.page.evaluate("() => document.querySelector('.mw-graph').scrollIntoView({ block: 'center' })")
    tab.page.keyboard.press("]")
    assert tab.state()["shown"] > before


def test_fingers_find_nodes_buttons_and_edges(open_page: OpenPage) -> None:
    html = render_report(synthetic.task(), *synthetic.everything()[:8])
    tab = open_page(html, width=390, height=844, touch=True)
    page = tab.page
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, summary, select, input, .mw-contents a')]
        .filter((e) => e.checkVisibility() && e.type !== 'checkbox' && !e.closest('.modebar'))
        .map((e) => [e.outerHTML.slice(0, 90), e.getBoundingClientRect()]).filter(([, box]) => box.height < 43.5)
        .map(([text, box]) => [text, box.height])"""
    )
    assert small == []
    page.locator(".mw-stage").first.scroll_into_view_if_needed()
    tab.node("a4.h1").tap()
    assert tab.state()["focus"] == "a4.h1"
    box = tab.node("a2.h0").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] - 6)  # beside the node: the nearest one is meant
    assert tab.state()["focus"] == "a2.h0"
    page.get_by_role("button", name="Pin", exact=True).first.tap()
    assert tab.state()["pins"] == ["a2.h0"]
    heights = page.evaluate(
        "() => [...document.querySelectorAll('.mw-nodes .mw-node')].filter((n) => n.style.display !== 'none')"
        ".map((n) => n.querySelector('.mw-label').getBoundingClientRect().height)"
    )
    assert min(heights) >= 10
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.picture("report-touch")
