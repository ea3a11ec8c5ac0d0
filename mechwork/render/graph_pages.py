"""Pages of graphs with positions, of attribution graphs from files, and of two circuits over each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..circuits.compare import CircuitComparison
from ..circuits.graph_file import AttributionGraph
from ..circuits.positions import AttentionEdges, PositionScores
from ..display import draws, draws_still
from .cards import Card, Fact
from .circuit_tables import comparison_table, position_table
from .graph import DRAWN_LIMIT, graph_fragment, graph_still
from .graph_payload import GraphOptions, graph_payload, table_payload
from .graph_positions import N_EDGES, attribution_table, positions_table
from .page import Fragment, assemble
from .text import plural


def render_positions(
    scores: PositionScores, attention: AttentionEdges | None = None, *, n_edges: int = N_EDGES, title: str = ""
) -> str:
    """One self-contained page: components over tokens or spans, the `n_edges` strongest edges, strongest first.

    With `attention` also what heads move between positions.

    >>> Path("ioi.html").write_text(render_positions(score_positions(model, task), score_attention_edges(model, task)))
    """
    return _graph_page(positions_payload(scores, attention, n_edges, title), position_table(scores))


@draws(PositionScores)
def positions_page(scores: PositionScores) -> str:
    """The graph over positions, and its strongest edges as a table."""
    return render_positions(scores)


@draws_still(PositionScores)
def positions_still(scores: PositionScores) -> str:
    """The picture over positions."""
    return graph_still(positions_payload(scores, None, N_EDGES, ""))


@draws(AttributionGraph)
def attribution_page(graph: AttributionGraph) -> str:
    """An attribution graph as it stands in its file: layers up, tokens across, its supernodes and pins kept."""
    return _graph_page(_attribution_payload(graph))


@draws_still(AttributionGraph)
def attribution_still(graph: AttributionGraph) -> str:
    """The picture of an attribution graph."""
    return graph_still(_attribution_payload(graph))


@draws(CircuitComparison)
def comparison_page(comparison: CircuitComparison) -> str:
    """Overlaps as a table, and the first two circuits over each other."""
    (first, a), (second, b), *_ = comparison.circuits.items()
    options = GraphOptions(title=f"{first} and {second}", names=(first, second), shown=DRAWN_LIMIT)
    payload = graph_payload(a, options, other=b)
    return _graph_page(payload, comparison_table(comparison))


def positions_payload(
    scores: PositionScores, attention: AttentionEdges | None, n_edges: int, title: str
) -> dict[str, Any]:
    """The payload of the strongest edges over positions."""
    table = positions_table(scores, attention, n_edges)
    options = GraphOptions(title=title or f"Edges by position ({scores.rules})", metric_name=scores.metric_name)
    among = f"the {plural(table.n_of_graph, 'edge')} that the model has over {plural(len(scores.labels), 'position')}"
    return table_payload(table, options, among=among)


def _attribution_payload(graph: AttributionGraph) -> dict[str, Any]:
    table, labels = attribution_table(graph)
    facts: dict[str, list[Card]] = {
        name: [Fact("Label", label, "interpretation")] for name, label in zip(table.names, labels, strict=True) if label
    }
    slug = str(graph.metadata.get("slug") or "")
    options = GraphOptions(title=f"Attribution graph {slug}".strip(), facts=facts)
    shown = min(DRAWN_LIMIT, len(table.source))
    payload = table_payload(
        table, replace(options, shown=shown), among=f"the file's {plural(table.n_of_graph, 'link')}"
    )
    known = set(table.names)
    groups = [
        {"name": name, "members": [m for m in members if m in known]} for name, members in graph.supernodes.items()
    ]
    pins = [name for name in graph.q_params.get("pinnedIds", []) if name in known]
    return payload | {"supernodes": [group for group in groups if group["members"]], "pins": pins}


def _graph_page(payload: dict[str, Any], below: str = "") -> str:
    parts = [
        Fragment("<main>"),
        graph_fragment(payload),
        Fragment(f'<div class="mw-page">{below}</div>' if below else ""),
        Fragment("</main>"),
    ]
    return assemble(str(payload["title"]), parts, body_class="mw-standalone")
