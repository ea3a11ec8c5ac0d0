"""From scores to a set of edges. Ranking by absolute score finds what matters; by signed score, what helps."""

from __future__ import annotations

from typing import Literal

import torch

from ..errors import InputError
from ..shapes import EdgeMask, EdgeMatrix
from .space import EdgeSpace

Ranking = Literal["absolute", "signed"]


def select_top(space: EdgeSpace, values: EdgeMatrix, n_edges: int, *, by: Ranking = "absolute") -> EdgeMask:
    """Mask of the `n_edges` edges of largest score; ties go to the edge that comes first in the graph."""
    if not 0 < n_edges <= space.n_edges:
        raise InputError(f"the size of a circuit is 1 to {space.n_edges} edges for this graph; got {n_edges}")
    if by not in ("absolute", "signed"):
        raise InputError(f"edges are ranked by 'absolute' or 'signed' score; got {by!r}")
    edges = values[space.mask]
    order = (edges.abs() if by == "absolute" else edges).argsort(descending=True, stable=True)[:n_edges]
    chosen = torch.zeros_like(edges, dtype=torch.bool)
    chosen[order] = True
    mask = torch.zeros_like(space.mask)
    mask[space.mask] = chosen
    return mask


def select_random(space: EdgeSpace, n_edges: int, seed: int) -> EdgeMask:
    """A uniformly random set of `n_edges` edges: the control beside every score."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.zeros(space.n_writers, space.n_readers)
    scores[space.mask] = torch.rand(space.n_edges, generator=generator)
    return select_top(space, scores, n_edges)
