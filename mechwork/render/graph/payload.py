"""What the script of the graph is given: nodes, edges and layout as plain JSON, extracted without one object per edge.

Edges are ordered so that every prefix is the strongest connected part (see `skeleton`): a threshold is the length of a
prefix. A node's score is the sum of the scores of its outgoing edges that are drawn. What the nodes and edges are is
decided in `graph_table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ...circuits.graph.circuit import Circuit
from ...circuits.scoring.scores import EdgeScores
from ...circuits.testing.curves import FaithfulnessCurve
from ...errors import InputError
from ...provenance import stable
from ..page.cards import Card, cards_markup, plain_facts
from ..page.text import count, plain, plural
from . import layout as graph_layout
from .layout import HEIGHTS, PORT, TYPES, WIDTHS
from .levels import graph_levels, ports
from .skeleton import default_size, faithfulness_points
from .table import KINDS, GraphTable, circuit_table, overlay

FORMAT = 1


@dataclass(frozen=True)
class GraphOptions:
    """What can be said about a graph beyond its edges; all of it optional.

    `facts`, `notes` are by node name; facts are any cards (see `cards`), shown in the side panel. `names` are the names
    of the circuit and of the one it is compared with. `shown` is how many edges are drawn at first (default: the
    strongest connected 12 to 25). `prompt` holds the tokens that an export to an attribution graph names, `place_words`
    what one prompt says at each place of a graph with places. From `curve`, which must be of the circuit's own scores,
    the slider reads how faithful the edges shown are.
    """

    title: str = ""
    facts: Mapping[str, Sequence[Card]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, str] = ("first circuit", "second circuit")
    shown: int | None = None
    metric_name: str = ""
    prompt: Sequence[str] = ()
    place_words: Sequence[str] = ()
    curve: FaithfulnessCurve | None = None


def graph_payload(
    circuit: Circuit,
    options: GraphOptions | None = None,
    *,
    scores: EdgeScores | None = None,
    other: Circuit | None = None,
) -> dict[str, Any]:
    """The payload of a circuit; `scores` adds standard errors and confidence, `other` a second circuit to compare with.

    `other` may be of a model of another shape: nodes are matched by name.

    Raises:
        MetricError: a score of the circuit is NaN or infinite.
        InputError: `scores` belong to another graph.
    """
    options = options or GraphOptions()
    if scores is not None and scores.space != circuit.space:
        raise InputError(f"a circuit is drawn with the scores of its own graph; got {scores.space} for {circuit.space}")
    table = circuit_table(circuit) if other is None else overlay(circuit, other)
    both = {**other.roles, **circuit.roles} if other is not None else circuit.roles
    notes = {**circuit.notes, **options.notes}
    among = f"the model's {plural(table.n_of_graph, 'edge')}"
    if other is not None and other.space != circuit.space:
        among = f"the two models' edges, of which the larger has {count(table.n_of_graph)}"
    payload = table_payload(table, options, roles=both, notes=notes, among=among)
    payload["edges"] |= _uncertainty(scores, table, circuit.n_edges)
    payload["metric"] = options.metric_name or (scores.metric_name if scores else payload["metric"])
    provenance = stable(circuit.provenance)
    return payload | {
        "metric": payload["metric"] or str(provenance.get("metric", "")),
        "whole": circuit.n_edges == circuit.space.n_edges,
        "compare": list(options.names) if other is not None else None,
        "supernodes": _supernodes(circuit, payload["nodes"]["name"]),
        "space": circuit.space.to_dict() if other is None else None,
        "requested": circuit.n_requested,
        "provenance": provenance,
    }


def table_payload(
    table: GraphTable,
    options: GraphOptions,
    *,
    roles: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    among: str,
) -> dict[str, Any]:
    """The payload of any table of nodes and edges; `among` says in words what the edges were chosen from."""
    roles, notes = roles or {}, notes or {}
    names, types, source, target = table.names, table.types, table.source, table.target
    pull = np.sqrt(np.abs(table.score)) if table.scored else np.ones(len(source))
    ends = np.concatenate([source, table.links[:, 0]]), np.concatenate([target, table.links[:, 1]])
    weight = np.concatenate([pull, np.full(len(table.links), pull.max(initial=1.0))])
    if table.place_labels:
        layout = graph_layout.lay_out_places(
            types, table.layers, table.places, *ends, weight, n_layers=table.n_layers, n_places=len(table.place_labels)
        )
    else:
        layout = graph_layout.lay_out(
            types, table.layers, *ends, weight, n_layers=table.n_layers, parallel=table.parallel
        )
    said = [plain(roles.get(name, "")) for name in names]
    bends = graph_layout.find_bends(layout, types, source, target, ports(types[target], table.kind))
    shown = min(options.shown or default_size(table.steps), len(source))
    totals = np.bincount(source, table.score, len(names))
    told = [plain(word) for word in options.place_words] or [""] * len(table.place_labels)
    columns = zip(table.place_labels, told, layout.columns, strict=True) if table.place_labels else ()
    return {
        "what": "mechwork graph",
        "format": FORMAT,
        "title": options.title or "Circuit",
        "metric": options.metric_name,
        "scored": table.scored,
        "nEdgesOfGraph": table.n_of_graph,
        "nEdgesOfCircuit": table.n_of_circuit,
        "among": among,
        "whole": False,
        "cut": table.cut,
        "compare": None,
        "types": list(TYPES),
        "widths": WIDTHS.tolist(),
        "heights": HEIGHTS.tolist(),
        "port": PORT,
        "kinds": list(KINDS),
        "size": [round(layout.width, 1), round(layout.height, 1)],
        "layers": [
            {"layer": b.layer, "label": f"layer {b.layer}", "top": round(b.top, 1), "bottom": round(b.bottom, 1)}
            for b in layout.bands
        ],
        "places": [
            {"label": label, "words": word, "left": round(c.left, 1), "right": round(c.right, 1)}
            for label, word, c in columns
        ],
        "nodes": {
            "name": names,
            "label": table.labels,
            "type": types.tolist(),
            "layer": table.layers.tolist(),
            "place": table.places.tolist(),
            "x": layout.x.round(1).tolist(),
            "y": layout.y.round(1).tolist(),
            "score": _rounded(totals) if table.scored else None,
            "role": said,
            "note": [plain(notes.get(name, "")) for name in names],
            "facts": [plain_facts(options.facts.get(name, ())) for name in names],
            "cards": [cards_markup(options.facts.get(name, ())) for name in names],
        },
        "edges": {
            "source": source.tolist(),
            "target": target.tolist(),
            "kind": table.kind.tolist(),
            "score": _rounded(table.score) if table.scored else None,
            "bend": bends.tolist(),
            "member": None if table.member is None else table.member.tolist(),
            "other": None if table.other_score is None else _rounded(table.other_score),
            "error": None,
            "confidence": None,
        },
        "links": table.links.tolist(),
        "roles": _role_order(said),
        "supernodes": [],
        "space": None,
        "requested": None,
        "prompt": [plain(token) for token in options.prompt],
        "shown": shown,
        "levels": graph_levels(table, shown),
        "faithfulness": faithfulness_points(options.curve),
        "ablation": options.curve.ablation if options.curve is not None else "",
        "provenance": {},
    }


def _role_order(said: Sequence[str]) -> list[str]:
    """Roles, that of most nodes first: the order of their colours."""
    found = dict.fromkeys(role for role in said if role)
    return sorted(found, key=lambda role: -said.count(role))


def _supernodes(circuit: Circuit, names: Sequence[str]) -> list[dict[str, Any]]:
    """The circuit's named groups of nodes, each node in one group at most."""
    free, groups = set(names), []
    for name, members in circuit.supernodes.items():
        kept = [member for member in members if member in free]
        free -= set(kept)
        if kept:
            groups.append({"name": plain(name), "members": kept})
    return groups


def _uncertainty(scores: EdgeScores | None, table: GraphTable, n_edges: int) -> dict[str, Any]:
    """Standard errors, and how often an edge is chosen when the pairs are resampled; null without per-pair scores."""
    if scores is None or scores.n_pairs < 2 or not len(table.source) or table.cells is None:
        return {"error": None, "confidence": None}
    row, column = torch.from_numpy(table.cells).T
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
