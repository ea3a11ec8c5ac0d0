"""The layouts of one graph by how many of its edges are shown: few edges need few rows, and stand close together.

A level is a layout of the nodes of the first `edges` edges. The script takes the first level that has as many edges as
are shown; beyond the last level the layout of the whole graph holds. Ghosts are edges of the circuit between nodes of
the level that are not among its first edges, where a plain curve can be drawn without running over a node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from .layout import HEAD, HEIGHTS, INPUT, PORT, WIDTHS, Layout, find_bends, lay_out_places, sample_curves
from .routing import Routed, lay_out_routed
from .skeleton import default_size
from .table import GraphTable

SIZES = (60, 150)
"""Edges of the levels after the first; a level's edges are all routed."""
MAX_GHOSTS = 120
GROWTH = 14.0
"""Room beside a node, into which it grows with its name on a small screen (`assets/graph/pills.js`)."""


def graph_levels(table: GraphTable, shown: int) -> list[dict[str, Any]]:
    """The levels of a graph, smallest first."""
    n = len(table.source)
    if not n:
        return []
    sizes = sorted({min(size, n) for size in (default_size(table.steps), shown, *SIZES) if size <= SIZES[-1]})
    return [_level_of_places(table, size) if table.place_labels else _level(table, size) for size in sizes]


def _level_of_places(table: GraphTable, size: int) -> dict[str, Any]:
    """All columns, and the rows of the layers in use; edges bow around nodes, in a corridor of their own there is no
    room between columns.
    """
    source, target = table.source[:size], table.target[:size]
    ids = np.unique(np.concatenate([source, target]))
    new = np.full(len(table.types), -1)
    new[ids] = np.arange(len(ids))
    types, ends = table.types[ids], (new[source], new[target])
    layers = np.unique(table.layers[ids])
    inner = layers[(layers >= 0) & (layers < table.n_layers)]
    rows = np.searchsorted(inner, table.layers[ids])
    rows[types == INPUT] = -1
    pull = np.sqrt(np.abs(table.score[:size])) if table.scored else np.ones(size)
    layout = lay_out_places(
        types, rows, table.places[ids], *ends, pull, n_layers=len(inner), n_places=len(table.place_labels)
    )
    bends = find_bends(layout, types, *ends, ports(types[ends[1]], table.kind[:size]))

    def placed(values: ndarray) -> list[float | None]:
        found: list[float | None] = [None] * len(table.types)
        for i, value in zip(ids.tolist(), values.round(1).tolist(), strict=True):
            found[i] = value
        return found

    return {
        "edges": size,
        "x": placed(layout.x),
        "y": placed(layout.y),
        "routes": [],
        "bends": bends.tolist(),
        "links": [],
        "ghosts": [],
        "size": [round(layout.width, 1), round(layout.height, 1)],
        "layers": [
            {"layer": int(k), "label": f"layer {k}", "top": round(b.top, 1), "bottom": round(b.bottom, 1)}
            for k, b in zip(inner.tolist(), layout.bands, strict=True)
        ],
        "places": [{"left": round(c.left, 1), "right": round(c.right, 1)} for c in layout.columns],
    }


def _level(table: GraphTable, size: int) -> dict[str, Any]:
    source, target = table.source[:size], table.target[:size]
    score = np.abs(table.score[:size]) if table.scored else np.ones(size)
    used = np.zeros(len(table.types), dtype=bool)
    used[source] = used[target] = True
    links = np.flatnonzero(used[table.links].all(axis=1))
    start, end = (np.concatenate([a, table.links[links, k]]) for k, a in enumerate((source, target)))
    weight = np.concatenate([score / max(float(score.max()), 1e-12), np.ones(len(links))])
    routed = lay_out_routed(table.types, table.layers, start, end, weight)
    bands = [
        {"layer": b.layer, "label": label, "top": round(b.top, 1), "bottom": round(b.bottom, 1)}
        for b, label in zip(routed.bands, routed.labels, strict=True)
    ]
    return {
        "edges": size,
        "x": [None if np.isnan(x) else round(float(x), 1) for x in routed.x],
        "y": [None if np.isnan(y) else round(float(y), 1) for y in routed.y],
        "routes": routed.routes[:size],
        "links": [[int(k), route] for k, route in zip(links, routed.routes[size:], strict=True)],
        "ghosts": _ghosts(table, routed, size),
        "size": [round(routed.width, 1), round(routed.height, 1)],
        "layers": bands,
    }


def _ghosts(table: GraphTable, routed: Routed, size: int) -> list[list[int]]:
    """(edge, bend) of the further edges between these nodes that can be drawn freely, strongest first."""
    inside = ~np.isnan(routed.x)
    rest = np.arange(size, min(len(table.source), 20 * MAX_GHOSTS))
    rest = rest[inside[table.source[rest]] & inside[table.target[rest]]]
    rest = rest[routed.y[table.source[rest]] > routed.y[table.target[rest]] + 1][:MAX_GHOSTS]
    if not len(rest):
        return []
    ids = np.flatnonzero(inside)
    new = np.full(len(inside), -1)
    new[ids] = np.arange(len(ids))
    layout = Layout(routed.x[ids], routed.y[ids], (), routed.width, routed.height)
    types, source, target = table.types[ids], new[table.source[rest]], new[table.target[rest]]
    port = ports(types[target], table.kind[rest])
    bends = find_bends(layout, types, source, target, port)
    free = ~crosses(layout, types, source, target, port, bends)
    return [[int(e), int(b)] for e, b, ok in zip(rest, bends, free, strict=True) if ok]


def ports(target_types: ndarray, kind: ndarray) -> ndarray:
    """Where an edge enters its target, as a share of the target's width: q left, k in the middle, v right."""
    return np.where(target_types == HEAD, np.array([-PORT, 0, PORT, 0, 0])[kind], 0.0)


def crosses(layout: Layout, types: ndarray, source: ndarray, target: ndarray, port: ndarray, bends: ndarray) -> ndarray:
    """Per edge: whether its curve runs over a node that is not one of its ends."""
    px, py = sample_curves(layout, types, source, target, port, bends.astype(float), n=240)
    found = np.zeros(len(source), dtype=bool)
    for node in range(len(types)):
        inside = (np.abs(px - layout.x[node]) < WIDTHS[types[node]] / 2 + GROWTH) & (
            np.abs(py - layout.y[node]) < HEIGHTS[types[node]] / 2 + 2
        )
        found |= inside.any(axis=1) & (source != node) & (target != node)
    return found
