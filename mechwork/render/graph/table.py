"""What a graph is drawn from: nodes and edges as columns, whatever they come from, without one object per edge.

A circuit has one node per component. Under grouped-query attention a key/value reader serves several heads; it is a
small node of its own (``a3.kv0``), linked to its heads by lines that carry no score; so is an MLP whose experts are
nodes. Graphs with positions
(`graph_positions`) have a node per component and place. Two circuits are laid over each other by the names of their
nodes, so they may be of models of different shape; what is called alike then stands at the same place, and nothing more
is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ...circuits.graph.circuit import Circuit
from ...circuits.graph.space import EdgeSpace
from ...errors import MetricError
from ...names import mlp_name
from .layout import HEAD, INPUT, KV, LOGITS, MLP
from .skeleton import connected_order

KINDS = ("q", "k", "v", "mlp", "logits")
MAX_EDGES = 50_000
"""More edges than this are cut before they reach a page, and the page says so."""


@dataclass(frozen=True, eq=False)
class GraphTable:
    """Columns of nodes (in the order in which they run) and of edges (every prefix is the strongest connected part).

    `labels` are written in the nodes, `names` are unique; `places` is the column of each node, -1 where it has none.
    `member`
    says which circuit holds an edge: 1, 2, or 3 for both, `other_score` its score in the second. `cells` are an edge's
    row and column in the scores of its circuit, where it has them; `strength` is what the edges are ordered by, in
    `steps` (see `skeleton`).
    """

    names: list[str]
    labels: list[str]
    types: Int[ndarray, " node"]
    layers: Int[ndarray, " node"]
    places: Int[ndarray, " node"]
    source: Int[ndarray, " edge"]
    target: Int[ndarray, " edge"]
    kind: Int[ndarray, " edge"]
    score: Float[ndarray, " edge"]
    links: Int[ndarray, "link 2"]
    n_layers: int
    n_of_graph: int
    n_of_circuit: int
    scored: bool
    parallel: bool = False
    cut: int = 0
    place_labels: tuple[str, ...] = ()
    member: Int[ndarray, " edge"] | None = None
    other_score: Float[ndarray, " edge"] | None = None
    cells: Int[ndarray, "edge 2"] | None = None
    strength: Float[ndarray, " edge"] = field(default_factory=lambda: np.zeros(0))
    steps: Int[ndarray, " edge"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def circuit_table(circuit: Circuit) -> GraphTable:
    """A circuit's nodes and edges. Raises `MetricError` for scores that are NaN or infinite."""
    space = circuit.space
    cells = circuit.mask.nonzero().numpy()
    scored = circuit.scores is not None
    values = np.zeros(len(cells))
    if circuit.scores is not None:
        values = circuit.scores[circuit.mask].double().numpy()
        if not np.isfinite(values).all():
            first = int(np.flatnonzero(~np.isfinite(values))[0])
            name = space.edge_name(*cells[first].tolist())
            raise MetricError(f"scores must be finite to be drawn; {name} has {values[first]}. Score the edges again.")
    types, layers, reader_node, reader_kind = _tables(space)
    source, target = cells[:, 0], reader_node[cells[:, 1]]
    used = np.zeros(len(types), dtype=bool)
    used[source] = used[target] = True
    used[[*range(space.n_inputs), space.n_writers]] = True
    links = _links(space, used)
    ids = np.flatnonzero(used)
    new = np.zeros(len(types), dtype=np.int64)
    new[ids] = np.arange(len(ids))
    names = [_name(space, i) for i in ids.tolist()]
    found = GraphTable(
        names, names, types[ids], layers[ids], np.full(len(ids), -1), new[source], new[target],
        reader_kind[cells[:, 1]],
        values, new[links], space.n_layers, space.n_edges, circuit.n_edges, scored, space.parallel, cells=cells,
    )  # fmt: skip
    return strongest_first(found)


