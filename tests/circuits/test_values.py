"""Edge spaces, circuits, selection, curves and files: everything that needs no model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechwork.circuits import Circuit, EdgeScores, EdgeSpace
from mechwork.circuits.graph.circuit import prune
from mechwork.circuits.graph.select import (
    select,
    select_above,
    select_nodes,
    select_random,
    select_random_same_degree,
    select_top,
    select_top_nodes,
)
from mechwork.circuits.testing.curves import MIB_FRACTIONS, FaithfulnessCurve, faithfulness
from mechwork.errors import ArtefactError, InputError, MetricError, UnknownNameError
from mechwork.runs.record import Baseline

SPACE = EdgeSpace(n_layers=2, n_heads=2, n_kv_heads=1)
spaces = st.builds(
    lambda layers, kv, group, parallel: EdgeSpace(layers, kv * group, kv, parallel),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
)


def scores_of(values: torch.Tensor, n: int = 4) -> EdgeScores:
    per_example = (values * SPACE.mask).expand(n, -1, -1) + 0.0
    baseline = Baseline(torch.ones(n), torch.zeros(n))
    return EdgeScores(
        SPACE, per_example, "denoise", "gradient", 1, "logit_difference", baseline, {"model": {"weights_sha256": "a"}}
    )


@given(spaces)
def test_every_edge_leads_forward_and_is_counted(space: EdgeSpace) -> None:
    assert int(space.mask.sum()) == space.n_edges
    assert len(space.writers) == space.n_writers == len(set(space.writers))
    assert len(space.readers) == space.n_readers == len(set(space.readers))
    fed_by = space.feeds.float().T  # reader -> the writers it feeds
    steps = space.mask.float() @ fed_by  # writer -> writer
    assert float(steps.tril().abs().max()) == 0


def test_gpt2_small_has_the_known_number_of_edges() -> None:
    assert EdgeSpace(12, 12, 12).n_edges == 32_491
    assert EdgeSpace(32, 32, 8).n_edges == 805_681


def test_names_round_trip() -> None:
    for row, column in SPACE.mask.nonzero().tolist():
        assert SPACE.edge_index(SPACE.edge_name(row, column)) == (row, column)
    with pytest.raises(UnknownNameError, match=r"nearest: a0\.h0"):
        SPACE.edge_index("a0.h00->m0")
    with pytest.raises(InputError, match="runs before"):
        SPACE.edge_index("m1->m0")
    with pytest.raises(InputError, match="source->target"):
        SPACE.edge_index("m1")


def literal_prune(space: EdgeSpace, mask: torch.Tensor) -> torch.Tensor:
    """Drop edges from or to dead ends until nothing changes."""
    mask = mask.clone()
    while True:
        before = mask.clone()
        for row in range(1, space.n_writers):
            if not bool((space.feeds[row] & mask.any(dim=0)).any()):
                mask[row] = False
        for column in range(space.n_readers - 1):
            if not bool(mask[space.feeds[:, column]].any()):
                mask[:, column] = False
        if torch.equal(before, mask):
            return mask


@given(spaces, st.integers(0, 10_000), st.floats(0.02, 0.6))
def test_pruning_equals_dropping_dead_ends_until_nothing_changes(space: EdgeSpace, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = space.mask & (torch.rand(space.mask.shape, generator=generator) < share)
    assert torch.equal(prune(space, mask), literal_prune(space, mask))


@given(st.integers(1, SPACE.n_edges), st.integers(0, 1000))
def test_selection_takes_exactly_the_strongest(n: int, seed: int) -> None:
    values = torch.randn(SPACE.mask.shape, generator=torch.Generator().manual_seed(seed))
    mask = select_top(SPACE, values, n)
    assert int(mask.sum()) == n
    inside, outside = values[mask].abs(), values[SPACE.mask & ~mask].abs()
    assert outside.numel() == 0 or float(inside.min()) >= float(outside.max())
    signed = select_top(SPACE, values, n, by="signed")
    assert float(values[signed].sum()) >= float(values[mask].sum()) - 1e-5


def test_random_circuits_repeat_with_their_seed() -> None:
    assert torch.equal(select_random(SPACE, 9, 1), select_random(SPACE, 9, 1))
    assert not torch.equal(select_random(SPACE, 9, 1), select_random(SPACE, 9, 2))


def test_sizes_outside_the_graph() -> None:
    scores = scores_of(torch.randn(SPACE.mask.shape))
    for n in (0, SPACE.n_edges + 1):
        with pytest.raises(InputError, match=f"1 to {SPACE.n_edges}"):
            scores.circuit(n)


def test_circuit_algebra() -> None:
    a = Circuit.from_edges(SPACE, ["input->m0", "m0->logits"])
    b = Circuit.from_edges(SPACE, ["m0->logits", "input->logits"])
    assert (a & b).edges == ("m0->logits",)
    assert len(a | b) == 3
    assert (a - b).edges == ("input->m0",)
    assert a.overlap(b) == pytest.approx(1 / 3)
    assert len(a.complement()) == SPACE.n_edges - 2
    assert a.nodes == ("input", "m0", "logits")
    assert "m0->logits" in a
    with pytest.raises(InputError, match="one graph"):
        _ = a & Circuit.from_edges(EdgeSpace(1, 1, 1), ["input->m0"])
    with pytest.raises(InputError, match="not an edge"):
        Circuit(SPACE, torch.ones_like(SPACE.mask))


def test_circuit_file_is_the_same_bytes_for_the_same_inputs(tmp_path: Any) -> None:
    values = torch.randn(SPACE.mask.shape, generator=torch.Generator().manual_seed(0))
    circuit = scores_of(values).circuit(20)
    first, second = circuit.save(tmp_path / "a.json"), scores_of(values).circuit(20).save(tmp_path / "b.json")
    assert first.read_bytes() == second.read_bytes()
    loaded = Circuit.load(first)
    assert torch.equal(loaded.mask, circuit.mask)
    assert loaded.edges == circuit.edges
    data = json.loads(first.read_text())
    first.write_text(json.dumps({**data, "format": 99}))
    with pytest.raises(ArtefactError, match="Upgrade"):
        Circuit.load(first)
    first.write_text("{")
    with pytest.raises(ArtefactError, match="damaged"):
        Circuit.load(first)


def test_scores_save_load_and_know_their_model(tmp_path: Any) -> None:
    scores = scores_of(torch.randn(SPACE.mask.shape))
    loaded = EdgeScores.load(scores.save(tmp_path / "scores"))
    assert torch.equal(loaded.require_pairs(), scores.require_pairs())
    assert loaded.space == SPACE
    with pytest.raises(InputError, match="another model"):
        loaded.require_model("b")
    with pytest.raises(MetricError, match="finite"):
        scores_of(torch.full(SPACE.mask.shape, torch.nan))


def test_intervals_hold_the_mean_and_shrink_to_it_without_spread() -> None:
    scores = scores_of(torch.randn(SPACE.mask.shape))
    low, high = scores.interval()
    torch.testing.assert_close(low, scores.values, rtol=0, atol=1e-6)
    torch.testing.assert_close(high, scores.values, rtol=0, atol=1e-6)
    assert float(scores.inclusion(10).sum()) == pytest.approx(10)


def curve_of(chosen: list[float], signed: list[float]) -> FaithfulnessCurve:
    n = len(chosen)
    one = torch.ones(1)
    return FaithfulnessCurve(
        fractions=MIB_FRACTIONS[-n:], sizes=tuple(range(1, n + 1)), n_kept=tuple(range(1, n + 1)),
        per_example=torch.tensor(chosen)[:, None], signed_per_example=torch.tensor(signed)[:, None],
        random_per_example=torch.zeros(1, n, 1), empty_per_example=0 * one, model_per_example=one,
        ablation="corrupt", metric_name="logit_difference", provenance={},
    )  # fmt: skip


def test_areas_by_hand() -> None:
    """Fractions .5 and 1: CPR = (.4 + 1)/2 * .5, CMD = (|1 - .6| + 0)/2 * .5."""
    curve = curve_of([0.6, 1.0], [0.4, 1.0])
    assert curve.cpr == pytest.approx(0.35)
    assert curve.cmd == pytest.approx(0.1)
    assert curve.random_cmd == pytest.approx(0.5)


def test_faithfulness_is_a_ratio_of_means_and_may_be_undefined() -> None:
    circuit, empty, model = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 5.0])
    assert faithfulness(circuit, empty, model) == pytest.approx((2 - 0.5) / (3.5 - 0.5))
    with pytest.raises(MetricError, match="undefined"):
        faithfulness(circuit, model, model)


def uneven_curve() -> FaithfulnessCurve:
    """Five pairs that differ, controls that are neither the circuits nor each other, faithfulness around 1."""
    draw = torch.Generator().manual_seed(5)

    def numbers(*shape: int, around: float) -> torch.Tensor:
        return around + 0.4 * torch.randn(*shape, generator=draw, dtype=torch.float64)

    return FaithfulnessCurve(
        fractions=(0.1, 0.3, 1.0), sizes=(2, 6, 20), n_kept=(1, 5, 20),
        per_example=torch.stack([numbers(5, around=a) for a in (1.5, 4.5, 3.0)]),
        signed_per_example=torch.stack([numbers(5, around=a) for a in (2.0, 2.5, 3.0)]),
        random_per_example=torch.stack([numbers(3, 5, around=1.0), numbers(3, 5, around=1.2)]),
        empty_per_example=numbers(5, around=1.0), model_per_example=numbers(5, around=3.0),
        ablation="corrupt", metric_name="logit_difference", provenance={},
        same_degree_per_example=torch.stack([numbers(3, 5, around=1.9), numbers(3, 5, around=2.1)]),
    )  # fmt: skip


def by_hand(rows: Any, curve: FaithfulnessCurve, pairs: list[int]) -> list[float]:
    """Faithfulness per size as plain sums over the given pairs."""
    e, m = (sum(float(x[i]) for i in pairs) for x in (curve.empty_per_example, curve.model_per_example))
    return [(sum(float(row[i]) for i in pairs) - e) / (m - e) for row in rows]


def area(heights: list[float], x: list[float]) -> float:
    return sum((x[i + 1] - x[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(len(x) - 1))


def test_every_number_of_a_curve_by_hand() -> None:
    import math

    curve, every = uneven_curve(), list(range(5))
    x, logs = list(curve.fractions), [math.log10(f) for f in curve.fractions]
    assert curve.same_degree_per_example is not None
    chosen, signed = by_hand(curve.per_example, curve, every), by_hand(curve.signed_per_example, curve, every)
    controls = {
        name: [sum(pair) / 2 for pair in zip(*(by_hand(rows, curve, every) for rows in repeats), strict=True)]
        for name, repeats in (("random", curve.random_per_example), ("same", curve.same_degree_per_example))
    }
    assert max(chosen) > 1 > min(chosen), "the absolute value in CMD would not show"
    off = [abs(1 - f) for f in chosen]
    same = curve.same_degree
    assert same is not None
    for found, expected in (
        (curve.faithfulness.tolist(), chosen),
        (curve.signed.tolist(), signed),
        (curve.random.tolist(), controls["random"]),
        (same.tolist(), controls["same"]),
        (curve.cpr, area(signed, x)),
        (curve.cmd, area(off, x)),
        (curve.cpr_log, area(signed, logs) / (logs[-1] - logs[0])),
        (curve.cmd_log, area(off, logs) / (logs[-1] - logs[0])),
        (curve.random_cpr, area(controls["random"], x)),
        (curve.random_cmd, area([abs(1 - f) for f in controls["random"]], x)),
        (curve.empty, sum(curve.empty_per_example.tolist()) / 5),
    ):
        assert found == pytest.approx(expected, abs=1e-9)
    frame = curve.to_dataframe()
    assert frame["faithfulness_same_degree"].tolist() == pytest.approx(controls["same"])
    assert frame["faithfulness_random"].tolist() == pytest.approx(controls["random"])


def test_intervals_of_a_curve_are_percentiles_of_resampled_pairs() -> None:
    """Against resamples drawn one by one; a wider level holds a narrower one."""
    curve = uneven_curve()
    draws = torch.randint(5, (1000, 5), generator=torch.Generator().manual_seed(0)).tolist()
    areas = sorted(
        area([abs(1 - f) for f in by_hand(curve.per_example, curve, pairs)], list(curve.fractions)) for pairs in draws
    )
    for level in (0.5, 0.95):
        low, high = curve.cmd_interval(level)
        assert sum(low <= a <= high for a in areas) / 1000 == pytest.approx(level, abs=0.06)
        for row, (left, right) in zip(curve.per_example, curve.intervals(level), strict=True):
            shares = [by_hand([row], curve, pairs)[0] for pairs in draws]
            assert sum(left <= f <= right for f in shares) / 1000 == pytest.approx(
                level, abs=0.06
            )  # resamples of five pairs tie
    assert curve.cpr_interval(0.5)[0] > curve.cpr_interval(0.95)[0]


def test_greedy_growth_follows_its_ranking() -> None:
    """By absolute score the negative edge comes first, by signed score it comes last."""
    values = torch.zeros(SPACE.mask.shape)
    logits = SPACE.logits_reader
    into = SPACE.mask[:, logits].nonzero().flatten().tolist()
    values[into[0], logits], values[into[1], logits], values[into[2], logits] = -3.0, 2.0, 1.0
    for by, first in (("greedy", into[0]), ("greedy_signed", into[1])):
        mask = select(SPACE, values, 1, by=by)  # pyright: ignore[reportArgumentType]
        assert mask.nonzero().tolist() == [[first, logits]], by
    two = select(SPACE, values, 2, by="greedy_signed")
    assert not bool(two[into[0], logits])
    assert select_above(SPACE, values, 2.0).sum() == 2, "at least, not above"
    assert select_above(SPACE, values, 2.0, by="signed").sum() == 1
    with pytest.raises(InputError, match="ranked by 'absolute' or 'signed'"):
        select_top(SPACE, values, 3, by="greedy")


def test_expected_overlap_is_that_of_random_sets_of_the_same_sizes() -> None:
    from mechwork.circuits import Circuit

    a, b = (Circuit(SPACE, select_random(SPACE, n, seed)) for n, seed in ((9, 1), (5, 2)))
    n = SPACE.n_edges
    shares = []
    for seed in range(3000):
        draw = torch.Generator().manual_seed(seed)
        one, two = (set(torch.randperm(n, generator=draw)[:k].tolist()) for k in (9, 5))
        shares.append(len(one & two) / len(one | two))
    assert a.expected_overlap(b) == pytest.approx(sum(shares) / len(shares), abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_random_circuits_of_the_same_degrees(seed: int) -> None:
    """Every node keeps its numbers of edges, every edge exists, and the circuit is another one."""
    mask = select_random(SPACE, 14, seed)
    found = select_random_same_degree(SPACE, mask, seed)
    assert torch.equal(found.sum(dim=0), mask.sum(dim=0))
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))
    assert bool((SPACE.mask | ~found).all())
    assert not torch.equal(found, mask)
    single = select_random(SPACE, 1, seed)
    assert torch.equal(select_random_same_degree(SPACE, single, seed), single)


def test_circuits_of_nodes_have_every_edge_between_them() -> None:
    """Against a loop over the names of edges; the input and the logits always belong."""
    values = torch.zeros(SPACE.n_writers)
    values[[1, 4]] = torch.tensor([-3.0, 2.0])
    kept = {SPACE.writers[i] for i in (0, 1, 4)}
    found = select_top_nodes(SPACE, values, 2)
    feeds = {(i, j): bool(SPACE.feeds[i, j]) for i in range(SPACE.n_writers) for j in range(SPACE.n_readers)}
    for i, writer in enumerate(SPACE.writers):
        for j in range(SPACE.n_readers):
            into = j == SPACE.logits_reader or any(feeds[k, j] for k in (1, 4))
            assert bool(found[i, j]) == (bool(SPACE.mask[i, j]) and writer in kept and into), (writer, j)
    everything = select_nodes(SPACE, torch.ones(SPACE.n_writers, dtype=torch.bool))
    assert torch.equal(everything, SPACE.mask)
    for n in (0, SPACE.n_writers):
        with pytest.raises(InputError, match="nodes besides the input"):
            select_top_nodes(SPACE, values, n)
