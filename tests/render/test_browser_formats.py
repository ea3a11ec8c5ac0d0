"""What leaves the page and what comes into it: files for Python and other tools, places, notebooks that strip frames,
very many edges.
"""

import json
import re
from pathlib import Path

import pytest
import torch

from mechwork.circuits import AttributionGraph, Circuit, EdgeSpace, circuit_of, graph_of, read_mib
from mechwork.render import Fact, GraphOptions, render_graph, render_positions, render_report
from tests.browser import OpenPage, Tab
from tests.render import synthetic
from tests.render.test_browser_graph import in_order

READERS = {
    "Circuit JSON": Circuit.load,
    "MIB JSON": read_mib,
    "Neuronpedia JSON": lambda path: circuit_of(AttributionGraph.load(path)),
}


def exported(tab: Tab, item: str) -> Path:
    tab.page.get_by_role("button", name="Export ▾").click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("menuitem", name=item).click()
    return Path(download.value.path())


def show(tab: Tab, n_edges: int) -> None:
    """Sets how many edges are shown, as a reader does."""
    tab.page.locator(".mw-exact").fill(str(n_edges))
    tab.page.locator(".mw-exact").press("Enter")
    tab.settle()
    assert tab.state()["shown"] == n_edges


def labelled() -> Circuit:
    return synthetic.circuit().labelled(notes={"m0": "reads <b>names</b>"}, supernodes={"movers": ["a4.h1", "a4.h2"]})


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("grouped", [False, True])
def test_python_reads_back_what_the_page_exports(open_page: OpenPage, name: str, grouped: bool) -> None:
    circuit = synthetic.grouped_circuit() if grouped else labelled()
    tab = open_page(render_graph(circuit, GraphOptions(prompt=synthetic.TOKENS)))
    show(tab, circuit.n_edges)  # the first view is a part of the circuit, and an export holds what is shown
    found = READERS[name](exported(tab, name))
    assert circuit.scores is not None
    assert found.scores is not None
    assert found.space == circuit.space
    assert torch.equal(found.mask, circuit.mask)
    assert torch.allclose(found.scores[circuit.mask], circuit.scores[circuit.mask], rtol=1e-4)
    assert (found.roles, found.notes, found.supernodes) == (circuit.roles, circuit.notes, circuit.supernodes)
    assert found.provenance["model"] == circuit.provenance["model"]


def test_an_export_holds_what_passes_the_filters_and_the_readers_own_words(open_page: OpenPage) -> None:
    tab = open_page(render_graph(labelled()))
    page = tab.page
    show(tab, 20)
    tab.click_node("a2.h0")
    page.get_by_label("Role of a2.h0").fill("blocks </script> names")
    page.get_by_label("Role of a2.h0").press("Enter")
    tab.settle()
    drawn = page.evaluate("() => { const g = mechwork.graphs[0].graph(); return g.role[g.index.get('a2.h0')] }")
    assert drawn == "blocks </script> names"
    found = Circuit.load(exported(tab, "Circuit JSON"))
    assert sorted(found.edges) == sorted(in_order(labelled())[:20])
    assert (found.notes, found.supernodes) == (labelled().notes, labelled().supernodes)
    assert found.roles["a2.h0"] == "blocks </script> names"
    page.get_by_role("button", name="Undo (Ctrl+Z)").click()
    tab.settle()
    assert tab.state()["roles"] == {}
    assert page.get_by_label("Role of a2.h0").input_value() == "S-inhibition"


def test_the_first_view_draws_and_exports_the_same_edges_with_supernodes(open_page: OpenPage) -> None:
    circuit = labelled()
    tab = open_page(render_graph(circuit))
    shown = tab.state()["shown"]
    assert shown < circuit.n_edges
    found = Circuit.load(exported(tab, "Circuit JSON"))
    assert sorted(found.edges) == sorted(in_order(circuit)[:shown])
    members = re.compile("|".join(map(re.escape, circuit.supernodes["movers"])))
    assert sorted(tab.drawn()) == sorted({members.sub("movers", edge) for edge in found.edges})
    said = tab.page.locator(".mw-active").text_content()
    assert f"strongest {shown} of {circuit.n_edges} edges" in said


