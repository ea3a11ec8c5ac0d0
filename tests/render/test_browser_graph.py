"""The interactive graph as a person uses it: mouse and keyboard, in a real browser, offline."""

from xml.etree import ElementTree

import pytest

from mechwork.circuits.graph.circuit import Circuit
from mechwork.render import Fact, GraphOptions, render_graph
from mechwork.render.graph.payload import graph_payload
from mechwork.render.graph.static import static_svg
from tests.browser import OpenPage, Tab
from tests.render import synthetic


@pytest.fixture
def tab(open_page: OpenPage) -> Tab:
    facts = {"a4.h1": [Fact("Effect", "+1.4 ± 0.1 (SE)")]}
    return open_page(
        render_graph(
            synthetic.circuit(), GraphOptions(title="Circuit for ioi", facts=facts, shown=60), scores=synthetic.scores()
        )
    )


def in_order(circuit: Circuit) -> list[str]:
    """The edges as the graph shows them, strongest connected first."""
    payload = graph_payload(circuit)
    names, edges = payload["nodes"]["name"], payload["edges"]
    marks = ["<q>", "<k>", "<v>", "", ""]
    columns = zip(edges["source"], edges["target"], edges["kind"], strict=True)
    return [f"{names[s]}->{names[t]}{marks[k]}" for s, t, k in columns]


def ancestors(circuit: Circuit, name: str, *, down: bool) -> set[str]:
    """The slow way: breadth-first over edge names."""
    pairs = [(edge.split("->")[0], edge.split("->")[1].split("<")[0]) for edge in circuit.edges]
    found, todo = set(), [name]
    while todo:
        here = todo.pop()
        for source, target in pairs:
            near, far = (source, target) if down else (target, source)
            if near == here and far not in found:
                found.add(far)
                todo.append(far)
    return found


def test_the_whole_circuit_is_drawn_and_counted(tab: Tab) -> None:
    circuit = synthetic.circuit()
    assert sorted(tab.drawn()) == sorted(circuit.edges)
    assert tab.page.locator(".mw-counted").text_content().startswith(f"showing {circuit.n_edges} of 1,108 edges")
    assert tab.page.locator(".mw-nodes .mw-node:visible").count() == len(circuit.nodes)
    assert "negative" in tab.node("a5.h0").locator("../..").get_attribute("class")
    tab.picture("graph-light")


