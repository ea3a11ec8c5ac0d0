"""How much memory scoring and evaluation may take, and what fits into it: pairs per pass, positions per product.

Sizes are estimates of what is added to the model's weights, meant to be right within a factor of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...execute.memory import items_that_fit
from ...execute.memory import parse_budget as parse_bytes  # noqa: F401 - the one parser of budgets, under its name here
from ...models.anatomy import ModelAnatomy
from .space import EdgeSpace

DEFAULT_BUDGET = 2**30
_MANY = 2**62
"""More pairs than any task has: how many it has is the caller's business."""


FLOPS_PER_BYTE = 8
"""Multiplications and additions that a core does while one byte comes from memory: where a product stops being bound by
memory.
"""


def layers_per_product(space: EdgeSpace) -> int:
    """How many layers' readers share one product with the writes.

    Reading the writes costs (layers / g) x writers / 2 x 4 bytes a number, and g layers at once multiply about layers x
    readers x g x writers of a layer / 2 x 2 cells that are no edges; the sum is least at the g below. The readers'
    coefficients then stay under a quarter of the writes.
    """
    wasted = space.readers_per_layer * space.writers_per_layer / FLOPS_PER_BYTE
    best = math.sqrt(2 * space.n_writers / wasted)
    return max(1, min(round(best), space.n_writers // (4 * space.readers_per_layer), space.n_layers))


@dataclass(frozen=True)
class Fit:
    """What fits: pairs per pass, positions per product of writes and coefficients, and whether blocks run again in the
    backward pass, since one pair's do not fit together (`runs.remake`).
    """

    n_pairs: int
    n_positions: int
    remade: bool = False


def fit(
    anatomy: ModelAnatomy,
    space: EdgeSpace,
    n_pos: int,
    n_tail: int,
    budget: int,
    *,
    n_bytes: int = 4,
    n_copies: int = 1,
    n_cells: int = 1,
    averaged: bool = False,
) -> Fit:
    """Pairs and positions for a budget in bytes; always at least one of each.

    Half of the budget is for the pass (activations that the backward pass needs, and what is recorded), half for the
    writes ``[writer, batch, pos, d_model]`` in `n_copies`, the coefficients of the layers of one product (of all
    readers when they are `averaged` over a path), and the scores of `n_cells` spans. A pass of one pair that takes more
    than its half leaves the writes what remains, or an eighth.
    """
    d, layers = anatomy.d_model, anatomy.n_layers
    graph = layers * n_pos * (40 * d + 4 * anatomy.n_heads * n_pos) + 3 * n_tail * anatomy.d_vocab
    scores = 2 * n_cells * space.n_writers * space.n_readers
    readers = (1 + layers_per_product(space)) * space.readers_per_layer + (space.n_readers if averaged else 0)
    per_position = (n_copies * space.n_writers + readers) * d
    remade = budget / 2 < n_bytes * graph
    if remade:
        graph = n_pos * ((40 + 13 * layers) * d + 5 * anatomy.n_heads * n_pos) + 3 * n_tail * anatomy.d_vocab
    n_pairs = items_that_fit(budget / 2, n_bytes * (graph + scores), _MANY)
    over = max(0.0, n_bytes * (graph + scores) - budget / 2)  # of one pair
    room = max(budget / 2 - over, budget / 8)
    while True:
        n_positions = items_that_fit(room, max(n_bytes, 4) * per_position * n_pairs, n_pos)
        if n_pairs == 1 or n_positions >= min(4, n_pos):
            return Fit(n_pairs, n_positions, remade)
        n_pairs //= 2
