"""Where the nodes of a circuit stand, and how its edges bend around them. Deterministic; no browser needed.

Layers run upwards, the input at the bottom and the logits on top. Within a layer heads stand left to right, ordered by
the barycentre of what they are connected with so that edges cross less, and the MLP stands to their right, half a row
higher, since it reads what the heads write. Layers without nodes shrink to a thin band.

Units are pixels at zoom 1, y downwards, node centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

INPUT, HEAD, MLP, LOGITS, KV, FEATURE, ERROR = range(7)
TYPES = ("input", "head", "mlp", "logits", "kv", "feature", "error")
WIDTHS = np.array([96.0, 66.0, 66.0, 96.0, 58.0, 66.0, 58.0])
HEIGHTS = np.array([32.0, 36.0, 36.0, 32.0, 22.0, 30.0, 26.0])
"""Size of a node by type. The script reads them from the payload."""

PITCH, EMPTY_PITCH, MLP_RISE, KV_RISE = 122.0, 26.0, 52.0, 46.0
MIN_GAP, MAX_GAP, ASPECT, MARGIN = 94.0, 190.0, 1.5, 132.0
SWEEPS = 6
PLACE_GAP, EMPTY_PLACE, PLACE_PAD = 80.0, 60.0, 26.0
BENDS = (0, -36, 36, -72, 72, -112, 112, -160, 160, -220, 220)
PORT = 0.3
"""q and v enter a head this share of its width left and right of the middle, k in the middle."""


@dataclass(frozen=True)
class Band:
    """The stripe of one layer."""

    layer: int
    top: float
    bottom: float


@dataclass(frozen=True)
class Stripe:
    """The stripe of one token or span."""

    left: float
    right: float


@dataclass(frozen=True, eq=False)
class Layout:
    """Centres of the nodes, the bands of the layers and the columns of places, inside ``[0, width] x [0, height]``."""

    x: Float[ndarray, " node"]
    y: Float[ndarray, " node"]
    bands: tuple[Band, ...]
    width: float
    height: float
    columns: tuple[Stripe, ...] = ()


def lay_out(
    types: Int[ndarray, " node"],
    layers: Int[ndarray, " node"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    weight: Float[ndarray, " edge"],
    *,
    n_layers: int,
    parallel: bool = False,
) -> Layout:
    """Positions of all nodes; `weight` (not negative) says how much an edge pulls its ends together."""
    has_kv = bool((types == KV).any())
    y, bands, height = _rows(types, layers, n_layers, parallel=parallel, kv_rise=KV_RISE if has_kv else 0.0)
    cells = [np.flatnonzero((types == kind) & (layers == layer)) for layer in range(n_layers) for kind in (HEAD, KV)]
    cells = [cell for cell in (np.flatnonzero(types == INPUT), *cells) if len(cell)]
    n_columns = max([len(cell) for cell in cells], default=1)
    has_mlp = bool((types == MLP).any())
    gap = float(np.clip(ASPECT * height / (n_columns + has_mlp), MIN_GAP, MAX_GAP))
    x = np.zeros(len(types))
    x[types == MLP] = (n_columns / 2 + 0.5) * gap
    for layer in range(n_layers):  # experts that are nodes stand side by side
        side = np.flatnonzero((types == MLP) & (layers == layer))
        x[side] += np.arange(len(side)) * gap
    for cell in cells:
        _spread(x, cell, gap)
    for sweep in range(SWEEPS):
        for cell in cells if sweep % 2 == 0 else cells[::-1]:
            pull = _barycentre(x, cell, source, target, weight)
            _spread(x, cell[np.lexsort((cell, np.round(pull, 6)))], gap)
    margin = MARGIN
    left = x.min() - margin if len(x) else -margin
    return Layout(x - left, y, bands, float(x.max() - left + margin) if len(x) else 2 * margin, height)


def lay_out_places(
    types: Int[ndarray, " node"],
    layers: Int[ndarray, " node"],
    places: Int[ndarray, " node"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    weight: Float[ndarray, " edge"],
    *,
    n_layers: int,
    n_places: int,
) -> Layout:
    """Positions of nodes that have a place: one column per token or span, as wide as its fullest layer; empty ones are
    narrow.
    """
    y, bands, height = _rows(types, layers, n_layers, parallel=False, kv_rise=0.0)
    cells = {
        (layer, place): np.flatnonzero((layers == layer) & (places == place))
        for layer, place in sorted(set(zip(layers.tolist(), places.tolist(), strict=True)))
    }
    fullest = [
        max((len(cell) for (_, at), cell in cells.items() if at == place), default=0) for place in range(n_places)
    ]
    widths = [PLACE_GAP * n + PLACE_PAD if n else EMPTY_PLACE for n in fullest]
    edges = MARGIN / 2 + np.concatenate([[0.0], np.cumsum(widths)])
    x = np.zeros(len(types))

    def spread(cell: ndarray, place: int) -> None:
        middle = (edges[place] + edges[place + 1]) / 2
        x[cell] = middle + (np.arange(len(cell)) - (len(cell) - 1) / 2) * PLACE_GAP

    for (_, place), cell in cells.items():
        spread(cell, place)
    for sweep in range(SWEEPS):
        for (_, place), cell in list(cells.items())[:: 1 if sweep % 2 == 0 else -1]:
            if len(cell) > 1:
                pull = _barycentre(x, cell, source, target, weight)
                spread(cell[np.lexsort((cell, np.round(pull, 6), types[cell] == MLP))], place)
    columns = tuple(Stripe(float(a), float(b)) for a, b in pairwise(edges.tolist()))
    return Layout(x, y, bands, float(edges[-1]) + MARGIN / 2, height, columns)


def find_bends(
    layout: Layout,
    types: Int[ndarray, " node"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    port: Float[ndarray, " edge"],
) -> Int[ndarray, " edge"]:
    """How far each edge bows sideways: the smallest of `BENDS` whose curve runs over the fewest foreign nodes."""
    if not len(source):
        return np.zeros(0, dtype=np.int64)
    bin_width, margin = 6.0, 5.0
    row_y, row = np.unique(layout.y, return_inverse=True)
    offset = max(abs(b) for b in BENDS)
    n_bins = int((layout.width + 2 * offset) / bin_width) + 2
    owner = np.full((len(row_y), n_bins), -1, dtype=np.int64)
    reach = np.zeros(len(row_y))
    for node in range(len(types)):
        half = WIDTHS[types[node]] / 2 + margin
        start, stop = (int((layout.x[node] + side + offset) / bin_width) for side in (-half, half))
        owner[row[node], start : stop + 1] = node
        reach[row[node]] = max(reach[row[node]], HEIGHTS[types[node]] / 2 + margin)
    best = np.full(len(source), np.inf)
    bends = np.zeros(len(source), dtype=np.int64)
    for bend in BENDS:
        px, py = sample_curves(layout, types, source, target, port, np.full(len(source), float(bend)))
        nearest = np.clip(np.searchsorted(row_y, py), 0, len(row_y) - 1)
        below = np.clip(nearest - 1, 0, None)
        nearest = np.where(np.abs(row_y[below] - py) < np.abs(row_y[nearest] - py), below, nearest)
        column = np.clip(((px + offset) / bin_width).astype(np.int64), 0, n_bins - 1)
        hit = np.where(np.abs(row_y[nearest] - py) < reach[nearest], owner[nearest, column], -1)
        foreign = (hit >= 0) & (hit != source[:, None]) & (hit != target[:, None])
        cost = foreign.sum(axis=1) + abs(bend) / 1000
        better = cost < best - 1e-9
        best[better], bends[better] = cost[better], bend
    return bends


def sample_curves(
    layout: Layout,
    types: Int[ndarray, " node"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    port: Float[ndarray, " edge"],
    bend: Float[ndarray, " edge"],
    n: int = 24,
) -> tuple[Float[ndarray, "edge sample"], Float[ndarray, "edge sample"]]:
    """`n` points along every edge's curve, ends excluded."""
    t = np.linspace(0, 1, n + 2)[1:-1]
    basis = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3])
    x, y = control_points(layout, types, source, target, port, bend)
    return x @ basis, y @ basis


