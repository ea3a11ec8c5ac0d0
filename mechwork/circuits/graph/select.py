"""From scores to a set of edges.

by | what is kept:

- ``"absolute"`` | the n edges of largest absolute score: what matters
- ``"signed"`` | the n edges of largest score: what helps
- ``"greedy"``, ``"greedy_signed"`` | grown from the logits: always the best edge into a reader that is already useful
  (Hanna et al. 2024)
- ``"positive"`` | `POSITIVE` of the n edges by largest score, the others by largest absolute one: what helps first, but
  not only (the ratio rule of arXiv:2510.25786)
- ``"integer"``, ``"integer_signed"`` | the connected circuit of largest total score (see `integer`; needs scipy)

`select_above` keeps everything beyond a threshold; `select_nodes` keeps nodes and every edge between them.
"""

from __future__ import annotations

import heapq
import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError, check_whole
from ...models.pulse import beat
from ...shapes import EdgeMask, EdgeMatrix
from .space import EdgeSpace

Ranking = Literal["absolute", "signed", "greedy", "greedy_signed", "positive", "integer", "integer_signed"]
POSITIVE = 0.5
"""Share of the edges that ``"positive"`` takes by signed score."""


def select(space: EdgeSpace, values: EdgeMatrix, n_edges: int, *, by: Ranking = "absolute") -> EdgeMask:
    """Mask of `n_edges` edges, chosen as the table above says."""
    if by not in get_args(Ranking):
        raise InputError(f"edges are selected by {', '.join(map(repr, get_args(Ranking)))} score; got {by!r}")
    if by in ("greedy", "greedy_signed"):
        return select_greedy(space, values, n_edges, by="signed" if by == "greedy_signed" else "absolute")
    if by == "positive":
        return select_positive(space, values, n_edges)
    if by in ("integer", "integer_signed"):
        from .integer import select_integer

        grown = select_greedy(space, values, n_edges, by="signed" if by == "integer_signed" else "absolute")
        return select_integer(space, values, n_edges, grown, signed=by == "integer_signed")
    return select_top(space, values, n_edges, by=by)


def select_positive(space: EdgeSpace, values: EdgeMatrix, n_edges: int, share: float = POSITIVE) -> EdgeMask:
    """The `share` of `n_edges` edges of largest score (rounded up), then those of largest absolute score."""
    if not 0 <= share <= 1:
        raise InputError(f"the share of edges by signed score is from 0 to 1; got {share}")
    n_first = min(n_edges, math.ceil(share * n_edges))
    _check_size(space, n_edges)
    first = select_top(space, values, n_first, by="signed") if n_first else torch.zeros_like(space.mask)
    rank = values.abs().masked_fill(first, torch.inf)
    return select_top(space, rank, n_edges)


def select_top(space: EdgeSpace, values: EdgeMatrix, n_edges: int, *, by: Ranking = "absolute") -> EdgeMask:
    """Mask of the `n_edges` edges of largest score; ties go to the edge that comes first in the graph."""
    _check_size(space, n_edges)
    beat()
    if by not in ("absolute", "signed"):
        raise InputError(f"edges are ranked by 'absolute' or 'signed' score; got {by!r}")
    edges = values[space.mask]
    order = (edges.abs() if by == "absolute" else edges).argsort(descending=True, stable=True)[:n_edges]
    chosen = torch.zeros_like(edges, dtype=torch.bool)
    chosen[order] = True
    mask = torch.zeros_like(space.mask)
    mask[space.mask] = chosen
    return mask


