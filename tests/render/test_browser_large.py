"""A graph of about 1,000 nodes and 30,000 edges, measured beside a plotly rendering of the same graph.

Times depend on the machine and on what else it does, so they are printed and only their order is asserted, with wide
bounds against a change of kind.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from mechwork.render import GraphOptions, render_graph
from mechwork.render.graph.payload import graph_payload
from tests.browser import OpenPage, Tab
from tests.render import synthetic
from tests.render.plotly_graph import ABOVE, IDLE, OURS, PAINT, PLOTLY, STEP, plotly_page, unlocked


@pytest.fixture(scope="module")
def payload() -> dict[str, Any]:
    return graph_payload(synthetic.large_circuit())


@pytest.fixture(scope="module")
def graph_page() -> str:
    return render_graph(synthetic.large_circuit(), GraphOptions(shown=2000))


@pytest.fixture(scope="module")
def plotly_html(payload: dict[str, Any]) -> str:
    return plotly_page(payload)


def measure(tab: Tab, steps: dict[str, str]) -> dict[str, float]:
    """Milliseconds beyond two idle frames, mean of ten steps; and to the first paint."""
    tab.page.wait_for_function("() => window.firstPaint")
    tab.page.wait_for_timeout(500)
    tab.page.evaluate(IDLE)
    first = tab.page.evaluate("() => window.firstPaint")
    return {"first paint": round(first, 1)} | {
        name: round(tab.page.evaluate(STEP, step), 1) for name, step in steps.items()
    }


@pytest.mark.slow
def test_it_is_faster_than_plotly_and_fast_enough(
    open_page: OpenPage, graph_page: str, plotly_html: str, payload: dict[str, Any]
) -> None:
    ours = measure(open_page(unlocked(graph_page), before=PAINT % ".mw-nodes .mw-node"), OURS | ABOVE)
    theirs = measure(
        open_page(
            unlocked(plotly_html),
            wait=".js-plotly-plot .main-svg",
            before=PAINT % ".js-plotly-plot .scatterlayer .trace",
        ),
        PLOTLY,
    )
    print(
        json.dumps(
            {
                "nodes": len(payload["nodes"]["name"]),
                "edges": len(payload["edges"]["source"]),
                "bytes": len(graph_page),
                "mechwork": ours,
                "plotly": theirs,
            }
        )
    )
    assert ours["first paint"] < theirs["first paint"]
    assert ours["threshold"] < theirs["threshold"]
    assert ours["pan"] < theirs["pan"]
    assert ours["first paint"] < 3000
    assert max(ours["threshold"], ours["pan"], ours["zoom"]) < 600


@pytest.mark.slow
def test_the_large_graph_says_what_it_shows_and_draws_the_rest_beneath(open_page: OpenPage, graph_page: str) -> None:
    tab = open_page(graph_page)
    assert tab.page.locator(".mw-counted").text_content().startswith("showing 2,000 of ")
    assert tab.page.locator(".mw-edges path").count() == 2000
    tab.picture("large")
    tab.page.locator(".mw-exact").fill("30000")
    tab.page.locator(".mw-exact").press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.mw-canvas').width > 100")
    assert tab.page.locator(".mw-edges path").count() == 2000
    drawn = tab.page.evaluate(
        "() => { const c = document.querySelector('.mw-canvas'); return c.getContext('2d').getImageData(0, 0, "
        "c.width, c.height).data.some((v) => v > 0) }"
    )
    assert drawn
    tab.picture("large-all")
    tab.page.locator(".mw-exact").fill("50")
    tab.page.locator(".mw-exact").press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.mw-canvas').width === 1")
    name = tab.page.evaluate("() => mechwork.graphs[0].graph().names.find((n) => n.startsWith('a20.'))")
    tab.page.locator(".mw-search").fill(name)
    tab.page.locator(".mw-search").press("Enter")
    tab.settle()
    n_own = tab.page.evaluate(
        "() => { const a = mechwork.graphs[0], g = a.graph(), i = a.focus().node; return g.incoming.of(i).length + "
        "g.outgoing.of(i).length }"
    )
    lit = tab.page.locator(".mw-lit .is-direct").count()
    assert lit == min(n_own, 2000)
    assert lit > 0
    told = tab.page.evaluate(
        """() => { const a = mechwork.graphs[0], g = a.graph(), row = g.y[g.index.get(a.store.get().focus)];
        return document.querySelectorAll('.mw-gutter text')[g.bands.findIndex((b) => b.top <= row && row < b.bottom)]
        .textContent }"""
    )
    low, _, high = told.removeprefix("layers ").removeprefix("layer ").partition("–")
    assert int(low) <= 20 <= int(high or low), "the row says which layers stand in it"
    tab.picture("large-focus")


@pytest.mark.slow
def test_a_hub_and_a_wide_search_stay_readable_and_say_what_they_leave_out(open_page: OpenPage) -> None:
    tab = open_page(render_graph(synthetic.large_circuit()))
    hub, n_own = tab.page.evaluate(
        """() => { const g = mechwork.graphs[0].graph();
        const size = (i) => g.outgoing.of(i).length + g.incoming.of(i).length;
        const heads = [...g.core.keys()].filter((i) => g.core[i] && g.type[i] === 'head');
        const i = heads.sort((a, b) => size(b) - size(a))[0];
        return [g.names[i], size(i)] }"""
    )
    assert n_own > 300
    drawn = tab.page.locator(".mw-nodes .mw-node:visible")
    before = drawn.count()
    tab.click_node(hub)
    lit = tab.page.locator(".mw-lit .is-direct").count()
    assert 100 <= lit <= 140
    assert f"Of this node's {n_own} edges the {lit} strongest are drawn" in tab.page.locator(".mw-panel").inner_text()
    assert before < drawn.count() <= before + 121
    tab.page.keyboard.press("Escape")
    tab.page.locator(".mw-search").fill("a")
    tab.settle()
    assert drawn.count() == before
    assert "nodes found" in tab.page.locator(".mw-counted").text_content()
    assert "type more" in tab.page.locator(".mw-counted").text_content()
    tab.page.locator(".mw-search").fill("a20.h1")  # also a20.h10 to a20.h19
    tab.settle()
    named = tab.page.evaluate("() => mechwork.graphs[0].graph().names.filter((n) => n.includes('a20.h1')).length")
    assert named > 5
    assert tab.page.locator(".mw-node.is-found:visible").count() == named
    tab.picture("large-search")
