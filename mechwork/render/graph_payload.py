"""What the script of the graph is given: nodes, edges and layout as plain JSON, extracted without one object per edge.

Edges are ordered by absolute score, strongest first, so that a threshold is the length of a prefix. A node's score is
the sum of the scores of its outgoing edges that are drawn. Under grouped-query attention a key/value reader serves
several heads; it is a small node of its own (``a3.kv0``), linked to its heads by lines that carry no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..circuits.circuit import Circuit
from ..circuits.scores import EdgeScores
from ..circuits.space import EdgeSpace
from ..errors import InputError, MetricError
from ..provenance import stable
from . import graph_layout
from .cards import Card, cards_markup, plain_facts
from .graph_layout import HEAD, HEIGHTS, INPUT, KV, LOGITS, MLP, PORT, TYPES, WIDTHS
from .text import plain

FORMAT = 1
KINDS = ("q", "k", "v", "mlp", "logits")
MAX_EDGES = 50_000
"""More edges than this are cut before they reach a page, and the page says so."""


@dataclass(frozen=True)
class GraphOptions:
    """What can be said about a graph beyond its edges; all of it optional.

    `facts`, `notes` are by node name; facts are any cards (see `cards`), shown in the side panel. `names` are the names of the
    circuit and of the one it is compared with. `shown` is how many edges are drawn at first. `prompt` holds the tokens that
    an export to an attribution graph names.
    """

    title: str = ""
    facts: Mapping[str, Sequence[Card]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, str] = ("first circuit", "second circuit")
    shown: int | None = None
    metric_name: str = ""
    prompt: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges as columns, strongest first. `member` says which circuit holds an edge: 1, 2, or 3 for both."""

    row: Int[ndarray, " edge"]
    column: Int[ndarray, " edge"]
    score: Float[ndarray, " edge"]
    member: Int[ndarray, " edge"]
    scored: bool
    cut: int


def graph_payload(
    circuit: Circuit,
    options: GraphOptions | None = None,
    *,
    scores: EdgeScores | None = None,
    other: Circuit | None = None,
) -> dict[str, Any]:
    """The payload of a circuit; `scores` adds standard errors and confidence, `other` a second circuit to compare with.

    Raises:
        MetricError: a score of the circuit is NaN or infinite.
        InputError: `scores` or `other` belong to another graph.
    """
    options = options or GraphOptions()
    for what, space in (("scores", scores and scores.space), ("other", other and other.space)):
        if space is not None and space != circuit.space:
            raise InputError(f"a circuit is drawn with the {what} of its own graph; got {space} for {circuit.space}")
    space = circuit.space
    edges = _extract(circuit, other)
    all_types, all_layers, reader_node, reader_kind = _tables(space)
    source, target = edges.row, reader_node[edges.column]
    used = np.zeros(len(all_types), dtype=bool)
    used[source] = used[target] = True
    used[[0, space.n_writers]] = True
    links = _links(space, used)
    ids = np.flatnonzero(used)
    ids = ids[np.lexsort((ids, _running_order(all_types[ids], all_layers[ids])))]
    new = np.zeros(len(all_types), dtype=np.int64)
    new[ids] = np.arange(len(ids))
    types, layers = all_types[ids], all_layers[ids]
    source, target, links = new[source], new[target], new[links]
    kind = reader_kind[edges.column]
    pull = np.sqrt(np.abs(edges.score)) if edges.scored else np.ones(len(source))
    layout = graph_layout.lay_out(
        types,
        layers,
        np.concatenate([source, links[:, 0]]),
        np.concatenate([target, links[:, 1]]),
        np.concatenate([pull, np.full(len(links), pull.max(initial=1.0))]),
        n_layers=space.n_layers,
        parallel=space.parallel,
    )
    port = np.where(types[target] == HEAD, np.array([-PORT, 0, PORT, 0, 0])[kind], 0.0)
    names = [_name(space, i) for i in ids.tolist()]
    roles = [plain(circuit.roles.get(name, "")) for name in names]
    sides = graph_layout.role_sides(layout, types, roles)
    written = [
        graph_layout.role_width(role) if side == "right" else 0.0 for role, side in zip(roles, sides, strict=True)
    ]
    bends = graph_layout.find_bends(layout, types, source, target, port, np.array(written))
    totals = np.bincount(source, edges.score, len(ids))
    provenance = stable(circuit.provenance)
    return {
        "what": "mechwork graph",
        "format": FORMAT,
        "title": options.title or "Circuit",
        "metric": options.metric_name or (scores.metric_name if scores else str(provenance.get("metric", ""))),
        "scored": edges.scored,
        "nEdgesOfGraph": space.n_edges,
        "nEdgesOfCircuit": int((circuit.mask | other.mask).sum()) if other is not None else circuit.n_edges,
        "whole": circuit.n_edges == space.n_edges,
        "cut": edges.cut,
        "compare": list(options.names) if other is not None else None,
        "types": list(TYPES),
        "widths": WIDTHS.tolist(),
        "heights": HEIGHTS.tolist(),
        "port": PORT,
        "kinds": list(KINDS),
        "size": [round(layout.width, 1), round(layout.height, 1)],
        "layers": [{"layer": b.layer, "top": round(b.top, 1), "bottom": round(b.bottom, 1)} for b in layout.bands],
        "nodes": {
            "name": names,
            "type": types.tolist(),
            "layer": layers.tolist(),
            "x": layout.x.round(1).tolist(),
            "y": layout.y.round(1).tolist(),
            "score": _rounded(totals) if edges.scored else None,
            "role": roles,
            "side": sides,
            "note": [plain(options.notes.get(name, circuit.notes.get(name, ""))) for name in names],
            "facts": [plain_facts(options.facts.get(name, ())) for name in names],
            "cards": [cards_markup(options.facts.get(name, ())) for name in names],
        },
        "edges": {
            "source": source.tolist(),
            "target": target.tolist(),
            "kind": kind.tolist(),
            "score": _rounded(edges.score) if edges.scored else None,
            "bend": bends.tolist(),
            "member": edges.member.tolist() if other is not None else None,
            **_uncertainty(scores, edges, circuit.n_edges),
        },
        "links": links.tolist(),
        "supernodes": _supernodes(circuit, names),
        "space": space.to_dict(),
        "requested": circuit.n_requested,
        "prompt": [plain(token) for token in options.prompt],
        "shown": min(options.shown or len(source), len(source)),
        "provenance": provenance,
    }


