"""What fits a budget, against counting one number after another what is held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mechwork.circuits import EdgeSpace
from mechwork.circuits.graph.budget import Fit, fit, layers_per_product
from mechwork.models.anatomy import ModelAnatomy, read_anatomy
from tests.families import build_model

N_TAIL = 2
STATES, PATTERNS, LOGITS = 40, 4, 3
"""What a block keeps for its backward pass: so many states of a position, so many numbers of a pattern's row; and what
the tail keeps of its logits.
"""
KEPT, ALONE = 13, 5
"""The same of blocks that run again: states that each keeps, patterns' rows of the one that runs."""


def literal(
    anatomy: ModelAnatomy, space: EdgeSpace, n_pos: int, budget: int, n_bytes: int, n_copies: int, n_cells: int,
    averaged: bool,
) -> Fit:  # fmt: skip
    """Counted place by place, and tried from the most pairs down."""
    d, heads, layers = anatomy.d_model, anatomy.n_heads, anatomy.n_layers
    tail = sum(LOGITS * anatomy.d_vocab for _ in range(N_TAIL))
    whole = tail + sum(STATES * d + PATTERNS * heads * n_pos for _ in range(layers) for _ in range(n_pos))
    again = tail + sum(STATES * d + ALONE * heads * n_pos + sum(KEPT * d for _ in range(layers)) for _ in range(n_pos))
    remade = whole * n_bytes > budget / 2
    one = (again if remade else whole) + sum(2 * space.n_writers * space.n_readers for _ in range(n_cells))
    readers = space.readers_per_layer * layers_per_product(space) + space.readers_per_layer  # and those being added
    readers += space.n_readers if averaged else 0
    states = readers + sum(space.n_writers for _ in range(n_copies))
    held = max(n_bytes, 4) * d * states
    n_pairs = max(1, int(budget / 2 // (n_bytes * one)))
    left = budget - max(n_bytes * one, budget / 2)
    left = max(left, budget / 8)
    while n_pairs > 1 and max(1, min(n_pos, int(left // (held * n_pairs)))) < min(4, n_pos):
        n_pairs = n_pairs // 2
    return Fit(n_pairs, max(1, min(n_pos, int(left // (held * n_pairs)))), remade)


@pytest.mark.parametrize("n_pos", [3, 11])
@pytest.mark.parametrize("n_bytes", [2, 4, 8])
def test_what_fits_is_what_is_counted(n_pos: int, n_bytes: int) -> None:
    anatomy = read_anatomy(build_model("llama"))
    found = []
    for deep in (replace(anatomy, n_layers=5, d_vocab=1500), replace(anatomy, n_layers=40)):
        space = EdgeSpace(deep.n_layers, deep.n_heads, deep.n_kv_heads)
        for power in range(16, 34):
            for copies, cells, averaged in ((1, 1, False), (2, 7, False), (1, 1, True)):
                how = {"n_bytes": n_bytes, "n_copies": copies, "n_cells": cells, "averaged": averaged}
                found.append(fit(deep, space, n_pos, N_TAIL, 2**power, **how))
                assert found[-1] == literal(deep, space, n_pos, 2**power, **how), (deep.n_layers, power, how)
    assert {one.remade for one in found} == {True, False}
    assert len({one.n_pairs for one in found}) > 8
    assert {one.n_positions for one in found} >= {1, n_pos}
