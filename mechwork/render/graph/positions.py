"""Graphs with positions: layers up, tokens or spans across; from edge scores by position, and from attribution-graph
files.

The residual stream is a column: an edge of `PositionScores` leads from a writer to a reader at one position. A head
moves between columns; those movements (`AttentionEdges`) are edges from the head at the key's position to the head at
the query's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...circuits.graph.graph_file import AttributionGraph
from ...circuits.graph.space import EdgeSpace
from ...circuits.scoring.attention_edges import AttentionEdges
from ...circuits.scoring.positions import PositionScores
from ...errors import InputError
from ..page.text import plain, show_token
from .layout import ERROR, FEATURE, HEAD, INPUT, LOGITS, MLP
from .table import KINDS, GraphTable, strongest_first

N_EDGES = 300
"""Edges of scores by position that are drawn; the whole graph has one copy per position."""


def positions_table(
    scores: PositionScores, attention: AttentionEdges | None = None, n_edges: int = N_EDGES
) -> GraphTable:
    """The `n_edges` strongest (position, edge), and with `attention` the strongest movements between positions among
    them.

    Raises `InputError` when the two have other positions.
    """
    if attention is not None and attention.labels != scores.labels:
        raise InputError(
            f"movements between positions are drawn over the same positions; got {attention.labels} for {scores.labels}"
        )
    space = scores.space
    values = scores.values.double()
    rows: list[tuple[str, int, str, int, int, float]] = []
    order = values.abs().flatten().argsort(descending=True, stable=True)[:n_edges].tolist()
    for flat in order:
        place, cell = divmod(flat, space.n_writers * space.n_readers)
        writer, reader = divmod(cell, space.n_readers)
        value = float(values[place, writer, reader])
        if value:
            rows += [
                (space.writers[writer], place, node, place, kind, value) for node, kind in _reader_nodes(space, reader)
            ]
    if attention is not None:
        rows += [
            (name, key, name, query, KINDS.index(kind), value)
            for name, kind, key, query, value in _movements(attention, n_edges)
        ]
    rows = sorted(rows, key=lambda row: -abs(row[-1]))[:n_edges]
    n_of_graph = len(scores.labels) * space.n_edges
    last = len(scores.labels) - 1
    seen = dict.fromkeys([("input", 0), ("logits", last)] if not rows else [])
    for source, i, target, j, *_ in rows:
        seen |= {(source, i): None, (target, j): None}
    names = {place: f"{place[0]}@{scores.labels[place[1]]}" for place in seen}
    index = {place: k for k, place in enumerate(seen)}
    table = GraphTable(
        names=list(names.values()),
        labels=[name for name, _ in seen],
        types=np.array([_type_of(name) for name, _ in seen]),
        layers=np.array([_layer_of(name, space.n_layers) for name, _ in seen]),
        places=np.array([place for _, place in seen]),
        source=np.array([index[row[0], row[1]] for row in rows], dtype=np.int64),
        target=np.array([index[row[2], row[3]] for row in rows], dtype=np.int64),
        kind=np.array([row[4] for row in rows], dtype=np.int64),
        score=np.array([row[5] for row in rows], dtype=float),
        links=np.zeros((0, 2), dtype=np.int64),
        n_layers=space.n_layers,
        n_of_graph=n_of_graph,
        n_of_circuit=len(rows),
        scored=True,
        place_labels=tuple(show_token(label, 16) for label in scores.labels),
    )
    return strongest_first(table)


def attribution_table(graph: AttributionGraph) -> tuple[GraphTable, list[str]]:
    """An attribution graph as columns, and a label for each node (its ``clerp``), in the order of the table's nodes."""
    nodes = graph.nodes
    types = [_file_type(node) for node in nodes]
    numbers = [int(node["layer"]) if re.fullmatch(r"-?\d+", str(node["layer"])) else -1 for node in nodes]
    n_layers = max([n + 1 for n, t in zip(numbers, types, strict=True) if t not in (INPUT, LOGITS)], default=1)
    layers = [-1 if t == INPUT else n_layers if t == LOGITS else n for n, t in zip(numbers, types, strict=True)]
    index = {node["node_id"]: i for i, node in enumerate(nodes)}
    tokens = [str(token) for token in graph.metadata.get("prompt_tokens", [])]
    places = [max(0, int(node.get("ctx_idx", 0))) for node in nodes]
    n_places = max([len(tokens), *(place + 1 for place in places)])
    tokens += [str(k) for k in range(len(tokens), n_places)]
    kinds = [_file_kind(link, types[index[link["target"]]]) for link in graph.links]
    table = GraphTable(
        names=[plain(str(node["node_id"])) for node in nodes],
        labels=[_file_label(node) for node in nodes],
        types=np.array(types, dtype=np.int64),
        layers=np.array(layers, dtype=np.int64),
        places=np.array(places, dtype=np.int64),
        source=np.array([index[link["source"]] for link in graph.links], dtype=np.int64),
        target=np.array([index[link["target"]] for link in graph.links], dtype=np.int64),
        kind=np.array(kinds, dtype=np.int64),
        score=np.array([float(link["weight"]) for link in graph.links]),
        links=np.zeros((0, 2), dtype=np.int64),
        n_layers=n_layers,
        n_of_graph=len(graph.links),
        n_of_circuit=len(graph.links),
        scored=True,
        place_labels=tuple(show_token(token, 16) for token in tokens),
    )
    table = strongest_first(table)
    said = graph.labels
    return table, [plain(said.get(name, "")) for name in table.names]