def control_points(
    layout: Layout,
    types: Int[ndarray, " node"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    port: Float[ndarray, " edge"],
    bend: Float[ndarray, " edge"],
) -> tuple[Float[ndarray, "edge 4"], Float[ndarray, "edge 4"]]:
    """The four points of every edge's cubic curve: out of the top of its source, into the bottom of its target; between
    two places of one layer an arch from side to side.

    `assets/graph/geometry.js` draws by the same formula; a test compares the two.
    """
    x0, x3 = layout.x[source], layout.x[target] + port * WIDTHS[types[target]]
    y0 = layout.y[source] - HEIGHTS[types[source]] / 2
    y3 = layout.y[target] + HEIGHTS[types[target]] / 2
    rise = np.clip(0.45 * (y0 - y3), 14.0, 150.0)
    x = np.stack([x0, x0 + bend, x3 + bend, x3], axis=1)
    y = np.stack([y0, y0 - rise, y3 + rise, y3], axis=1)
    level = layout.y[source]
    across = np.abs(level - layout.y[target]) < 1
    left = layout.x[source] + WIDTHS[types[source]] / 2
    right = layout.x[target] - WIDTHS[types[target]] / 2
    lift = level - 34 + bend
    x[across] = np.stack([left, left + 24, right - 24, right], axis=1)[across]
    y[across] = np.stack([level, lift, lift, level], axis=1)[across]
    return x, y


def _rows(
    types: Int[ndarray, " node"], layers: Int[ndarray, " node"], n_layers: int, *, parallel: bool, kv_rise: float
) -> tuple[Float[ndarray, " node"], tuple[Band, ...], float]:
    """Height of every node, first measured upwards from the input, then turned."""
    up = np.zeros(len(types))
    mlp_rise = 0.0 if parallel else MLP_RISE
    base, bands = 78.0, []
    for layer in range(n_layers):
        here = layers == layer
        used = bool(here.any())
        pitch = PITCH + kv_rise if used else EMPTY_PITCH
        heads_at = base + kv_rise + (PITCH - mlp_rise) / 2
        up[here & (types == KV)] = heads_at - kv_rise
        up[here & ((types == HEAD) | (types == FEATURE))] = heads_at
        up[here & ((types == MLP) | (types == ERROR))] = heads_at + mlp_rise
        bands.append((layer, base, base + pitch))
        base += pitch
    top = base + 46.0
    up[types == LOGITS] = top
    up[types == INPUT] = 32.0
    height = top + 40.0
    return height - up, tuple(Band(layer, height - high, height - low) for layer, low, high in bands), height


def _spread(x: Float[ndarray, " node"], cell: Int[ndarray, " member"], gap: float) -> None:
    """Puts the members of one layer side by side around the middle, in the given order."""
    x[cell] = (np.arange(len(cell)) - (len(cell) - 1) / 2) * gap


def _barycentre(
    x: Float[ndarray, " node"],
    cell: Int[ndarray, " member"],
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    weight: Float[ndarray, " edge"],
) -> Float[ndarray, " member"]:
    """Weighted mean position of what each member is connected with; its own position where that is nothing."""
    n = len(x)
    total = np.bincount(source, weight, n) + np.bincount(target, weight, n)
    moment = np.bincount(source, weight * x[target], n) + np.bincount(target, weight * x[source], n)
    return np.where(total[cell] > 0, moment[cell] / np.where(total[cell] > 0, total[cell], 1), x[cell])