def test_the_script_draws_the_curves_that_python_laid_out(tab: Tab) -> None:
    root = ElementTree.fromstring(
        static_svg(graph_payload(synthetic.circuit(), GraphOptions(shown=60), scores=synthetic.scores()))
    )
    static = {path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path") if "C" in (path.get("d") or "")}
    drawn = set(
        tab.page.evaluate("() => [...document.querySelectorAll('.mw-edges path')].map((p) => p.getAttribute('d'))")
    )
    assert len(drawn) == synthetic.circuit().n_edges

    def numbers(path: str) -> tuple[float, ...]:
        return tuple(float(part) for part in path.replace("M", " ").replace("C", " ").split())

    rounded = {tuple(round(v) for v in numbers(path)) for path in static if path}
    assert sum(tuple(round(v) for v in numbers(path)) in rounded for path in drawn) > 0.9 * len(drawn)


def test_fewer_edges_by_slider_number_and_keys(tab: Tab) -> None:
    circuit = synthetic.circuit()
    tab.page.locator(".mw-exact").fill("10")
    tab.page.locator(".mw-exact").press("Enter")
    assert tab.drawn() == in_order(circuit)[:10]
    assert "strongest 10 of" in tab.page.locator(".mw-active").text_content()
    tab.page.locator(".mw-threshold .mw-slider").focus()
    tab.page.keyboard.press("Home")
    assert tab.drawn() == in_order(circuit)[:1]
    tab.page.keyboard.press("End")
    assert len(tab.drawn()) == circuit.n_edges
    tab.page.locator(".mw-hit[tabindex='0']").focus()
    tab.page.keyboard.press("[")
    assert tab.state()["shown"] < circuit.n_edges


def test_a_click_shows_direct_edges_ancestors_and_descendants(tab: Tab) -> None:
    circuit = synthetic.circuit()
    tab.click_node("a2.h0")
    near = {"a2.h0"}
    for edge in circuit.edges:
        source, target = edge.split("->")[0], edge.split("->")[1].split("<")[0]
        near |= {source, target} if "a2.h0" in (source, target) else set()
    related = ancestors(circuit, "a2.h0", down=True) | ancestors(circuit, "a2.h0", down=False) | {"a2.h0"}
    for name in circuit.nodes:
        look = tab.node(name).locator("../..").get_attribute("class")
        assert ("is-dim" in look) == (name not in related), name
        assert ("is-near" in look or "is-focus" in look) == (name in near), name
    said = tab.page.locator(".mw-panel").text_content()
    up, down = (len(ancestors(circuit, "a2.h0", down=d)) for d in (False, True))
    assert f"{up} ancestors, {down} descendants" in said
    assert tab.page.get_by_label("Role of a2.h0").input_value() == "S-inhibition"
    tab.picture("graph-focus")
    tab.click_node("a2.h0")
    assert tab.state()["focus"] is None


def test_edges_of_the_focus_are_drawn_below_the_threshold(tab: Tab) -> None:
    tab.page.locator(".mw-exact").fill("3")
    tab.page.locator(".mw-exact").press("Enter")
    tab.page.locator(".mw-search").fill("a2.h0")
    tab.page.locator(".mw-search").press("Enter")
    circuit = synthetic.circuit()
    own = {edge for edge in circuit.edges if edge.startswith("a2.h0->") or "->a2.h0<" in edge}
    assert own <= set(tab.drawn())
    assert len(own) > 2


def test_shift_click_shows_the_paths_between_two_nodes(tab: Tab) -> None:
    tab.click_node("a0.h1")
    tab.click_node("logits", modifiers=["Shift"])
    assert tab.state()["to"] == "logits"
    circuit = synthetic.circuit()
    between = ancestors(circuit, "a0.h1", down=True) & (ancestors(circuit, "logits", down=False) | {"logits"}) | {
        "a0.h1"
    }
    for name in circuit.nodes:
        look = tab.node(name).locator("../..").get_attribute("class")
        assert ("is-dim" in look) == (name not in between), name
    said = tab.page.locator(".mw-panel [role=status]").text_content()
    assert "Widest path" in said
    assert said.rstrip(".").endswith("logits")
    tab.picture("graph-paths")
    tab.page.locator(".mw-panel select").select_option("")
    assert tab.state()["to"] is None


def test_the_widest_path_is_the_best_of_all(tab: Tab) -> None:
    circuit = synthetic.circuit()
    assert circuit.scores is not None
    weight = {edge: abs(float(circuit.scores[circuit.space.edge_index(edge)])) for edge in circuit.edges}

    def best(node: str, end: str) -> float:
        if node == end:
            return float("inf")
        onward = [(edge, edge.split("->")[1].split("<")[0]) for edge in circuit.edges if edge.startswith(f"{node}->")]
        return max([min(weight[edge], best(target, end)) for edge, target in onward], default=0.0)

    tab.click_node("input")
    tab.click_node("logits", modifiers=["Shift"])
    found = tab.page.evaluate(
        "() => { const a = mechwork.graphs[0]; return Math.min(...a.focus().path.widest.map((e) => "
        "Math.abs(a.graph().score[e]))) }"
    )
    assert found == pytest.approx(best("input", "logits"), rel=1e-4)


@pytest.mark.parametrize(
    ("label", "keeps"),
    [
        ("Show MLPs", lambda source, target, kind, score: "m" not in (source[0], target[0])),
        ("Show edges into queries", lambda source, target, kind, score: kind != "q"),
        ("Show edges with negative score", lambda source, target, kind, score: score >= 0),
        ("Show the logits", lambda source, target, kind, score: target != "logits"),
    ],
)
def test_filters_hide_what_they_say_and_the_legend_tells(tab: Tab, label: str, keeps: object) -> None:
    circuit = synthetic.circuit()
    assert circuit.scores is not None
    button = tab.page.get_by_role("button", name=label)
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    tab.settle()
    assert button.get_attribute("aria-pressed") == "false"
    expected = []
    for edge in in_order(circuit):
        source, target = edge.split("->")
        score = float(circuit.scores[circuit.space.edge_index(edge)])
        if keeps(source, target.split("<")[0], target[-2] if "<" in target else "", score):  # pyright: ignore[reportCallIssue]
            expected.append(edge)
    assert tab.drawn() == expected
    assert 0 < len(expected) < circuit.n_edges
    assert "without" in tab.page.locator(".mw-active").text_content()


def test_confidence_and_node_sliders(tab: Tab) -> None:
    tab.page.get_by_label("Least share of resamples").fill("1")
    confidence = graph_payload(synthetic.circuit(), scores=synthetic.scores())["edges"]["confidence"]
    assert len(tab.drawn()) == sum(c >= 1 for c in confidence) < len(confidence)
    tab.page.get_by_label("Least share of resamples").fill("0")
    tab.page.get_by_label("unconnected nodes").check()
    tab.page.get_by_label("Number of nodes kept").fill("5")
    tab.settle()
    assert tab.page.locator(".mw-nodes .mw-node:visible").count() == 5


def test_search_marks_and_focuses(tab: Tab) -> None:
    tab.page.locator(".mw-search").fill("name mover")
    tab.settle()
    assert tab.page.locator(".mw-node.is-found").count() == 3
    tab.page.locator(".mw-search").press("Enter")
    assert tab.state()["focus"] in {"a4.h1", "a4.h2", "a5.h0"}
    tab.page.locator(".mw-search").press("Escape")
    tab.page.locator(".mw-search").fill("no such node")
    tab.page.locator(".mw-search").press("Enter")
    assert "No node has this text" in tab.page.locator(".mw-said").text_content()


def test_everything_by_keyboard(tab: Tab) -> None:
    page = tab.page
    page.locator(".mw-hit[tabindex='0']").focus()
    assert page.locator(".mw-hit[tabindex='0']").count() == 1

    def here() -> str:
        return page.evaluate(
            "() => mechwork.graphs[0].graph().names[Number(document.activeElement.closest('.mw-node')?.dataset.node)]"
        )

    def ring() -> str:
        return page.evaluate("() => getComputedStyle(document.activeElement.querySelector('.mw-ring')).stroke")

    start = here()
    page.keyboard.press("ArrowUp")
    assert here() != start
    assert ring() != "none"
    assert page.locator(".mw-tip").is_visible()
    page.keyboard.press("Enter")
    first = here()
    assert tab.state()["focus"] == first
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+Enter")
    assert tab.state()["to"] == here()
    page.keyboard.press("Escape")
    assert tab.state()["to"] is None
    page.keyboard.press("Escape")
    assert tab.state()["focus"] is None
    page.keyboard.press("p")
    assert tab.state()["pins"] == [here()]
    page.keyboard.press("Control+z")
    assert tab.state()["pins"] == []
    page.keyboard.press("Control+Shift+z")
    assert tab.state()["pins"] == [here()]
    before = page.evaluate("() => ({ ...mechwork.graphs[0].view.view })")
    page.keyboard.press("+")
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert page.evaluate("() => mechwork.graphs[0].view.view.k") < before["k"]
    page.keyboard.press("0")
    assert page.evaluate("() => mechwork.graphs[0].view.view.k") == pytest.approx(before["k"])
    page.keyboard.press("Alt+ArrowRight")
    assert list(tab.state()["moved"]) == [here()]
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.className") == "mw-search"
    page.locator(".mw-hit[tabindex='0']").focus()
    page.keyboard.press("?")
    assert page.locator("dialog.mw-help").is_visible()
    tab.picture("graph-help")
    page.keyboard.press("Escape")
    assert not page.locator("dialog.mw-help").is_visible()


def test_every_control_can_be_reached_with_tab_and_shows_its_focus(tab: Tab) -> None:
    page = tab.page
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        here = page.evaluate(
            """() => { const e = document.activeElement; if (e === document.body) return null;
            const s = getComputedStyle(e);
            const ring = e.querySelector?.('.mw-ring');
            const shown = ring ? getComputedStyle(ring).stroke !== 'none' : s.outlineStyle !== 'none' &&
            parseFloat(s.outlineWidth) > 0;
            return [e.getAttribute('aria-label') || e.textContent.trim().slice(0, 40) || e.tagName, shown] }"""
        )
        if here is None or (seen and here[0] == seen[0][0]):
            break
        seen.append(here)
    assert all(shown for _, shown in seen), seen
    names = " | ".join(name for name, _ in seen)
    for wanted in (
        "Search nodes",
        "Fit the graph",
        "Full screen",
        "Export",
        "Edges shown",
        "Show MLPs",
        "Details",
        "Suggest supernodes",
        "Legend",
    ):
        assert wanted in names
    assert any("summed score" in name or name.startswith("unembedding") for name, _ in seen)


def test_pan_zoom_and_fit_with_the_mouse(tab: Tab) -> None:
    page = tab.page
    box = page.locator(".mw-stage").bounding_box()
    corner = (box["x"] + 120, box["y"] + 30)
    before = page.evaluate("() => ({ ...mechwork.graphs[0].view.view })")
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(corner[0] + 60, corner[1] + 40, steps=4)
    page.mouse.up()
    after = page.evaluate("() => ({ ...mechwork.graphs[0].view.view })")
    assert after["x"] - before["x"] == pytest.approx(60, abs=1)
    assert after["y"] - before["y"] == pytest.approx(40, abs=1)
    page.mouse.wheel(0, -300)
    page.wait_for_function("(k) => mechwork.graphs[0].view.view.k > k", arg=after["k"])
    assert tab.state()["focus"] is None
    page.get_by_role("button", name="Fit the graph (0)").click()
    again = page.evaluate("() => ({ ...mechwork.graphs[0].view.view })")
    assert again == pytest.approx(before, abs=1)


def test_a_node_can_be_dragged_and_its_edges_follow(tab: Tab) -> None:
    page = tab.page
    tab.settle()
    box = tab.node("a4.h1").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = page.evaluate(
        "() => document.querySelectorAll('.mw-edges path')[0].ownerSVGElement.querySelector('.mw-edges').innerHTML"
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y + 10, steps=4)
    page.mouse.up()
    tab.settle()
    moved = tab.node("a4.h1").bounding_box()
    assert moved["x"] - box["x"] == pytest.approx(80, abs=4)
    assert tab.state()["focus"] is None
    assert page.evaluate("() => document.querySelector('.mw-edges').innerHTML") != before
    page.get_by_role("button", name="Undo (Ctrl+Z)").click()
    tab.settle()
    assert tab.node("a4.h1").bounding_box()["x"] == pytest.approx(box["x"], abs=1)


def test_hovering_says_what_a_node_and_an_edge_are(tab: Tab) -> None:
    page = tab.page
    tab.settle()
    box = tab.node("a4.h1").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 8)
    assert "a4.h1 – name mover" in page.locator(".mw-tip").text_content()
    x, y = page.evaluate(
        """() => { const a = mechwork.graphs[0], g = a.graph(), e = 0, s = g.source[e], v = a.view.view,
        r = a.stage.getBoundingClientRect();
        return [g.x[s] * v.k + v.x + r.left, (g.y[s] - g.height[s] / 2 - 6) * v.k + v.y + r.top] }"""
    )
    page.mouse.move(x, y)
    said = page.locator(".mw-tip").text_content()
    assert "score" in said
    assert "±" in said
    assert "of resamples" in said
    tab.picture("graph-hover")
