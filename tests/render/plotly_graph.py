"""A graph drawn by plotly's scatter traces, and what both renderings are asked to do while they are timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from mechwork.render.graph.layout import Layout, sample_curves
from mechwork.render.page.figure import figure_fragment, titled
from mechwork.render.page.page import assemble

PAINT = """(() => { const watch = new MutationObserver(() => { if (!document.querySelector('%s')) return;
    watch.disconnect();
requestAnimationFrame(() => requestAnimationFrame(() => { window.firstPaint = performance.now() })) });
watch.observe(document, { childList: true, subtree: true }) })()"""
STEP = """async (source) => { const step = eval(source), frame = () => new Promise((done) =>
    requestAnimationFrame(() => requestAnimationFrame(done)));
await frame(); const n = 10, start = performance.now(); for (let i = 0; i < n; i++) { await step(i); await frame() }
return (performance.now() - start) / n - window.idle }"""
IDLE = """async () => { const frame = () => new Promise((done) => requestAnimationFrame(() =>
    requestAnimationFrame(done)));
await frame(); const start = performance.now(); for (let i = 0; i < 10; i++) await frame();
    window.idle = (performance.now() - start) / 10 }"""

OURS = {
    "threshold": "(i) => { const a = mechwork.graphs[0], n = Math.min(2000, a.graph().m); a.store.set({ shown: "
    "Math.round(n * (i % 2 ? 0.75 : 0.45)) }) }",
    "pan": "(i) => mechwork.graphs[0].view.pan(i % 2 ? 30 : -30, 10 * (i % 3 - 1))",
    "zoom": "(i) => mechwork.graphs[0].view.zoom(i % 2 ? 1.2 : 1 / 1.2)",
    "focus": "(i) => { const a = mechwork.graphs[0], g = a.graph(); a.actions.focus(g.names[Math.round(g.n * (i % 2 ? "
    "0.4 : 0.6))]) }",
}
ABOVE = {"threshold above the cap": "(i) => { mechwork.graphs[0].store.set({ shown: i % 2 ? 30000 : 20000 }) }"}
"""Of graphs with more than 2,000 edges, when the reader asks for all of them."""
PLOTLY = {
    "threshold": "(i) => Plotly.restyle(document.querySelector('.js-plotly-plot'), { visible: i % 2 ? true : false }, "
    "[0, 1, 2])",
    "pan": "(i) => Plotly.relayout(document.querySelector('.js-plotly-plot'), { 'xaxis.range': [i * 10, 3000 + i * "
    "10] })",
}


def plotly_page(payload: dict[str, Any]) -> str:
    """The same nodes and edges as plotly scatter traces: six of edges, one of nodes."""
    nodes, edges = payload["nodes"], payload["edges"]
    types = np.array(nodes["type"])
    layout = Layout(np.array(nodes["x"]), np.array(nodes["y"]), (), *payload["size"])
    source, target = np.array(edges["source"]), np.array(edges["target"])
    x, y = sample_curves(
        layout, types, source, target, np.zeros(len(source)), np.array(edges["bend"], dtype=float), n=4
    )
    score = np.array(edges["score"])
    traces = []
    for sign in (1, -1):
        for part in np.array_split(np.flatnonzero(np.sign(score) == sign), 3):
            xs, ys = (
                np.concatenate([v[part], np.full((len(part), 1), np.nan)], axis=1).flatten().round(1) for v in (x, y)
            )
            traces.append(
                go.Scatter(
                    x=[None if np.isnan(v) else v for v in xs],
                    y=[None if np.isnan(v) else -v for v in ys],
                    mode="lines",
                    line={"width": 1},
                    hoverinfo="skip",
                )
            )
    traces.append(go.Scatter(x=nodes["x"], y=[-v for v in nodes["y"]], mode="markers", text=nodes["name"]))
    figure = titled(go.Figure(traces), "the same graph", "", width=980, height=700)
    return assemble("plotly", [figure_fragment(figure, "the same graph")])


def unlocked(html: str) -> str:
    """The page with `eval` allowed, for the measuring alone."""
    return html.replace("script-src ", "script-src &#x27;unsafe-eval&#x27; ", 1)
