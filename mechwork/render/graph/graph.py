"""The interactive circuit graph: one offline page, or a fragment of a larger one.

What is drawn is prepared in `graph_payload` and `graph_layout`; `assets/graph/*.js` draws it. Where no script runs the
page shows a static picture (`graph_static`) and a table of edges, which is also the view for screen readers.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from ...circuits.graph.circuit import Circuit
from ...circuits.scoring.scores import EdgeScores
from ...display import draws, draws_still
from ..page.page import NO_SCRIPT_STYLE, Fragment, assemble, embed_json
from ..page.table import Column, table
from ..page.text import count, escape, plural, signed
from .payload import GraphOptions, graph_payload
from .static import static_svg

TABLE_LIMIT = 200
SHOWN_OF_SCORES = 200
"""How many edges of a whole scored graph are drawn at first."""
DRAWN_LIMIT = 2000
STILL_ROWS = 50
"""Rows of the table that a notebook carries for hosts which strip the frame."""


def render_graph(
    circuit: Circuit,
    options: GraphOptions | None = None,
    *,
    scores: EdgeScores | None = None,
    other: Circuit | None = None,
) -> str:
    """One self-contained HTML page with the interactive graph of `circuit`.

    `scores` adds standard errors and confidence to the edges; `other` is a second circuit, laid over the first: of
    another task, method or model (then nodes are matched by name).
    """
    options = _with_defaults(options, circuit)
    if other is not None:
        options = replace(options, shown=DRAWN_LIMIT)
    payload = graph_payload(circuit, options, scores=scores, other=other)
    return assemble(
        payload["title"], [Fragment("<main>"), graph_fragment(payload), Fragment("</main>")], body_class="mw-standalone"
    )


def graph_svg(circuit: Circuit, options: GraphOptions | None = None) -> str:
    """The graph as a static SVG in the light theme, the strongest connected edges: a figure for a paper or a README."""
    return static_svg(graph_payload(circuit, _with_defaults(options, circuit)))


@draws(Circuit)
def circuit_page(circuit: Circuit) -> str:
    """The page of a circuit."""
    return render_graph(circuit)


@draws_still(Circuit)
def circuit_still(circuit: Circuit) -> str:
    """The picture of a circuit and its strongest edges, where no frame is shown."""
    return graph_still(graph_payload(circuit, _with_defaults(None, circuit)))


@draws_still(EdgeScores)
def scores_still(scores: EdgeScores) -> str:
    """The strongest edges as a picture and a table, where no frame is shown."""
    return graph_still(graph_payload(whole_graph(scores), _scores_options(scores), scores=scores))


@draws(EdgeScores)
def scores_page(scores: EdgeScores) -> str:
    """The page of scored edges: the whole graph, of which the strongest edges are drawn at first."""
    return render_graph(whole_graph(scores), _scores_options(scores), scores=scores)


def _scores_options(scores: EdgeScores) -> GraphOptions:
    task = scores.provenance.get("task", {})
    title = " ".join(part for part in ("Edge scores", _name_of(task), scores.rules) if part)
    return GraphOptions(title=title, metric_name=scores.metric_name)


def whole_graph(scores: EdgeScores) -> Circuit:
    """Every edge of the graph as a circuit, with its scores."""
    return Circuit(scores.space, scores.space.mask, scores.values, provenance=scores.provenance)


def graph_fragment(payload: dict[str, Any]) -> Fragment:
    """The graph with its fallbacks."""
    # One picture serves three readers: without scripts, on paper, and (through its text) without sight.
    image = _picture(payload, 'class="mw-static"')
    without = f"<style>{NO_SCRIPT_STYLE}</style>"
    body = (
        f'<div class="mw-graph" data-mw-graph>{embed_json(payload)}</div>{image}<noscript>{without}'
        f"<p>Without scripts the graph is a picture; its edges are in the table below.</p></noscript>\n"
        f'<details class="mw-fallback"><summary>Edges as a table ({escape(_table_size(payload))})</summary>'
        f"{edge_table(payload)}</details>"
    )
    return Fragment(body, needs=("graph",))


def _picture(payload: dict[str, Any], attributes: str) -> str:
    picture = base64.b64encode(static_svg(payload).encode()).decode()
    alternative = escape(f"{payload['title']}: {describe(payload)}")
    return f'<img {attributes} src="data:image/svg+xml;base64,{picture}" alt="{alternative}">'


def graph_still(payload: dict[str, Any]) -> str:
    """A picture of the graph and its strongest edges as a table, without frames, scripts and styles."""
    shown = min(STILL_ROWS, len(payload["edges"]["source"]))
    said = (
        f"{payload['title']}: {describe(payload)}. This is a picture with the {plural(shown, 'strongest edge')}; "
        "the interactive graph appears where the notebook is trusted."
    )
    picture = _picture(payload, 'height="500"')
    rows = edge_table(payload, STILL_ROWS).replace(' tabindex="0"', "")  # see `display.frame`
    return f"<p>{escape(said)}</p>{picture}{rows}"


def describe(payload: dict[str, Any]) -> str:
    """The graph in one sentence."""
    n_nodes, n_edges = len(payload["nodes"]["name"]), payload["nEdgesOfCircuit"]
    return f"{plural(n_nodes, 'node')} and {count(n_edges)} of {payload['among']}"


def edge_table(payload: dict[str, Any], limit: int = TABLE_LIMIT) -> str:
    """The strongest edges as an HTML table."""
    names, kinds, edges = payload["nodes"]["name"], payload["kinds"], payload["edges"]
    order = range(len(edges["source"]))
    if edges["score"] is not None:
        order = sorted(order, key=lambda e: -abs(edges["score"][e]))
    order = order[:limit]
    columns = [
        Column("source", [names[edges["source"][e]] for e in order]),
        Column("target", [names[edges["target"][e]] for e in order]),
        Column("into", [kinds[edges["kind"][e]] for e in order]),
    ]
    if edges["score"] is not None:
        columns.append(Column("score", [signed(edges["score"][e]) for e in order], numeric=True))
    return table(columns, caption=f"{payload['title']}: the strongest edges, strongest first")


def _table_size(payload: dict[str, Any]) -> str:
    n = len(payload["edges"]["source"])
    return count(n) if n <= TABLE_LIMIT else f"the strongest {TABLE_LIMIT} of {count(n)}; all are in the CSV export"


def _with_defaults(options: GraphOptions | None, circuit: Circuit) -> GraphOptions:
    options = options or GraphOptions()
    task = _name_of(circuit.provenance.get("task", {}))
    title = options.title or (f"Circuit for {task}" if task else "Circuit")
    return replace(options, title=title)


def _name_of(fact: Any) -> str:
    return str(fact.get("name", "")) if isinstance(fact, dict) else ""