def test_supernodes_of_the_circuit_stand_from_the_start(open_page: OpenPage) -> None:
    tab = open_page(render_graph(labelled()))
    assert tab.page.evaluate("() => mechwork.graphs[0].graph().index.has('movers')")
    tab.page.get_by_role("button", name="Ungroup").click()
    tab.settle()
    assert tab.page.evaluate("() => mechwork.graphs[0].graph().index.has('a4.h1')")


@pytest.mark.parametrize("dark", [False, True])
def test_places_are_columns_and_their_nodes_work_like_all_others(open_page: OpenPage, axe: str, dark: bool) -> None:
    tab = open_page(render_positions(*synthetic.by_position(("IO", "</b>", "S2", "END"))), dark=dark)
    assert tab.page.locator(".mw-place").all_text_contents() == ["IO", "</b>", "S2", "END"]
    tab.click_node("a2.h0@S2")
    assert tab.page.locator(".mw-panel-head h2").text_content() == "a2.h0@S2"
    lit = tab.page.evaluate(
        "() => { const a = mechwork.graphs[0], g = a.graph(); return a.drawing.lit().map((e) => g.names[g.target[e]]) }"
    )
    assert "a2.h0@END" in lit
    tab.page.locator(".mw-search").fill("@end")
    tab.settle()
    assert tab.page.locator(".mw-node.is-found").count() == sum(
        name.endswith("@END") for name in tab.page.evaluate("() => mechwork.graphs[0].graph().names")
    )
    tab.page.locator(".mw-search").fill("")
    tab.page.locator(".mw-hit[tabindex='0']").focus()
    tab.page.keyboard.press("ArrowRight")
    tab.picture(f"places-{'dark' if dark else 'light'}")
    tab.page.get_by_role("button", name="Export ▾").click()
    assert tab.page.get_by_role("menuitem", name="MIB JSON").count() == 0
    tab.page.keyboard.press("Escape")
    svg = exported(tab, "SVG (vector, light)").read_text(encoding="utf-8")
    assert "&lt;/b&gt;" in svg
    tab.page.evaluate(axe)
    found = tab.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    assert {v["id"]: [n["html"][:140] for n in v["nodes"][:3]] for v in found["violations"]} == {}


def test_an_attribution_graph_of_a_file_is_drawn(open_page: OpenPage) -> None:
    tab = open_page(graph_of(labelled(), synthetic.task()).to_html())
    assert tab.page.locator(".mw-place").count() == len(synthetic.TOKENS)
    assert [group["name"] for group in tab.state()["groups"]] == ["movers"]
    tab.picture("attribution-graph")


def test_two_models_over_each_other_tell_both_scores(open_page: OpenPage) -> None:
    first, second = synthetic.circuit(), synthetic.grouped_circuit()
    tab = open_page(render_graph(first, GraphOptions(names=("gpt2", "llama"), title="Two models"), other=second))
    assert "the two models' edges" in tab.page.locator(".mw-panel").text_content()
    both = tab.page.evaluate(
        "() => { const g = mechwork.graphs[0].graph(); return [...Array(g.m).keys()].filter((e) => g.member[e] === "
        "3).length }"
    )
    assert both > 0
    title = tab.page.evaluate(
        """() => { const a = mechwork.graphs[0], g = a.graph(), e = [...Array(g.m).keys()].find((e) =>
        g.member[e] === 3); a.actions.focus(g.names[g.source[e]]);
        a.flush(); return [...document.querySelectorAll('.mw-number')].map((n) => n.title).join() }"""
    )
    assert "in the second circuit" in title
    tab.picture("graph-two-models")


