"""AUROC, AUPRC and precision against pair counting and random tie-breaking; errors by name."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from mechwork.circuits import Circuit, EdgeSpace
from mechwork.circuits.ground_truth import compare
from mechwork.circuits.ground_truth.compare import find_auprc, find_auroc, find_levels, find_precision
from mechwork.errors import InputError, MetricError

SPACE = EdgeSpace(n_layers=1, n_heads=1, n_kv_heads=1)
TRUTH = Circuit.from_edges(SPACE, ["input->a0.h0<v>", "a0.h0->logits"])


def scores(**values: float) -> torch.Tensor:
    matrix = torch.zeros(SPACE.n_writers, SPACE.n_readers)
    for name, value in values.items():
        edge = {"v": "input->a0.h0<v>", "out": "a0.h0->logits", "q": "input->a0.h0<q>", "m": "input->m0"}[name]
        matrix[SPACE.edge_index(edge)] = value
    return matrix


def test_a_perfect_ranking_ignores_signs() -> None:
    result = compare(scores(v=-3.0, out=1.0, q=0.5), TRUTH)
    assert (result.auroc, result.auprc, result.precision) == (1, 1, 1)
    assert result.false_edges == result.missed_edges == ()
    assert (result.n_true, result.n_edges) == (2, SPACE.n_edges)


def test_errors_are_named() -> None:
    result = compare(scores(v=3.0, q=-2.0, m=1.0), TRUTH)
    assert result.false_edges == ("input->a0.h0<q>",)
    assert result.missed_edges == ("a0.h0->logits",)
    assert result.precision == 0.5
    assert "not in the circuit: input->a0.h0<q>; missed: a0.h0->logits" in str(result)


def test_ties_are_shared() -> None:
    nothing = compare(scores(), TRUTH)
    assert nothing.auroc == 0.5
    assert nothing.auprc == nothing.precision == pytest.approx(2 / SPACE.n_edges)
    assert nothing.false_edges == ()
    assert set(nothing.missed_edges) == set(TRUTH.edges)
    tied = compare(scores(v=1.0, out=1.0, q=1.0, m=1.0), TRUTH)
    assert tied.precision == 0.5
    assert set(tied.false_edges) == {"input->a0.h0<q>", "input->m0"}


def test_what_floating_point_leaves_of_zero_is_zero() -> None:
    noisy = compare(scores(v=1.0, out=1e-17, q=1e-16, m=-1e-15), TRUTH)
    assert noisy == compare(scores(v=1.0), TRUTH)
    assert compare(scores(v=1.0, out=1e-17, q=1e-16), TRUTH, resolution=0.0).missed_edges == ("a0.h0->logits",)


@hypothesis.given(
    st.lists(st.integers(0, 4), min_size=3, max_size=7).flatmap(
        lambda values: st.tuples(st.just(values), st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    )
)
def test_measures_equal_their_definitions(drawn: Any) -> None:
    values, true = drawn
    hypothesis.assume(0 < sum(true) < len(true))
    levels = find_levels(torch.tensor(values, dtype=torch.float64))
    mask = torch.tensor(true)
    wins = [
        (t > f) + (t == f) / 2
        for (t, a), (f, b) in itertools.product(list(zip(values, true, strict=True)), repeat=2)
        if a and not b
    ]
    assert find_auroc(levels, mask) == pytest.approx(sum(wins) / len(wins))
    n = sum(true)
    area, recall = 0.0, 0.0
    for cut in sorted(set(values), reverse=True):
        chosen = [t for v, t in zip(values, true, strict=True) if v >= cut]
        area += (sum(chosen) / n - recall) * sum(chosen) / len(chosen)
        recall = sum(chosen) / n
    assert find_auprc(levels, mask) == pytest.approx(area)
    orders = itertools.permutations(range(len(values)))  # every way to break ties, those that respect the values
    ranked = [o for o in orders if all(values[i] >= values[j] for i, j in itertools.pairwise(o))]
    expected = sum(sum(true[i] for i in order[:n]) / n for order in ranked) / len(ranked)
    assert find_precision(levels, mask) == pytest.approx(expected)


def test_many_small_values_do_not_run_together() -> None:
    values = torch.linspace(1e-5, 1, 100_000).double()
    assert len(find_levels(values).unique()) == len(values)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="of one graph"):
        compare(torch.zeros(2, 2), TRUTH)
    for edges in ([], [SPACE.edge_name(r, c) for r, c in SPACE.mask.nonzero().tolist()]):
        with pytest.raises(InputError, match="some but not all"):
            compare(scores(v=1.0), Circuit.from_edges(SPACE, edges))
    with pytest.raises(MetricError, match="finite"):
        compare(scores(v=float("nan")), TRUTH)
