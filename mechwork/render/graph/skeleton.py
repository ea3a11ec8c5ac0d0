"""The order in which edges are shown: every prefix is the strongest connected part of the graph.

An edge's *strength* is the smallest |score| on the best path from an input to the logits through it: the largest t such
that the edge survives when only edges with |score| >= t are kept and what then lies on no path is dropped. Sorted by
it, a prefix that ends between two strengths is exactly such a pruned circuit; that is how the faithfulness curve's
circuits are made, so its sizes after pruning can be read off the same axis. Edges on no path have strength 0 and come
last, by
|score|.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ...circuits.testing.curves import FaithfulnessCurve

FEWEST, MOST, WANTED = 12, 25, 18
"""Edges of a graph at first sight."""
DIVISIONS = 12


def strengths(
    n_nodes: int,
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    weight: Float[ndarray, " edge"],
    starts: Int[ndarray, " start"],
    ends: Int[ndarray, " end"],
) -> Float[ndarray, " edge"]:
    """The strength of every edge; `weight` is |score| (infinite for links that carry none), nodes are in
    running order.
    """
    up, down = [0.0] * n_nodes, [0.0] * n_nodes
    for node in starts.tolist():
        up[node] = math.inf
    for node in ends.tolist():
        down[node] = math.inf
    sources, targets, weights = source.tolist(), target.tolist(), weight.tolist()
    rising, falling = np.argsort(source, kind="stable").tolist(), np.argsort(-target, kind="stable").tolist()
    # Nodes run in order, so one pass from below and one from above reach every path; across one layer by place may need
    # more.
    for _ in range(3):
        before = (up.copy(), down.copy())
        for e in rising:
            through = min(up[sources[e]], weights[e])
            if through > up[targets[e]]:
                up[targets[e]] = through
        for e in falling:
            through = min(down[targets[e]], weights[e])
            if through > down[sources[e]]:
                down[sources[e]] = through
        if before == (up, down):
            break
    return np.minimum(np.minimum(np.array(up)[source], np.array(down)[target]), weight)


def connected_order(
    n_nodes: int,
    source: Int[ndarray, " edge"],
    target: Int[ndarray, " edge"],
    weight: Float[ndarray, " edge"],
    starts: Int[ndarray, " start"],
    ends: Int[ndarray, " end"],
    n_scored: int,
) -> tuple[Int[ndarray, " scored"], Float[ndarray, " scored"], Int[ndarray, " scored"]]:
    """Edges by strength, their strengths, and the step each belongs to: a prefix of whole steps is connected.

    The first `n_scored` edges are ordered, the others are links. One weak edge can close hundreds of paths at once;
    such a lump at the beginning, where the first view ends, is divided: with its weakest edge counted as free, and what
    is weaker as absent, the strengths within it differ again.
    """
    found = strengths(n_nodes, source, target, weight, starts, ends)
    keys = [-weight[:n_scored], -found[:n_scored]]
    order = np.lexsort(keys)
    steps = np.concatenate([[0], np.cumsum(np.diff(found[order]) != 0)]) if len(order) else np.zeros(0, dtype=np.int64)
    free = weight.copy()
    for _ in range(DIVISIONS):
        lump = _lump(steps)
        if lump is None:
            break
        first, last = lump
        inside = order[first:last]
        among = np.concatenate([order[:last], np.arange(n_scored, len(weight))])  # what is weaker is left out
        part = (n_nodes, source[among], target[among])
        again = strengths(*part, free[among], starts, ends)[first:last]
        free[inside[free[inside] <= again.min()]] = np.inf
        again = strengths(*part, free[among], starts, ends)[first:last]
        new = np.lexsort([-weight[inside], -again])
        order = np.concatenate([order[:first], inside[new], order[last:]])
        split = np.concatenate([[0], np.cumsum(np.diff(again[new]) != 0)])
        if not split[-1]:
            continue
        steps = np.concatenate([steps[:first], steps[first] + split, steps[last:] + split[-1]])
    return order, found[order], steps


def _lump(steps: Int[ndarray, " scored"]) -> tuple[int, int] | None:
    """The step that leaps over the sizes wanted at first, as a range; None when one ends among them."""
    ends = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
    if len(steps) <= MOST or any(FEWEST <= end <= MOST for end in ends):
        return None
    last = next(end for end in ends if end > MOST)
    return max([end for end in ends if end < last], default=0), last


def default_size(steps: Int[ndarray, " edge"]) -> int:
    """How many edges to draw at first: a whole number of steps, as near to `WANTED` as `FEWEST` to `MOST` allow."""
    n = len(steps)
    if n <= MOST:
        return n
    whole = whole_sizes(steps)
    fitting = [k for k in whole if FEWEST <= k <= MOST]
    return min(fitting or whole, key=lambda k: abs(k - WANTED))


def whole_sizes(steps: Int[ndarray, " edge"]) -> list[int]:
    """The numbers of edges at which a step ends."""
    return [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]


def faithfulness_points(curve: FaithfulnessCurve | None) -> list[list[float]]:
    """(edges after pruning, measured faithfulness), smallest first, from (0, 0); empty without a curve."""
    if curve is None:
        return []
    found = {0: 0.0} | {n: f for n, f in zip(curve.n_kept, curve.faithfulness.tolist(), strict=True) if n > 0}
    return [[float(n), round(found[n], 4)] for n in sorted(found)]


def interpolate(points: list[list[float]], n_edges: int) -> float | None:
    """Faithfulness at a size, on the line between the measured sizes around it; None outside them."""
    if not points or n_edges > points[-1][0]:
        return None
    return float(np.interp(n_edges, [p[0] for p in points], [p[1] for p in points]))