def _reader_nodes(space: EdgeSpace, column: int) -> list[tuple[str, int]]:
    """The nodes that a reader belongs to (the heads of its group) and its kind."""
    reader = space.readers[column]
    if not reader.endswith(">"):
        return [(reader, KINDS.index("logits" if reader == "logits" else "mlp"))]
    owners = space.feeds[:, column].nonzero().flatten().tolist()
    return [(space.writers[i], KINDS.index(reader[-2])) for i in owners][:1]


def _movements(attention: AttentionEdges, n: int) -> list[tuple[str, str, int, int, float]]:
    """The `n` strongest movements to another position: head, kind, key's and query's position, score."""
    values = attention.values.double()
    order = values.abs().flatten().argsort(descending=True, stable=True)
    found: list[tuple[str, str, int, int, float]] = []
    for flat in order.tolist():
        layer, head, kind, query, key = (int(i) for i in np.unravel_index(flat, tuple(values.shape)))
        value = float(values[layer, head, kind, query, key])
        if len(found) == n or value == 0:
            break
        if query != key:
            found.append((f"a{layer}.h{head}", "qkv"[kind], key, query, value))
    return found


def _type_of(name: str) -> int:
    return {"i": INPUT, "a": HEAD, "m": MLP, "l": LOGITS}[name[0]]


def _layer_of(name: str, n_layers: int) -> int:
    if name in ("input", "logits"):
        return -1 if name == "input" else n_layers
    return int(name[1:].split(".", maxsplit=1)[0])


def _file_type(node: dict[str, Any]) -> int:
    said = str(node.get("feature_type", "")).lower()
    words: Sequence[tuple[str, int]] = (
        ("embed", INPUT), ("error", ERROR), ("head", HEAD), ("logit", LOGITS),
    )  # fmt: skip
    return next((code for word, code in words if word in said), MLP if said == "mlp" else FEATURE)


def _file_kind(link: dict[str, Any], target: int) -> int:
    kind = str(link.get("kind", ""))
    return KINDS.index(kind) if kind in KINDS else KINDS.index("logits" if target == LOGITS else "mlp")


def _file_label(node: dict[str, Any]) -> str:
    """A short name: the label up to a colon where it is short, else layer and feature."""
    said = plain(str(node.get("clerp") or "")).split(":")[0].strip()
    return said if 0 < len(said) <= 12 else f"{node['layer']}/{node.get('feature', '')}"[:12]
