"""The first view of a graph, measured in a real browser: no name lies on another or sticks out, no edge runs over a
foreign node; models of 6, 12 and 30 layers, a laptop and a phone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest

import mechwork as mw
from mechwork.circuits.graph.circuit import Circuit
from mechwork.render import graph_svg, render_graph
from tests.browser import OpenPage, Tab
from tests.gate import fewer
from tests.render import synthetic
from tests.render.geometry import measure

STICKS_OUT = """() => [...document.querySelectorAll('svg g[text-anchor=middle]')].flatMap((node) => {
  const text = node.querySelector('text').getBBox(), box = node.querySelector('path').getBBox();
  return text.x < box.x || text.x + text.width > box.x + box.width ? [node.textContent] : [];
})"""
SIZES = {"laptop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844, "touch": True}}


@cache
def circuit(model_name: str) -> Circuit:
    """A tenth of the edges for IOI; of 30 layers of 9 heads that share three keys and values, an invented one."""
    if model_name == "30 x 9":
        return synthetic.deep()[1]
    model = mw.load_model(model_name)
    scores = mw.score_edges(model, mw.tasks.ioi(model, n=16, seed=0).train)
    return scores.circuit(scores.space.n_edges // 10)


def clean(tab: Tab) -> None:
    """Nothing lies on anything, every node is named, in letters that can be read."""
    found = measure(tab.page)
    assert found.nodes > 8
    assert found.edges >= 12
    assert found.nameless == []
    assert found.overlaps == []
    assert found.through == []
    assert found.outside == []
    assert found.least >= 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    fewer(list(product(("gpt2-6l", "gpt2-12l", "30 x 9"), SIZES)), [("gpt2-6l", "laptop"), ("30 x 9", "phone")]),
)
def test_nothing_lies_on_anything_at_first_sight(open_page: OpenPage, name: str, size: str) -> None:
    tab = open_page(render_graph(circuit(name)), **SIZES[size])
    clean(tab)
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        tab.picture(f"view-{name.replace(' ', '')}-{size}-{scheme}")
    assert tab.page.evaluate("() => document.documentElement.scrollWidth") <= SIZES[size]["width"]


def test_the_measure_sees_what_is_wrong(open_page: OpenPage) -> None:
    """A node that is dragged onto another lies under its name, and edges run over it; a long name sticks out."""
    found = synthetic.circuit()
    tab = open_page(render_graph(replace(found, supernodes={"W" * 24: ("a4.h1", "a4.h2")})))
    tab.page.evaluate(
        """() => { const a = mechwork.graphs[0], g = a.graph(), i = g.index.get('a2.h0'), j = g.index.get('a3.h3');
        a.drawing.moveNode(i, g.x[j] + 8, g.y[j] + 4);
        document.querySelector(`[data-node="${j}"] .mw-label`).textContent = 'a name without end' }"""
    )
    tab.settle()
    seen = measure(tab.page)
    assert seen.overlaps
    assert seen.through
    assert [name for name, *_ in seen.outside] == ["a name without end"]


def test_names_of_pictures_that_stand_alone_fit(open_page: OpenPage) -> None:
    wide = Circuit.from_edges(mw.circuits.EdgeSpace(n_layers=30, n_heads=32, n_kv_heads=8),
                              ["input->a28.h31<q>", "input->a28.h7<k>", "a28.h31->m29", "m29->logits"])  # fmt: skip
    svgs = "".join(map(graph_svg, (circuit("30 x 9"), synthetic.circuit(), wide)))
    tab = open_page(f"<!doctype html><meta charset='utf-8'>{svgs}", wait="svg")
    assert tab.page.locator("svg g[text-anchor=middle]").count() > 30
    assert tab.page.evaluate(STICKS_OUT) == []