def test_where_a_host_strips_the_frame_picture_and_table_are_seen(open_page: OpenPage) -> None:
    html = synthetic.circuit()._repr_html_()
    stripped = re.sub(r"<iframe.*?</iframe>", "", html, flags=re.DOTALL)
    assert stripped != html
    tab = open_page(f"<!doctype html><meta charset='utf-8'>{stripped}", wait="img")
    assert tab.page.locator("img").is_visible()
    assert tab.page.locator("img").evaluate("(image) => image.naturalWidth") > 300
    assert tab.page.locator("tbody tr").count() == min(50, synthetic.circuit().n_edges)
    whole = open_page(f"<!doctype html><meta charset='utf-8'>{html}", wait="iframe", width=900)
    whole.page.frame_locator("iframe").locator(".mw-nodes .mw-node").first.wait_for()  # Tab passes over an empty frame
    whole.page.bring_to_front()  # two tabs are open, and a key goes to the one that has the focus
    whole.page.wait_for_function("() => document.hasFocus()")
    whole.page.keyboard.press("Tab")
    assert whole.page.evaluate("() => document.activeElement.tagName") == "IFRAME"
    box, frame = (whole.page.locator(name).bounding_box() for name in ("div[tabindex]", "iframe"))
    assert box == frame
    for name in ("effects", "curve", "study", "patterns"):
        assert "<iframe" in getattr(synthetic, name)()._repr_html_()


def test_a_result_that_cannot_be_drawn_says_why_in_the_notebook() -> None:
    circuit = synthetic.circuit()
    assert circuit.scores is not None
    row, column = circuit.mask.nonzero()[0].tolist()
    circuit.scores[row, column] = torch.nan
    said = circuit._repr_html_()
    assert "Circuit cannot be drawn" in said
    assert "has nan" in said
    assert "iframe" not in said


@pytest.mark.slow
def test_a_hundred_thousand_edges_are_cut_and_the_page_says_so(open_page: OpenPage) -> None:
    space = EdgeSpace(n_layers=24, n_heads=16, n_kv_heads=16)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(space.n_writers, space.n_readers, generator=generator) * space.mask
    mask = torch.zeros_like(space.mask).flatten()
    mask[values.abs().flatten().topk(100_000).indices] = True
    circuit = Circuit(space, mask.view_as(space.mask), values)
    tab = open_page(render_graph(circuit, GraphOptions(shown=2000)))
    assert tab.page.locator(".mw-counted").text_content().startswith("showing 2,000 of ")
    assert "50,000 weakest edges were left out of this page" in tab.page.locator(".mw-active").text_content()
    tab.page.locator(".mw-exact").fill("50000")
    tab.page.locator(".mw-exact").press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.mw-canvas').width > 100")
    tab.picture("hundred-thousand")


def test_attention_is_enlarged_from_the_panel(open_page: OpenPage, axe: str) -> None:
    tab = open_page(render_report(synthetic.task(), *synthetic.everything()), width=1440, height=1000)
    page = tab.page
    page.wait_for_function("() => document.querySelector('.mw-paper canvas')")
    page.evaluate("() => mechwork.select('a4.h1', null)")
    tab.settle()
    panel = page.locator(".mw-panel").first
    assert panel.locator(".mw-pattern").count() == 1
    assert panel.locator(".mw-excerpts li").count() == 3
    panel.get_by_role("button", name="Enlarge, with tokens").click()
    page.wait_for_function("() => document.querySelector('.mw-enlarged canvas')")
    tab.picture("attention-enlarged")
    page.keyboard.press("Escape")
    assert page.locator(".mw-enlarged").count() == 0
    page.locator(".mw-card[data-mw-row='a2.h0'] > summary").click()
    tab.settle()
    assert tab.state()["focus"] == "a2.h0"
    assert page.locator(".mw-card.is-selected").count() == 1
    page.locator("#heads").screenshot(path=str(tab.artefacts / "report-cards.png"))


def test_the_json_of_a_page_holds_facts_as_text(open_page: OpenPage) -> None:
    facts = GraphOptions(facts={"m0": [Fact("Effect", "+1.4", detail="95 % interval")]})
    data = json.loads(
        exported(open_page(render_graph(synthetic.circuit(), facts)), "JSON (graph").read_text(encoding="utf-8")
    )
    i = data["nodes"]["name"].index("m0")
    assert data["nodes"]["facts"][i] == [["Effect", "+1.4 (95 % interval)", "measured"]]
    assert "cards" not in data["nodes"]