def overlay(first: Circuit, second: Circuit) -> GraphTable:
    """Two circuits over each other, joined by the names of their nodes. An edge's score is the first circuit's where
    that has it.
    """
    a, b = circuit_table(first), circuit_table(second)
    n_layers = max(a.n_layers, b.n_layers)
    layer = {**_layers_of(b, n_layers), **_layers_of(a, n_layers)}
    kind_of = {**dict(zip(b.names, b.types.tolist(), strict=True)), **dict(zip(a.names, a.types.tolist(), strict=True))}
    names = list(layer)
    index = {name: i for i, name in enumerate(names)}
    rows: dict[tuple[int, int, int], list[float]] = {}
    cells: dict[tuple[int, int, int], list[int]] = {}
    for bit, table in ((1, a), (2, b)):
        place = np.array([index[name] for name in table.names])
        columns = (place[table.source], place[table.target], table.kind, table.score)
        for e, (s, t, k, value) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            row = rows.setdefault((s, t, k), [0.0, 0.0, 0.0])
            row[0] += bit
            row[bit] = value
            if table.cells is not None:
                cells.setdefault((s, t, k), table.cells[e].tolist())
    member = np.array([int(row[0]) for row in rows.values()], dtype=np.int64)
    ends = np.array([row[1:] for row in rows.values()]).reshape(-1, 2)
    keys = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
    links = {(index[t.names[i]], index[t.names[j]]) for t in (a, b) for i, j in t.links.tolist()}
    same = first.space == second.space
    found = GraphTable(
        names, names, np.array([kind_of[name] for name in names]), np.array([layer[name] for name in names]),
        np.full(len(names), -1),
        keys[:, 0], keys[:, 1], keys[:, 2], np.where(member == 2, ends[:, 1], ends[:, 0]),
        np.array(sorted(links), dtype=np.int64).reshape(-1, 2), n_layers, max(a.n_of_graph, b.n_of_graph), len(keys),
        a.scored or b.scored,
        a.parallel and b.parallel, member=member, other_score=ends[:, 1] if b.scored else None,
        cells=np.array([cells[key] for key in rows]).reshape(-1, 2) if same else None,
    )  # fmt: skip
    return strongest_first(found)


def strongest_first(table: GraphTable) -> GraphTable:
    """Nodes in running order; edges by strength, then absolute score, the `MAX_EDGES` of largest score among them."""
    node = np.lexsort((np.arange(len(table.names)), table.places, _running_order(table.types, table.layers)))
    new = np.empty(len(node), dtype=np.int64)
    new[node] = np.arange(len(node))
    size = np.abs(table.score) if table.scored else np.ones(len(table.score))
    edge = np.argsort(-size, kind="stable")[:MAX_EDGES]
    by, strength, steps = _connected(table, new, edge, size)
    edge = edge[by]

    def kept(column: ndarray | None) -> ndarray | None:
        return None if column is None else column[edge]

    return replace(
        table,
        names=[table.names[i] for i in node],
        labels=[table.labels[i] for i in node],
        types=table.types[node],
        layers=table.layers[node],
        places=table.places[node],
        source=new[table.source[edge]],
        target=new[table.target[edge]],
        kind=table.kind[edge],
        score=table.score[edge],
        links=new[table.links],
        cut=max(0, len(table.score) - MAX_EDGES),
        member=kept(table.member),
        other_score=kept(table.other_score),
        cells=kept(table.cells),
        strength=strength,
        steps=steps,
    )