def select_greedy(space: EdgeSpace, values: EdgeMatrix, n_edges: int, *, by: Ranking = "absolute") -> EdgeMask:
    """`n_edges` edges grown from the logits: each is the best among those into a reader of a component already reached.

    What is chosen always leads to the logits; `Circuit.pruned` then only drops what is not fed from the input.
    """
    _check_size(space, n_edges)
    beat()
    rank = values.abs() if by == "absolute" else values
    mask, reached = torch.zeros_like(space.mask), torch.zeros(space.n_readers, dtype=torch.bool)
    queue: list[tuple[float, int, int]] = []

    def reach(column: int) -> None:
        reached[column] = True
        for row, value in enumerate(rank[: int(space.n_seen[column]), column].tolist()):
            heapq.heappush(queue, (-value, row, column))

    reach(space.logits_reader)
    for _ in range(n_edges):
        _, row, column = heapq.heappop(queue)
        mask[row, column] = True
        for feeding in (space.feeds[row] & ~reached).nonzero().flatten().tolist():
            reach(feeding)
    return mask


def select_above(space: EdgeSpace, values: EdgeMatrix, threshold: float, *, by: Ranking = "absolute") -> EdgeMask:
    """All edges whose absolute (or signed) score is at least `threshold`; raises `InputError` when there is none."""
    rank = values.abs() if by == "absolute" else values
    mask = space.mask & (rank >= threshold)
    if not bool(mask.any()):
        top = float(rank[space.mask].max())
        raise InputError(f"no edge has a {by} score of at least {threshold:g}; the largest is {top:g}")
    return mask


def select_nodes(space: EdgeSpace, nodes: Bool[Tensor, " writer"]) -> EdgeMask:
    """All edges between the kept writers (the input and the logits are always kept): a circuit of nodes as one of
    edges.
    """
    kept = nodes.clone()
    kept[: space.n_inputs] = True
    reads = (space.feeds & kept[:, None]).any(dim=0)
    reads[space.logits_reader] = True
    return space.mask & kept[:, None] & reads[None, :]


def select_top_nodes(space: EdgeSpace, values: Float[Tensor, " writer"], n_nodes: int) -> EdgeMask:
    """All edges between the `n_nodes` writers of largest absolute score (besides the input)."""
    first = space.n_inputs
    if not 0 < n_nodes <= space.n_writers - first:
        raise InputError(f"this graph has {space.n_writers - first} nodes besides the input; got {n_nodes}")
    kept = torch.zeros(space.n_writers, dtype=torch.bool)
    kept[first + values[first:].abs().argsort(descending=True, stable=True)[:n_nodes]] = True
    return select_nodes(space, kept)


def select_random(space: EdgeSpace, n_edges: int, seed: int) -> EdgeMask:
    """A uniformly random set of `n_edges` edges: the control beside every score."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.zeros(space.n_writers, space.n_readers)
    scores[space.mask] = torch.rand(space.n_edges, generator=generator)
    return select_top(space, scores, n_edges)


def select_random_same_degree(space: EdgeSpace, mask: EdgeMask, seed: int, *, n_swaps_per_edge: int = 10) -> EdgeMask:
    """A random circuit in which every writer has as many outgoing and every reader as many incoming edges as in `mask`.

    Random swaps of the targets of two edges, where both new ones exist in the graph (Maslov & Sneppen 2002): a stricter
    control than random edges, since it keeps which nodes the circuit uses and how much.
    """
    generator = torch.Generator().manual_seed(seed)
    result = mask.clone()
    edges = result.nonzero().tolist()
    if len(edges) < 2:
        return result
    n = n_swaps_per_edge * len(edges)
    present, allowed = {tuple(edge) for edge in edges}, space.n_seen.tolist()
    for i, j in torch.randint(len(edges), (n, 2), generator=generator).tolist():
        (a, b), (c, d) = edges[i], edges[j]
        if a == c or b == d or (a, d) in present or (c, b) in present or a >= allowed[d] or c >= allowed[b]:
            continue
        present -= {(a, b), (c, d)}
        present |= {(a, d), (c, b)}
        edges[i], edges[j] = [a, d], [c, b]
    index = torch.tensor(edges)
    result.zero_()
    result[index[:, 0], index[:, 1]] = True
    return result


def _check_size(space: EdgeSpace, n_edges: int) -> None:
    if not 0 < check_whole("n_edges", n_edges) <= space.n_edges:
        raise InputError(f"the size of a circuit is 1 to {space.n_edges} edges for this graph; got {n_edges}")