def _extract(circuit: Circuit, other: Circuit | None) -> _Edges:
    mask = circuit.mask if other is None else circuit.mask | other.mask
    index = mask.nonzero()
    row, column = index[:, 0].numpy(), index[:, 1].numpy()
    scored = circuit.scores is not None
    values = np.zeros(len(row))
    if circuit.scores is not None:
        values = circuit.scores[mask].double().numpy()
        if other is not None and other.scores is not None:
            mine = circuit.mask[mask].numpy()
            values = np.where(mine, values, other.scores[mask].double().numpy())
        if not np.isfinite(values).all():
            first = int(np.flatnonzero(~np.isfinite(values))[0])
            name = circuit.space.edge_name(int(row[first]), int(column[first]))
            raise MetricError(f"scores must be finite to be drawn; {name} has {values[first]}. Score the edges again.")
    order = np.argsort(-np.abs(values), kind="stable")
    cut = max(0, len(order) - MAX_EDGES)
    order = order[:MAX_EDGES]
    member = circuit.mask[mask].numpy().astype(np.int64)
    if other is not None:
        member = member + 2 * other.mask[mask].numpy().astype(np.int64)
    return _Edges(row[order], column[order], values[order], member[order], scored, cut)


def _tables(
    space: EdgeSpace,
) -> tuple[Int[ndarray, " node"], Int[ndarray, " node"], Int[ndarray, " reader"], Int[ndarray, " reader"]]:
    """Types and layers of every possible node (writers, logits, key/value groups); node and kind of every reader."""
    types = [
        INPUT,
        *([HEAD] * space.n_heads + [MLP] * (not space.attn_only)) * space.n_layers,
        LOGITS,
        *[KV] * space.n_layers * space.n_kv_heads,
    ]
    layers = [-1, *(layer for layer in range(space.n_layers) for _ in range(space.writers_per_layer)), space.n_layers]
    layers += [layer for layer in range(space.n_layers) for _ in range(space.n_kv_heads)]
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
        node[space.mlp_reader(layer)] = space.mlp_writer(layer)
        kind[space.mlp_reader(layer)] = KINDS.index("mlp")
    return np.array(types), np.array(layers), node, kind


def _links(space: EdgeSpace, used: ndarray) -> Int[ndarray, "link 2"]:
    """(key/value node, head) for every used group and used head of it."""
    group = space.n_heads // space.n_kv_heads
    pairs = [
        (space.n_writers + 1 + layer * space.n_kv_heads + head // group, space.head_writers(layer).start + head)
        for layer in range(space.n_layers)
        for head in range(space.n_heads)
    ]
    kept = [(kv, head) for kv, head in pairs if group > 1 and used[kv] and used[head]]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _running_order(types: ndarray, layers: ndarray) -> ndarray:
    """Nodes as they run: within a layer the key/value nodes before the heads, the heads before the MLP."""
    rank = np.array([0, 2, 3, 4, 1])
    return layers * 8 + rank[types]


def _name(space: EdgeSpace, node: int) -> str:
    if node < space.n_writers:
        return space.writers[node]
    if node == space.n_writers:
        return "logits"
    layer, head = divmod(node - space.n_writers - 1, space.n_kv_heads)
    return f"a{layer}.kv{head}"


def _supernodes(circuit: Circuit, names: Sequence[str]) -> list[dict[str, Any]]:
    """The circuit's named groups of nodes, each node in one group at most."""
    free, groups = set(names), []
    for name, members in circuit.supernodes.items():
        kept = [member for member in members if member in free]
        free -= set(kept)
        if kept:
            groups.append({"name": plain(name), "members": kept})
    return groups


def _uncertainty(scores: EdgeScores | None, edges: _Edges, n_edges: int) -> dict[str, Any]:
    """Standard errors, and how often an edge is chosen when the pairs are resampled; null without per-pair scores."""
    if scores is None or scores.n_pairs < 2 or not len(edges.row):
        return {"error": None, "confidence": None}
    row, column = torch.from_numpy(edges.row), torch.from_numpy(edges.column)
    error = scores.standard_error()[row, column]
    if not bool(error.isfinite().all()):  # scores that are not means over pairs
        return {"error": None, "confidence": None}
    confidence: Tensor | None = None
    if n_edges < scores.space.n_edges:
        confidence = scores.inclusion(n_edges)[row, column]
    return {
        "error": _rounded(error.double().numpy()),
        "confidence": None if confidence is None else [round(c, 3) for c in confidence.tolist()],
    }


def _rounded(values: ndarray) -> list[float]:
    """Six significant digits: enough for any reader, and the same text on every machine."""
    return [float(f"{value:.6g}") for value in values.tolist()]
