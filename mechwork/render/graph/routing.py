"""The layout of a small graph: one row per layer that is drawn, and edges that run between nodes, never through them.

After Sugiyama, Tagawa and Toda (1981). An edge that passes a row gets a slot of its own in that row, so slots and nodes
are
ordered and spaced together: rows are sorted by the barycentre of what their members are connected with (the order with
fewest crossings is kept), then moved as near to their neighbours as the spacing allows. Edges bend only in the gaps
between rows. Deterministic. Units are pixels at zoom 1, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .layout import HEIGHTS, INPUT, KV, LOGITS, MLP, WIDTHS, Band

SWEEPS, SETTLES = 16, 24
SLOT, GAP, CLEAR = 11.0, 38.0, 19.0
"""Room of an edge between two edges, between two nodes, and between a node and an edge."""
LEAST_PITCH, MOST_PITCH, ASPECT, MARGIN = 74.0, 118.0, 1.75, 70.0
MOST_ROWS, MOST_IN_ROW = 11, 8
"""Neighbouring layers without an edge between them share a row while there are more rows than this."""


@dataclass(frozen=True, eq=False)
class Routed:
    """Places of nodes (NaN: not in this layout), the points each edge passes, and the bands of the layers."""

    x: Float[ndarray, " node"]
    y: Float[ndarray, " node"]
    routes: list[list[float]]
    bands: tuple[Band, ...]
    labels: tuple[str, ...]
    width: float
    height: float


def lay_out_routed(
    types: Int[ndarray, " node"],
    layers: Int[ndarray, " node"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    weight: Float[ndarray, " edge"],
) -> Routed:
    """Places of the nodes that these edges join, and the route of every edge as x, y of the points between its ends."""
    rows, spans = _rows(types, layers, source, target)
    row_of = {node: r for r, row in enumerate(rows) for node in row}
    items: list[list[tuple[int, int]]] = [[(node, -1) for node in row] for row in rows]
    links: list[list[tuple[tuple[int, int], tuple[int, int], float]]] = [[] for _ in rows[1:]]
    chains: list[list[tuple[int, int]]] = []
    for e, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        chain = [(s, -1), *((e, r) for r in range(row_of[s] + 1, row_of[t])), (t, -1)]
        for r, slot in enumerate(chain[1:-1], start=row_of[s] + 1):
            items[r].append(slot)
        for r, (a, b) in enumerate(pairwise(chain), start=row_of[s]):
            straight = 1.0 + 2.0 * (a[1] >= 0) + 2.0 * (b[1] >= 0)
            links[r].append((a, b, straight * (0.3 + float(weight[e]))))
        chains.append(chain)
    ordered = _order(items, links)
    at = _place(ordered, links, types)
    return _finish(types, rows, spans, chains, at)


def _rows(types: ndarray, layers: ndarray, source: ndarray, target: ndarray) -> tuple[list[list[int]], list[list[int]]]:
    """Nodes by row from the input up, and the layers of every row."""
    used = sorted({*source.tolist(), *target.tolist()})
    rank = {INPUT: 0, KV: 1, MLP: 3, LOGITS: 4}
    cells: dict[tuple[int, int], list[int]] = {}
    for node in used:
        kind = int(types[node])
        level = int(layers[node]) if kind not in (INPUT, LOGITS) else -1 if kind == INPUT else int(layers.max()) + 1
        cells.setdefault((level, rank.get(kind, 2)), []).append(node)
    rows = [cells[key] for key in sorted(cells)]
    spans = [[key[0]] for key in sorted(cells)]
    joined = {(int(a), int(b)) for a, b in zip(source, target, strict=True)}
    ends = {INPUT, LOGITS}
    while len(rows) > MOST_ROWS:
        free = [
            r
            for r in range(len(rows) - 1)
            if not ({int(types[n]) for n in rows[r] + rows[r + 1]} & ends)
            and len(rows[r]) + len(rows[r + 1]) <= MOST_IN_ROW
            and not any((a, b) in joined for a in rows[r] for b in rows[r + 1])
        ]
        if not free:
            break
        best = min(free, key=lambda r: (len(rows[r]) + len(rows[r + 1]), r))
        rows[best : best + 2] = [rows[best] + rows[best + 1]]
        spans[best : best + 2] = [sorted({*spans[best], *spans[best + 1]})]
    return rows, spans


def _order(items: list[list], links: list[list]) -> list[list]:
    """The order of every row with the fewest crossings that barycentre sweeps find."""
    rows = [list(row) for row in items]
    place = {item: k for row in rows for k, item in enumerate(row)}
    near: dict[tuple[tuple[int, int], int], list[tuple[tuple[int, int], float]]] = {}
    for gap in links:
        for a, b, w in gap:
            near.setdefault((b, -1), []).append((a, w))
            near.setdefault((a, 1), []).append((b, w))
    best, fewest = [list(row) for row in rows], _crossings(links, place)
    for sweep in range(SWEEPS):
        side = -1 if sweep % 2 == 0 else 1
        for row in rows if side < 0 else rows[::-1]:
            size = max(len(row) - 1, 1)
            pull = {}
            for item in row:
                known = near.get((item, side), [])
                total = sum(w for _, w in known)
                pull[item] = sum(w * place[i] for i, w in known) / total if total else place[item] / size * len(row)
            row.sort(key=lambda item: (round(pull[item], 6), place[item]))
            place |= {item: k for k, item in enumerate(row)}
        found = _crossings(links, place)
        if found < fewest:
            best, fewest = [list(row) for row in rows], found
    return best


def _crossings(links: list[list], place: dict) -> float:
    total = 0.0
    for gap in links:
        if len(gap) < 2:
            continue
        a = np.array([place[link[0]] for link in gap])
        b = np.array([place[link[1]] for link in gap])
        total += float((((a[:, None] - a) * (b[:, None] - b)) < 0).sum()) / 2
    return total


def _place(rows: list[list], links: list[list], types: ndarray) -> dict:
    """x of every item: as near to the mean of its neighbours as order and spacing allow."""

    def half(item: tuple[int, int]) -> float:
        return 0.0 if item[1] >= 0 else float(WIDTHS[types[item[0]]]) / 2

    def room(a: tuple[int, int], b: tuple[int, int]) -> float:
        slots = (a[1] >= 0) + (b[1] >= 0)
        return half(a) + half(b) + (GAP, CLEAR, SLOT)[slots]

    offsets = [np.concatenate([[0.0], np.cumsum([room(a, b) for a, b in pairwise(row)])]) for row in rows]
    at = {
        item: o - offset[-1] / 2
        for row, offset in zip(rows, offsets, strict=True)
        for item, o in zip(row, offset, strict=True)
    }
    near: dict[tuple[int, int], list[tuple[tuple[int, int], float]]] = {}
    for gap in links:
        for a, b, w in gap:
            near.setdefault(a, []).append((b, w))
            near.setdefault(b, []).append((a, w))
    for sweep in range(SETTLES):
        for row, offset in list(zip(rows, offsets, strict=True))[:: 1 if sweep % 2 == 0 else -1]:
            pull = [sum(w * at[i] for i, w in near[item]) / sum(w for _, w in near[item]) for item in row]
            force = [sum(w for _, w in near[item]) for item in row]
            level = _isotonic(np.array(pull) - offset, np.array(force)) + offset
            at |= {item: float(x) for item, x in zip(row, level, strict=True)}
    return at


def _isotonic(wanted: ndarray, weight: ndarray) -> ndarray:
    """The nondecreasing sequence nearest to `wanted` in weighted squares (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value, w in zip(wanted.tolist(), weight.tolist(), strict=True):
        blocks.append([value, w, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            v, b, n = blocks.pop()
            u, a, m = blocks[-1]
            blocks[-1] = [(u * a + v * b) / (a + b), a + b, m + n]
    return np.concatenate([np.full(int(n), v) for v, _, n in blocks])


def _finish(types: ndarray, rows: list[list[int]], spans: list[list[int]], chains: list[list], at: dict) -> Routed:
    """Shifts, stretches to the wanted aspect, and writes routes as points."""
    nodes = [node for row in rows for node in row]
    reach = [at[n, -1] + side * float(WIDTHS[types[n]]) / 2 for n in nodes for side in (-1, 1)]
    left, right = min(*reach, *at.values()) - MARGIN, max(*reach, *at.values()) + MARGIN
    pitch = float(np.clip((right - left) / ASPECT / max(len(rows), 2), LEAST_PITCH, MOST_PITCH))
    height = pitch * len(rows)
    # A tall, narrow graph uses the width there is; distances only grow, so nothing comes to overlap.
    stretch = float(np.clip(ASPECT * height / (right - left), 1.0, 1.9))
    centre = [height - pitch * (r + 0.5) for r in range(len(rows))]
    x, y = np.full(len(types), np.nan), np.full(len(types), np.nan)
    for r, row in enumerate(rows):
        for node in row:
            x[node], y[node] = (at[node, -1] - left) * stretch, centre[r]
    routes = []
    half = float(HEIGHTS.max()) / 2 + 3
    for chain in chains:
        points: list[float] = []
        for item in chain[1:-1]:
            across = round((at[item] - left) * stretch, 1)
            points += [across, round(centre[item[1]] + half, 1), across, round(centre[item[1]] - half, 1)]
        routes.append(points)
    bands, labels = [], []
    for r, span in enumerate(spans):
        if int(types[rows[r][0]]) in (INPUT, LOGITS):
            continue
        same = bands and span == bands[-1][0]
        if same:
            bands[-1][1] = r
        else:
            bands.append([span, r, r])
    made = [Band(span[0], centre[top] - pitch / 2, centre[low] + pitch / 2) for span, top, low in bands]
    labels = [f"layer {s[0]}" if len(s) == 1 else f"layers {s[0]}–{s[-1]}" for s, _, _ in bands]
    return Routed(x, y, routes, tuple(made), tuple(labels), (right - left) * stretch, height)


def route_points(x0: float, y0: float, route: list[float], x3: float, y3: float) -> list[float]:
    """Control points of the chain of cubic curves that leaves upwards, passes the route's points, and arrives upwards.

    `assets/graph/geometry.js` draws by the same formula.
    """
    stops = [(x0, y0), *zip(route[::2], route[1::2], strict=True), (x3, y3)]
    points = [x0, y0]
    for (xa, ya), (xb, yb) in pairwise(stops):
        rise = 0.5 * (ya - yb)
        points += [xa, ya - rise, xb, yb + rise, xb, yb]
    return points
