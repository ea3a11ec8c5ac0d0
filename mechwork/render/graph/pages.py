"""Pages of a circuit with all that is known about its nodes, of graphs with positions and from files, and of two
circuits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...circuits.graph.circuit import Circuit
from ...circuits.graph.compare import CircuitComparison
from ...circuits.graph.graph_file import AttributionGraph
from ...circuits.scoring.attention_edges import AttentionEdges
from ...circuits.scoring.positions import PositionScores
from ...circuits.testing.neuron_edges import NeuronEdges
from ...display import draws, draws_still
from ...runs.attention import AttentionPatterns
from ...tasks.task import Task
from ..findings import collect
from ..page.cards import Card, Fact
from ..page.page import Fragment, assemble
from ..page.text import plural, show_token
from ..panels.attention import attention_fragment
from ..panels.circuit_tables import comparison_table, position_table
from .graph import DRAWN_LIMIT, graph_fragment, graph_still
from .payload import GraphOptions, graph_payload, table_payload
from .positions import N_EDGES, attribution_table, positions_table


def render_circuit(circuit: Circuit, task: Task, *results: object, title: str = "") -> str:
    """The page of a circuit, its side panel filled with all that `results` say about each node.

    `results` are what a report takes. With attention patterns each head's is drawn large by circuitsvis below the graph
    and, from the panel, over the page (this adds 500 kB). Raises `InputError` for what a report cannot show.

    >>> table = read_lens(model, task.test)
    >>> page = render_circuit(
    ...     circuit, task, study_heads(model, task.test), record_attention(model, task.test, ["a5.h1"]), table
    ... )
    """
    findings = collect(task, (circuit, *results))
    circuit = findings.with_roles(circuit)
    options = GraphOptions(
        title=title or f"Circuit for {task.name}",
        facts=findings.node_facts(),
        metric_name=task.metric.name,
        prompt=task.prompt_texts(0)[0],
        curve=findings.curve_of(circuit),
    )
    payload = graph_payload(circuit, options, scores=findings.scores_of(circuit))
    heading = Fragment("<h2>Attention</h2>")
    below = [part for p in findings.of(AttentionPatterns) for part in (heading, attention_fragment(p))]
    return _graph_page(payload, *below)


def render_positions(
    scores: PositionScores,
    attention: AttentionEdges | None = None,
    *,
    n_edges: int = N_EDGES,
    title: str = "",
    task: Task | None = None,
) -> str:
    """One self-contained page: components over tokens or spans, the `n_edges` strongest edges, strongest first.

    With `attention` also what heads move between positions; with `task` what its first test prompt says at each span.

    >>> Path("ioi.html").write_text(render_positions(score_positions(model, task), score_attention_edges(model, task)))
    """
    payload = positions_payload(scores, attention, n_edges, title, task=task)
    return _graph_page(payload, Fragment(position_table(scores)))


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


@draws(NeuronEdges)
def neuron_edges_page(edges: NeuronEdges) -> str:
    """The strongest edges between neurons: layers up, spans across."""
    return attribution_page(edges.to_graph())


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
    return _graph_page(payload, Fragment(comparison_table(comparison)))


def positions_payload(
    scores: PositionScores,
    attention: AttentionEdges | None,
    n_edges: int,
    title: str,
    facts: Mapping[str, Sequence[Card]] | None = None,
    task: Task | None = None,
) -> dict[str, Any]:
    """The payload of the strongest edges over positions; `facts` are by ``node@label``."""
    table = positions_table(scores, attention, n_edges)
    title = title or f"Edges by position ({scores.rules})"
    told = span_words(task, scores.labels) if task is not None else ()
    options = GraphOptions(title=title, metric_name=scores.metric_name, facts=facts or {}, place_words=told)
    among = f"the {plural(table.n_of_graph, 'edge')} that the model has over {plural(len(scores.labels), 'position')}"
    return table_payload(table, options, among=among)


def span_words(task: Task, labels: Sequence[str]) -> tuple[str, ...]:
    """What the first test prompt says at each span; empty where the labels are no spans of the task."""
    part = task.test
    spans, tokens = part.pairs.spans, part.prompt_texts(0)[0]
    if not spans or any(label not in spans for label in labels):
        return ()
    told = [[tokens[i] for i in spans[label][0].nonzero().flatten().tolist() if i < len(tokens)] for label in labels]
    return tuple(show_token("".join(words), 60) if words else "" for words in told)


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


def _graph_page(payload: dict[str, Any], *below: Fragment) -> str:
    head = [Fragment("<main>"), graph_fragment(payload)]
    if below:
        head.append(Fragment('<div class="mw-page">'))
    end = Fragment("</div></main>" if below else "</main>")
    return assemble(str(payload["title"]), [*head, *below, end], body_class="mw-standalone")