def _connected(table: GraphTable, new: ndarray, edge: ndarray, size: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Order, strengths and steps of these edges; the links of key/value groups carry any strength."""
    links, n = new[table.links], len(table.links)
    source = np.concatenate([new[table.source[edge]], links[:, 0]])
    target = np.concatenate([new[table.target[edge]], links[:, 1]])
    weight = np.concatenate([size[edge], np.full(n, np.inf)])
    starts, ends = (new[np.flatnonzero(table.types == kind)] for kind in (INPUT, LOGITS))
    return connected_order(len(table.names), source, target, weight, starts, ends, len(edge))


def _layers_of(table: GraphTable, n_layers: int) -> dict[str, int]:
    """Name -> layer, the logits above everything."""
    pairs: Sequence[tuple[str, int]] = list(zip(table.names, table.layers.tolist(), strict=True))
    return {name: n_layers if name == "logits" else layer for name, layer in pairs}


def _tables(
    space: EdgeSpace,
) -> tuple[Int[ndarray, " node"], Int[ndarray, " node"], Int[ndarray, " reader"], Int[ndarray, " reader"]]:
    """Types and layers of every possible node (writers, logits, key/value groups); node and kind of every reader."""
    types = [
        *[INPUT] * space.n_inputs,
        *([HEAD] * space.n_heads + [MLP] * space.mlp_writers_per_layer) * space.n_layers,
        LOGITS,
        *[KV] * space.n_layers * space.n_kv_heads,
        *[MLP] * (space.n_layers if space.n_experts else 0),
    ]
    blocks = [layer for layer in range(space.n_layers) for _ in range(space.writers_per_layer)]
    layers = [*[-1] * space.n_inputs, *blocks, space.n_layers]
    layers += [layer for layer in range(space.n_layers) for _ in range(space.n_kv_heads)]
    layers += range(space.n_layers if space.n_experts else 0)
    grouped = space.n_heads > space.n_kv_heads
    node, kind = np.full(space.n_readers, space.n_writers), np.full(space.n_readers, KINDS.index("logits"))
    for layer in range(space.n_layers):
        heads = space.head_writers(layer).start
        groups = space.n_writers + 1 + layer * space.n_kv_heads
        for code, name in enumerate("qkv"):
            columns = space.attention_readers(layer, name)
            first = groups if grouped and name != "q" else heads
            node[columns] = first + np.arange(columns.stop - columns.start)
            kind[columns] = code
    for layer in space.mlps:
        node[space.mlp_reader(layer)] = _mlp_node(space, layer)
        kind[space.mlp_reader(layer)] = KINDS.index("mlp")
    return np.array(types), np.array(layers), node, kind


def _mlp_node(space: EdgeSpace, layer: int) -> int:
    """The node that reads for a layer's MLP; with experts as nodes one of its own, behind all others."""
    if not space.n_experts:
        return space.mlp_writers(layer).start
    return space.n_writers + 1 + space.n_layers * space.n_kv_heads + layer


def _links(space: EdgeSpace, used: ndarray) -> Int[ndarray, "link 2"]:
    """(key/value node, head) for every used group and used head of it; (MLP, expert) where experts are nodes."""
    group = space.n_heads // space.n_kv_heads
    pairs = [
        (space.n_writers + 1 + layer * space.n_kv_heads + head // group, space.head_writers(layer).start + head)
        for layer in range(space.n_layers)
        for head in range(space.n_heads)
    ]
    kept = [(kv, head) for kv, head in pairs if group > 1 and used[kv] and used[head]]
    if space.n_experts:
        rows = [
            (_mlp_node(space, layer), row)
            for layer in space.mlps
            for row in range(space.n_writers)[space.mlp_writers(layer)]
        ]
        kept += [(mlp, row) for mlp, row in rows if used[mlp] and used[row]]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _running_order(types: ndarray, layers: ndarray) -> ndarray:
    """Nodes as they run: within a layer the key/value nodes before the heads, the heads before the MLP."""
    rank = np.array([0, 2, 3, 6, 1, 4, 5])
    return layers * 8 + rank[types]


def _name(space: EdgeSpace, node: int) -> str:
    if node < space.n_writers:
        return space.writers[node]
    if node == space.n_writers:
        return "logits"
    layer, head = divmod(node - space.n_writers - 1, space.n_kv_heads)
    if layer >= space.n_layers:
        return mlp_name(node - _mlp_node(space, 0))
    return f"a{layer}.kv{head}"
