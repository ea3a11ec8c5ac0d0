"""The connected circuit of largest total score, by integer programming (arXiv:2510.25786 does so with signed scores).

Of all sets of at most n edges of which each lies on a path from the input to the logits, the one whose scores add up to
most. With x_e in {0, 1} for an edge and 0 <= y_w <= 1 for a component ("is part of it"):

    maximise sum_e s_e x_e,   sum_e x_e <= n
    x_e <= y_u                     e leaves the component u
    x_e <= sum_w y_w               e enters a reader that feeds the components w
    y_w <= sum of x_e into w,   y_w <= sum of x_e out of w

Since the graph has no cycles this is `prune(mask) == mask`: n edges are n edges that can matter. Taking the strongest
edges instead leaves dead ends, whose pruning makes the circuit smaller than asked, often empty at small sizes.
Solved by scipy's `milp` (HiGHS) to `GAP`, or for `seconds`: then the best circuit that was found.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...shapes import EdgeMask, EdgeMatrix
from .prune import prune
from .space import EdgeSpace

GAP = 1e-3
"""Largest share by which the total may lie below the best one."""
SECONDS = 20.0
N_CANDIDATES = 20_000
"""Edges that are considered: the strongest of larger graphs, and a circuit grown greedily."""


def select_integer(
    space: EdgeSpace, values: EdgeMatrix, n_edges: int, grown: EdgeMask, *, signed: bool = False,
    seconds: float = SECONDS,
) -> EdgeMask:  # fmt: skip
    """The connected circuit of at most `n_edges` edges whose absolute (or signed) scores add up to most.

    `grown` is a connected circuit of that size: its edges are candidates, and it is the answer when the solver finds
    none within `seconds`. Raises `InputError` without scipy.
    """
    rank = (values if signed else values.abs()).double()
    candidates = grown & space.mask
    if space.n_edges <= N_CANDIDATES:
        candidates = space.mask
    else:
        edges = rank[space.mask]
        strongest = torch.zeros_like(edges, dtype=torch.bool)
        strongest[edges.argsort(descending=True, stable=True)[:N_CANDIDATES]] = True
        candidates = candidates.clone()
        candidates[space.mask] |= strongest
    index = candidates.nonzero()
    chosen = _solve(space, rank[candidates], index, n_edges, seconds)
    first = prune(space, grown)
    if chosen is None or float(rank[first].sum()) > float(rank[candidates][chosen].sum()):
        return first
    mask = torch.zeros_like(space.mask)
    kept = index[chosen]
    mask[kept[:, 0], kept[:, 1]] = True
    return mask


def _solve(space: EdgeSpace, scores: Tensor, index: Tensor, n_edges: int, seconds: float) -> Tensor | None:
    """Which of the candidates are chosen; None when nothing was found in time."""
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError as error:
        raise InputError("integer programming needs the extra: pip install 'mechwork[milp]'") from error
    n, writers = len(index), space.n_writers
    feeds, begins = space.feeds, space.begins
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    weights: list[Tensor] = []
    count = 0

    def add(row: Tensor, column: Tensor, weight: float) -> None:
        rows.append(row)
        columns.append(column)
        weights.append(torch.full((len(row),), weight, dtype=torch.float64))

    edge = torch.arange(n)
    source, target = index.unbind(dim=1)
    inner = edge[source >= space.n_inputs]  # x_e - y_u <= 0
    add(count + torch.arange(len(inner)), inner, 1.0)
    add(count + torch.arange(len(inner)), n + source[inner], -1.0)
    count += len(inner)
    into = edge[target != space.logits_reader]  # x_e - sum of y_w <= 0
    add(count + torch.arange(len(into)), into, 1.0)
    at, fed = feeds.T[target[into]].nonzero(as_tuple=True)
    add(count + at, n + fed, -1.0)
    count += len(into)
    needs = (~begins).nonzero().flatten()  # y_w - sum of x_e into w <= 0
    add(count + torch.arange(len(needs)), n + needs, 1.0)
    at, arriving = feeds[needs][:, target].nonzero(as_tuple=True)
    add(count + at, arriving, -1.0)
    count += len(needs)
    speaks = torch.arange(space.n_inputs, writers)  # y_w - sum of x_e out of w <= 0
    add(count + torch.arange(len(speaks)), n + speaks, 1.0)
    at, leaving = (source[None, :] == speaks[:, None]).nonzero(as_tuple=True)
    add(count + at, leaving, -1.0)
    count += len(speaks)
    add(torch.full((n,), count), edge, 1.0)  # sum of x_e <= n_edges
    upper = np.zeros(count + 1)
    upper[count] = n_edges
    table: Any = coo_array(
        (torch.cat(weights).numpy(), (torch.cat(rows).numpy(), torch.cat(columns).numpy())),
        shape=(count + 1, n + writers),
    ).tocsr()
    integral = np.zeros(n + writers)
    integral[:n] = 1
    scale = float(scores.abs().max()) or 1.0
    gain = np.zeros(n + writers)
    gain[:n] = -(scores / scale).numpy()
    limits: Any = upper  # scipy's stubs know a number alone
    found = milp(
        gain, integrality=integral, bounds=Bounds(0, 1), constraints=LinearConstraint(table, -np.inf, limits),
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )  # fmt: skip
    return None if found.x is None else torch.from_numpy(found.x[:n] > 0.5)
