"""What a reader makes of the graph and takes away: groups, notes, exports, comparisons; and every kind of page around
it.
"""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mechwork.circuits.graph.circuit import Circuit
from mechwork.display import frame
from mechwork.render import Fact, GraphOptions, render_graph
from tests.browser import OpenPage, Tab
from tests.render import synthetic


@pytest.fixture
def tab(open_page: OpenPage) -> Tab:
    return open_page(
        render_graph(synthetic.circuit(), GraphOptions(title="Circuit for ioi", shown=60), scores=synthetic.scores())
    )


def test_pins_become_a_named_supernode_and_back(tab: Tab) -> None:
    page = tab.page
    for name in ("a4.h1", "a4.h2"):
        tab.click_node(name)
        page.get_by_role("button", name="Pin", exact=True).click()
        tab.settle()
    page.get_by_label("Name of the supernode").fill("name movers </script>")
    page.get_by_label("Name of the supernode").press("Enter")
    tab.settle()
    assert tab.state()["groups"] == [{"name": "name movers </script>", "members": ["a4.h1", "a4.h2"]}]
    assert tab.page.evaluate("() => mechwork.graphs[0].graph().index.has('a4.h1')") is False
    merged = tab.page.evaluate(
        "() => { const g = mechwork.graphs[0].graph(), i = g.index.get('name movers </script>'); return "
        "[...Array(g.m).keys()].filter((e) => g.source[e] === i && g.names[g.target[e]] === 'logits').map((e) => "
        "g.score[e]) }"
    )
    circuit = synthetic.circuit()
    assert circuit.scores is not None
    both = sum(float(circuit.scores[circuit.space.edge_index(f"{name}->logits")]) for name in ("a4.h1", "a4.h2"))
    assert merged == [pytest.approx(both, rel=1e-4)]
    assert "1 supernode" in page.locator(".mw-active").text_content()
    tab.picture("graph-supernode")
    page.get_by_role("button", name="Ungroup").click()
    tab.settle()
    assert len(tab.drawn()) == circuit.n_edges


def test_the_panel_lists_edges_by_score_though_the_graph_orders_them_by_path(tab: Tab) -> None:
    shares = """(name) => { mechwork.graphs[0].actions.focus(name); mechwork.graphs[0].flush();
        return [...document.querySelectorAll('.mw-edge-list')].map((list) => [...list.querySelectorAll('.mw-bar-cell')]
          .map((bar) => parseFloat(bar.style.getPropertyValue('--share')))) }"""
    lists = [found for name in synthetic.circuit().nodes for found in tab.page.evaluate(shares, name)]
    assert max(map(len, lists)) > 3
    assert lists == [sorted(found, reverse=True) for found in lists]


def test_supernodes_are_suggested_by_signed_profile(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Suggest supernodes").click()
    said = tab.page.locator(".mw-panel [role=status]").text_content()
    assert "suggestion" in said or "No two" in said


def exported(tab: Tab, item: str) -> Path:
    tab.page.get_by_role("button", name="Export ▾").click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("menuitem", name=item).click()
    return Path(download.value.path())


def test_exports(tab: Tab) -> None:
    circuit = synthetic.circuit()
    tab.page.locator(".mw-exact").fill("20")
    tab.page.locator(".mw-exact").press("Enter")
    tab.settle()
    svg = ElementTree.parse(exported(tab, "SVG (vector, light)")).getroot()
    assert "strongest 20 of" in "".join(svg.itertext())
    assert len([p for p in svg.iter("{http://www.w3.org/2000/svg}path") if "C" in (p.get("d") or "")]) == 20
    assert exported(tab, "PNG").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(exported(tab, "CSV").read_text())))
    assert len(rows) == 20
    assert rows[0]["source"] == circuit.edges[0].split("->")[0]
    assert float(rows[0]["score"]) > 0
    data = json.loads(exported(tab, "JSON (graph").read_text(encoding="utf-8"))
    assert data["what"] == "mechwork graph"
    assert data["state"]["shown"] == 20


