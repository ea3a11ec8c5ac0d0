"""The connected circuit of largest total score, found by trying every set of edges."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from mechwork.circuits import EdgeSpace
from mechwork.circuits.graph.prune import prune


def best_connected(space: EdgeSpace, rank: Tensor, n_edges: int) -> float:
    """Largest sum of `rank` over sets of at most `n_edges` edges that pruning leaves as they are."""
    edges, best = space.mask.nonzero().tolist(), 0.0
    for n in range(1, n_edges + 1):
        for chosen in combinations(edges, n):
            total = sum(float(rank[i, j]) for i, j in chosen)
            if total <= best:
                continue
            mask = torch.zeros_like(space.mask)
            for i, j in chosen:
                mask[i, j] = True
            if torch.equal(prune(space, mask), mask):
                best = total
    return best