def test_a_saved_json_brings_back_notes_pins_and_filters(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    tab.click_node("a4.h1")
    page.get_by_label("Note on a4.h1").fill("moves the name")
    page.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_role("button", name="Show MLPs").click()
    tab.settle()
    saved = exported(tab, "JSON (graph").read_text(encoding="utf-8")
    page.wait_for_timeout(400)  # the address is written once the reader rests
    page.reload()  # it keeps the state; without its part behind the # the page is fresh
    page.wait_for_selector(".mw-nodes .mw-node", state="attached")
    assert tab.state()["notes"] == {"a4.h1": "moves the name"}
    page.goto(page.url.split("#")[0])
    page.wait_for_selector(".mw-nodes .mw-node", state="attached")
    fresh = tab.state()
    assert (fresh["notes"], fresh["pins"], fresh["types"]["mlp"]) == ({}, [], True)

    def load(name: str, text: str) -> None:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        page.get_by_role("button", name="Export ▾").click()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("menuitem", name="Open a saved JSON").click()
        chooser.value.set_files(str(file))

    load("saved.json", saved)
    page.wait_for_function("() => mechwork.graphs[0].store.get().notes['a4.h1']")
    state = tab.state()
    assert state["notes"] == {"a4.h1": "moves the name"}
    assert state["pins"] == ["a4.h1"]
    assert state["types"]["mlp"] is False
    load("newer.json", json.dumps({**json.loads(saved), "format": 99}))
    page.wait_for_function("() => document.querySelector('.mw-said').textContent.includes('format 99')")
    broken = {
        "pins": [1],
        "groups": [{"name": 3}, 7],
        "moved": {"m0": ["x", 1]},
        "notes": {"m0": 4},
        "shown": "many",
        "unknown": 1,
    }
    load("broken.json", json.dumps({**json.loads(saved), "state": broken}))
    page.wait_for_function("() => mechwork.graphs[0].store.get().pins.length === 0")
    assert tab.state()["groups"] == []
    load("other.json", '{"a": 1}')
    page.wait_for_function("() => document.querySelector('.mw-said').textContent.includes('not a graph')")


def test_full_screen_and_reset(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("button", name="Full screen (F)").click()
    page.wait_for_function(
        "() => document.fullscreenElement !== null || document.querySelector('.mw-said').textContent"
    )
    page.evaluate("() => document.fullscreenElement && document.exitFullscreen()")
    tab.click_node("a4.h1")
    page.get_by_role("button", name="Show MLPs").click()
    page.get_by_role("button", name="Reset filters, focus and positions").click()
    state = tab.state()
    assert state["focus"] is None
    assert state["types"]["mlp"] is True
    page.get_by_role("button", name="Undo (Ctrl+Z)").click()
    assert tab.state()["focus"] == "a4.h1"


def test_two_circuits_are_compared(open_page: OpenPage) -> None:
    first, second = synthetic.scores().circuit(40), synthetic.scores(seed=9).circuit(40)
    tab = open_page(
        render_graph(first, GraphOptions(title="RelP and gradient", names=("relp", "gradient")), other=second)
    )
    assert f"only gradient: {(second - first).n_edges}" in tab.page.locator(".mw-panel").text_content()
    tab.page.get_by_role("button", name="Show edges in both").click()
    both = set((first & second).edges)
    assert not both & set(tab.drawn())
    tab.page.get_by_role("button", name="Show edges in both").click()
    tab.picture("graph-compare")
    tab.page.get_by_label("colour by circuit").uncheck()
    assert tab.state()["colour"] == "sign"


def test_without_scripts_there_is_a_picture_and_a_table(open_page: OpenPage) -> None:
    tab = open_page(render_graph(synthetic.circuit()), scripts=False)
    assert tab.page.locator("img.mw-static").is_visible()
    assert tab.page.locator("img.mw-static").evaluate("(image) => image.naturalWidth") > 300
    tab.page.locator("summary").click()
    assert tab.page.locator("tbody tr").count() == synthetic.circuit().n_edges
    tab.picture("graph-without-scripts", full_page=True)


def test_an_empty_circuit_says_so(open_page: OpenPage) -> None:
    tab = open_page(render_graph(Circuit.from_edges(synthetic.space(), [])))
    assert "has no edges" in tab.page.locator(".mw-panel").text_content()
    assert tab.page.locator(".mw-nodes .mw-node:visible").count() == 2


def test_a_circuit_without_scores_is_neutral(open_page: OpenPage) -> None:
    tab = open_page(render_graph(Circuit.from_edges(synthetic.space(), ["input->a0.h0<q>", "a0.h0->m1", "m1->logits"])))
    assert tab.page.locator(".mw-edges .neutral").count() == 3
    assert tab.page.get_by_role("button", name="Show edges with positive score").count() == 0


def test_grouped_key_value_heads(open_page: OpenPage) -> None:
    tab = open_page(render_graph(synthetic.grouped_circuit()))
    name = next(n for n in tab.page.evaluate("() => mechwork.graphs[0].graph().names") if ".kv" in n)
    tab.click_node(name)
    assert "key/value group" in tab.page.locator(".mw-panel").text_content()
    assert tab.page.evaluate("() => mechwork.graphs[0].focus().down.nodes.reduce((a, b) => a + b)") >= 2
    tab.picture("graph-grouped")


def test_hostile_names_and_roles_run_nothing(open_page: OpenPage) -> None:
    circuit = synthetic.circuit()
    hostile = replace(circuit, roles=dict(zip(circuit.nodes, synthetic.HOSTILE, strict=False)))
    facts = {name: [Fact(text, text)] for name, text in zip(circuit.nodes, synthetic.HOSTILE, strict=False)}
    notes = dict(zip(circuit.nodes, synthetic.HOSTILE, strict=False))
    tab = open_page(render_graph(hostile, GraphOptions(title=synthetic.HOSTILE[0], facts=facts, notes=notes)))
    for name in circuit.nodes:
        tab.page.evaluate("(name) => mechwork.graphs[0].actions.focus(name)", name)
        tab.settle()
    assert tab.page.evaluate("() => window.pwned === undefined")
    tab.picture("graph-hostile")


def test_it_works_in_the_frame_of_a_notebook(open_page: OpenPage) -> None:
    tab = open_page(
        f"<!doctype html><meta charset='utf-8'>{frame(render_graph(synthetic.circuit()))}", wait="iframe", width=900
    )
    inside = tab.page.frame_locator("iframe")
    inside.locator(".mw-nodes .mw-node").first.wait_for(state="attached")
    inside.locator("[aria-label^='attention head a4.h1'] .mw-shape").click()
    inside.locator(".mw-panel-head h2", has_text="a4.h1").wait_for()
    tab.picture("graph-notebook")


@pytest.mark.parametrize("dark", [False, True])
def test_no_accessibility_violations(open_page: OpenPage, axe: str, dark: bool) -> None:
    tab = open_page(render_graph(synthetic.circuit(), scores=synthetic.scores()), dark=dark)
    tab.click_node("a4.h1")
    tab.page.evaluate(axe)
    found = tab.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    assert {v["id"]: [n["html"][:140] for n in v["nodes"][:3]] for v in found["violations"]} == {}
    tab.picture(f"graph-focus-{'dark' if dark else 'light'}")


def test_a_narrow_window_stacks_the_panel(open_page: OpenPage) -> None:
    tab = open_page(render_graph(synthetic.circuit()), width=420, height=860)
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tab.picture("graph-narrow", full_page=True)
