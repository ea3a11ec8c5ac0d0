"""Formal tests of a circuit: against literal forms, at their nominal rates, on known circuits, and with nothing to
say.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import mechwork as mw
from mechwork.circuits import Circuit, CircuitReview, EdgeSpace, null_task
from mechwork.circuits.graph.ablated import find_ablation
from mechwork.circuits.graph.run import as_circuit
from mechwork.circuits.ground_truth.cases import find_case
from mechwork.circuits.testing.evaluate import EvaluationSettings, measure_circuits
from mechwork.circuits.testing.null_task import draw_signs, shuffled_weights
from mechwork.circuits.testing.referee import different_pairs, draw_masks, grow, null_sample
from mechwork.circuits.testing.trials import (
    Bounds,
    Sample,
    greater,
    hsic_power,
    judge,
    try_edges,
    try_equivalence,
    try_gap,
    try_independence,
    try_rank,
)
from mechwork.errors import InputError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.statistics import (
    area_under_roc,
    average_ranks,
    benjamini_hochberg,
    bootstrap_interval,
    holm,
    hsic,
    hsic_p,
    kl_nats,
    pearson,
    percentile_interval,
    rank_p,
    sign_flip_p,
    spearman,
)
from mechwork.tasks.task import Task
from tests.gate import fewer
from tests.reference.referee import (
    literal_benjamini_hochberg,
    literal_edge,
    literal_equivalence,
    literal_hsic,
    sign_pattern_p,
)

N_NULL = 200
AROUND = (0.015, 0.1)
"""Where the share of 200 rejections at 5 % lies in 99 % of cases."""


def planted(n: int, seed: int, share: float = 1.0, noise: float = 0.2) -> Sample:
    """A circuit whose true faithfulness is `share`, with symmetric noise; the rest knows nothing."""
    g = torch.Generator().manual_seed(seed)
    model, empty = 3 + torch.randn(n, generator=g), torch.randn(n, generator=g)
    circuit = empty + share * (model - empty) + noise * torch.randn(n, generator=g)
    return Sample(model.double(), empty.double(), circuit.double(), (empty + torch.randn(n, generator=g)).double())


def test_statistics_equal_their_literal_forms(seed: int) -> None:
    x, y = torch.randn(2, 9, dtype=torch.float64)
    assert float(greater(x, 0)) == pytest.approx(sign_pattern_p(x.tolist()))
    assert hsic(x, y) == pytest.approx(literal_hsic(x.tolist(), y.tolist()), rel=1e-9)
    assert hsic(x, x) == pytest.approx(1)
    p = torch.tensor([0.04, 0.001, 0.2, 0.04, 0.9], dtype=torch.float64)
    assert benjamini_hochberg(p).tolist() == pytest.approx(literal_benjamini_hochberg(p.tolist()))
    assert benjamini_hochberg(p).tolist() == pytest.approx(stats.false_discovery_control(p.numpy()).tolist())


def test_statistics_equal_those_of_scipy(seed: int) -> None:
    """Ranks, correlations, areas, divergences, permutation p-values and intervals of one mean, each against scipy's."""
    x, y = torch.randn(2, 11, dtype=torch.float64)
    y = y + 0.4 * x
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x.numpy(), y.numpy())[0])
    ties = torch.tensor([1.0, 3, 3, 2, 1, 0, 3, 5, 4, 4, 1], dtype=torch.float64)
    assert average_ranks(ties).tolist() == stats.rankdata(ties.numpy()).tolist()
    assert spearman(ties, y) == pytest.approx(stats.spearmanr(ties.numpy(), y.numpy())[0])
    labels = ties > 2
    u = stats.mannwhitneyu(y[labels].numpy(), y[~labels].numpy()).statistic
    assert area_under_roc(y, labels) == pytest.approx(u / (int(labels.sum()) * int((~labels).sum())))
    p, q = torch.randn(2, 7, dtype=torch.float64).softmax(dim=-1)
    assert float(kl_nats(p.log(), q.log())) == pytest.approx(stats.entropy(p.numpy(), q.numpy()))
    for alternative in ("greater", "two-sided"):  # 2 ** 11 patterns: both are exact
        flips = stats.permutation_test(
            (x.numpy(),), lambda a, axis: a.mean(axis=axis), permutation_type="samples", n_resamples=10**5,
            alternative=alternative, vectorized=True,
        )  # fmt: skip
        found = sign_flip_p(x[:, None], n=2**11, alternative=alternative)
        assert float(found) == pytest.approx(flips.pvalue)
    whole = torch.arange(2000.0, dtype=torch.float64)[:, None] / 1999
    low, high = percentile_interval(whole, 0.9)
    assert [float(low), float(high)] == pytest.approx(
        stats.mstats.mquantiles(whole.numpy(), [0.05, 0.95], 1, 1).tolist()
    )
    ends = bootstrap_interval(x[:, None], 0.95, n=4000)
    theirs = stats.bootstrap((x.numpy(),), lambda a, axis: a.mean(axis=axis), n_resamples=4000, method="percentile")
    spread = float(x.std()) / 11**0.5
    assert abs(float(ends[0]) - theirs.confidence_interval.low) < 0.2 * spread
    assert abs(float(ends[1]) - theirs.confidence_interval.high) < 0.2 * spread


def test_p_values_equal_permutation_oracles(seed: int) -> None:
    """HSIC against all reorderings of five values; the rank test against scipy's exact Mann-Whitney; Holm by hand."""
    x, y = torch.randn(2, 5, dtype=torch.float64)
    rows = [hsic(x, y[list(order)]) for order in permutations(range(5))]
    exact = sum(row >= hsic(x, y) * (1 - 1e-12) for row in rows) / len(rows)
    sampled = hsic_p(x, y, n=2000, seed=seed)
    assert abs(sampled - exact) < 4 * (exact * (1 - exact) / 2000) ** 0.5 + 1e-3
    others = torch.randn(19, dtype=torch.float64)
    u = stats.mannwhitneyu([float(x[0])], others.numpy(), alternative="greater", method="exact")
    assert rank_p(float(x[0]), others) == pytest.approx(u.pvalue)
    raw = torch.tensor([0.01, 0.04, 0.03], dtype=torch.float64)
    assert holm(raw).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_corrections_leave_what_is_no_test() -> None:
    found = benjamini_hochberg(torch.tensor([0.01, torch.nan, 0.04]))
    assert found[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert found.isnan().tolist() == [False, True, False]
    assert benjamini_hochberg(torch.tensor([torch.nan])).isnan().all()
    assert rank_p(2.0, torch.tensor([1.0, 2.0, 3.0])) == 3 / 4
    with pytest.raises(InputError, match="constant"):
        hsic_p(torch.ones(4), torch.arange(4.0))


def test_claims_equal_their_literal_forms() -> None:
    sample = planted(9, 3, share=0.95)
    rows = [x.tolist() for x in (sample.model, sample.empty, sample.circuit)]
    found = try_equivalence(sample, Bounds())
    assert (found.p_for, found.p_against) == pytest.approx(literal_equivalence(*rows, margin=0.1))
    drops = torch.stack([0.3 * sample.gap, 0.02 * torch.randn(9, generator=torch.Generator().manual_seed(0))])
    edges, whole = try_edges(replace(sample, cut=sample.circuit - drops), ["x", "y"], Bounds(least=0.05))
    for row, drop in zip(edges, drops, strict=True):
        assert (row.p_for, row.p_against) == pytest.approx(
            literal_edge(sample.gap.tolist(), drop.tolist(), 0.05), abs=1e-9
        )
    assert [row.verdict for row in edges] == ["pass", "fail"]
    assert whole.verdict == "fail"
    assert whole.estimate == 0.5


def rates(draw: Any) -> Tensor:
    """Share of the null data sets in which p is at most 5 %, per p-value that `draw` gives for a seed."""
    return (torch.tensor([draw(seed) for seed in range(N_NULL)]) <= 0.05).double().mean(dim=0)


def test_tests_reject_at_their_nominal_rate_on_null_data() -> None:
    """Each null is planted exactly on the claim's bound, where a test of 5 % rejects in 5 % of cases."""

    def bounds(seed: int) -> tuple[float, ...]:
        worse = try_equivalence(planted(24, seed, share=0.9), Bounds(seed=seed))
        none = try_gap(replace(planted(24, seed), model=planted(24, seed + 10_000).empty), Bounds(seed=seed))
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 24, generator=generator, dtype=torch.float64)
        sample = planted(24, seed)
        noise = 0.3 * torch.randn(1, 24, generator=generator, dtype=torch.float64)
        drop = 0.05 * sample.gap + noise
        edge = try_edges(replace(sample, cut=sample.circuit - drop), ["x"], Bounds(least=0.05, seed=seed))[0][0]
        pool = torch.randn(40, 1, generator=generator).double()
        one = pool.new_ones(1)
        ranked = try_rank(Sample(one, 0 * one, pool[0], pool[0], pool[1:]), Bounds(), "sufficiency")
        return worse.p_for, worse.p_against, none.p_for, hsic_p(x, y, n=99, seed=seed), edge.p_against, ranked.p_for

    found = rates(bounds)
    assert bool((found > AROUND[0]).all() & (found < AROUND[1]).all()), found


def test_power_is_what_is_stated() -> None:
    """At the distance that is said to be found in 80 % of samples, that many are found."""
    at = sum(try_equivalence(planted(24, s), Bounds()).detectable for s in range(20)) / 20
    found = [try_equivalence(planted(24, s, share=0.9 - at), Bounds(seed=s)).p_against <= 0.05 for s in range(N_NULL)]
    assert 0.7 < sum(found) / N_NULL < 0.9
    assert hsic_power(12, 0.05) < 0.6 < 0.8 < hsic_power(64, 0.05)
    few, many = (try_independence(planted(n, 1), Bounds()) for n in (8, 64))
    assert few.verdict == "inconclusive"
    assert few.n_needed is not None
    assert many.verdict == "pass"


@pytest.mark.parametrize("name", fewer(["induction", "frac_prevs", "hist", "equality"], ["induction", "hist"]))
def test_a_known_circuit_passes_and_a_damaged_one_fails(name: str) -> None:
    case = find_case(name)
    true = case.truth()
    review = mw.referee(case.model, case.task, true, n_random_edges=20)
    assert review.verdict == "pass", review
    assert not any(trial.verdict == "pass" for trial in review.null), review
    assert review.random
    assert not all(trial.verdict == "pass" for trial in review.random), review
    mask = true.mask.clone()
    mask[tuple(mask.nonzero()[-1].tolist())] = False
    damaged = mw.referee(case.model, case.task, Circuit(true.space, mask), null=None)
    assert damaged.verdict == "fail", damaged
    assert damaged.trial("equivalence").verdict == "fail"


def test_an_edge_that_does_nothing_is_superfluous() -> None:
    case = find_case("induction")
    extra = Circuit.from_edges(case.truth().space, [*case.truth().edges, "a0.h1->a1.h1<v>"])
    review = mw.referee(case.model, case.task, extra, null=None)
    assert review.verdict == "fail"
    assert review.edges_that("fail") == ("a0.h1->a1.h1<v>",)
    assert review.trial("equivalence").verdict == "pass"


def test_nothing_to_say_is_said() -> None:
    case = find_case("induction")
    model, task, true = case.model, case.task, case.truth()
    cases = {
        "empty": (task, true - true),
        "whole model": (task, Circuit(true.space, true.space.mask.clone())),
        "5 different pairs": (task[:5], true),
        "1 different pairs": (task[[0] * 12], true),
    }
    for reason, (pairs, circuit) in cases.items():
        review = mw.referee(model, pairs, circuit)
        assert review.verdict == "inconclusive"
        assert all(t.verdict == "inconclusive" and reason in t.reason for t in review.trials), review
    few = mw.referee(model, task, true, n_random=5, null=None)
    assert "20 would" in few.trial("sufficiency").reason
    assert few.verdict == "inconclusive"
    with pytest.raises(InputError, match="margin"):
        mw.referee(model, task, true, margin=0.0)
    with pytest.raises(UnknownNameError, match="null task"):
        mw.referee(model, task, true, null="labels")
    with pytest.raises(InputError, match="task of referee is Task"):
        mw.referee(model, true, task)  # type: ignore[arg-type]


def test_a_constant_metric_is_inconclusive() -> None:
    sample = planted(16, 0)
    same = judge(Sample(sample.empty, sample.empty, sample.empty, sample.empty), Bounds())
    assert {t.verdict for t in same} == {"inconclusive"}
    flat = torch.ones(16).double()
    found = try_independence(Sample(3 * flat, 0 * flat, 2 * flat, torch.arange(16.0).double()), Bounds())
    assert found.verdict == "inconclusive"
    assert "same on every pair" in found.reason


def test_a_model_that_answers_all_alike_is_inconclusive_to_the_end() -> None:
    """End to end: nothing is judged, nothing passes, and every claim says why."""
    from tests.circuits.test_mechanisms import symbols, two_mechanisms

    model, task = two_mechanisms(size=0.0), symbols(digits=False)
    circuit = Circuit.from_edges(EdgeSpace.of(read_anatomy(model)), ["input->a0.h0<v>", "a0.h0->logits"])
    review = mw.referee(model, task, circuit, n_random=19, n_random_edges=3)
    assert review.verdict == "inconclusive"
    assert {t.verdict for t in (*review.trials, *review.null, *review.random)} == {"inconclusive"}
    assert all("does not show the behaviour" in t.reason for t in review.trials[1:])


def test_a_null_that_cannot_be_built_is_said(tiny_gpt2: Any) -> None:
    from tests.families import build_hard_task

    task = build_hard_task(n=8, aligned=False)
    space = mw.score_edges(tiny_gpt2, task, rules="gradient").space
    circuit = Circuit(space, grow(space, 20, torch.Generator().manual_seed(0)))
    review = mw.referee(
        tiny_gpt2, task, circuit, null="corruption", n_random=19, n_random_edges=2, max_edges=2, random_model=False
    )
    assert review.null == ()
    assert "no null task: unrelated corruption needs pairs of equal length" in review.null_reason
    assert "no null task" in str(review)


def test_the_null_task_shuffles_and_its_shortcut_is_exact(tiny_gpt2: Any, tiny_task: Task) -> None:
    task = null_task(tiny_task, "answers", seed=1)
    signs = draw_signs(len(tiny_task), 1)
    space = mw.score_edges(tiny_gpt2, tiny_task, rules="gradient").space
    mask = grow(space, 20, torch.Generator().manual_seed(0))
    real, null = (measure_circuits(tiny_gpt2, t, space, [mask], EvaluationSettings()).metric for t in (tiny_task, task))
    torch.testing.assert_close(null, real * signs)
    assert float(real.abs().min()) > 0
    assert set(signs.tolist()) == {1, -1}
    other = null_task(tiny_task, "corruption", seed=1)
    assert torch.equal(other.pairs.clean_tokens, tiny_task.pairs.clean_tokens)
    rows = {tuple(row) for row in tiny_task.pairs.corrupt_tokens.tolist()}
    assert {tuple(row) for row in other.pairs.corrupt_tokens.tolist()} == rows
    assert not bool((other.pairs.corrupt_tokens == tiny_task.pairs.corrupt_tokens).all(dim=1).any())
    with pytest.raises(InputError, match="at least two pairs"):
        null_task(tiny_task[:1])


@pytest.mark.parametrize(("kind", "metric"), [("corruption", "logit_difference"), ("answers", "log_probability")])
def test_without_the_shortcut_the_null_is_measured(tiny_gpt2: Any, tiny_task: Task, kind: str, metric: str) -> None:
    """Signs turn only where shuffled answers turn the sign; elsewhere the circuits run on the null task."""
    task, settings = tiny_task.with_metric(metric), EvaluationSettings()
    space = mw.score_edges(tiny_gpt2, task, rules="gradient").space
    circuit = Circuit(space, grow(space, 20, torch.Generator().manual_seed(0)))
    drawn = draw_masks(circuit, 1, 1, 1, 0)
    sample = drawn.measure(tiny_gpt2, task, settings)
    null = null_sample(tiny_gpt2, task, drawn, sample, settings, kind, 1)
    masks = [space.mask, torch.zeros_like(space.mask), circuit.mask]
    expected = measure_circuits(tiny_gpt2, null_task(task, kind, seed=1), space, masks, settings).metric
    torch.testing.assert_close(torch.stack([null.model, null.empty, null.circuit]), expected)
    assert float((null.empty - sample.empty).abs().max()) > 1e-4


def test_shuffled_answers_of_a_logit_difference_cost_no_forward(tiny_gpt2: Any, tiny_task: Task) -> None:
    space = mw.score_edges(tiny_gpt2, tiny_task, rules="gradient").space
    drawn = draw_masks(Circuit(space, grow(space, 20, torch.Generator().manual_seed(0))), 1, 1, 1, 0)
    sample, runs = drawn.measure(tiny_gpt2, tiny_task, EvaluationSettings()), list[int]()
    handle = tiny_gpt2.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        null_sample(tiny_gpt2, tiny_task, drawn, sample, EvaluationSettings(), "answers", 1)
    finally:
        handle.remove()
    assert not runs


def test_a_test_of_one_side_keeps_its_verdict() -> None:
    """Independence has no p-value for it, only the power to find what speaks against it."""
    trial = next(t for t in judge(planted(128, 3), Bounds()) if t.name == "independence")
    assert trial.p_for != trial.p_for
    assert trial.p_against > 0.05
    assert trial.verdict == "pass"


@pytest.mark.parametrize("name", ["n_random", "n_random_edges", "max_edges"])
def test_counts_are_at_least_one(tiny_gpt2: Any, tiny_task: Task, name: str) -> None:
    space, none = EdgeSpace.of(read_anatomy(tiny_gpt2)), dict[str, Any]({name: 0})
    with pytest.raises(InputError, match=f"{name} is a whole number, at least 1; got 0"):
        mw.referee(tiny_gpt2, tiny_task, Circuit(space, space.mask), **none)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_random_model_is_put_back_to_the_bit(family: str) -> None:
    """Shuffled weights keep what a tensor holds, change what the model says, and graph and model still agree."""
    from tests.families import build_model, build_task

    model, task = build_model(family), build_task(n=2)
    tokens = task.pairs.clean_tokens
    before, weights = model(tokens), {name: p.detach().clone() for name, p in model.named_parameters()}
    space = mw.score_edges(model, task, rules="gradient").space
    with pytest.raises(KeyboardInterrupt), shuffled_weights(model, 1):
        inside = model(tokens)
        for name, p in model.named_parameters():
            assert torch.equal(p.flatten().sort().values, weights[name].flatten().sort().values)
        ablated = find_ablation(model, task, space, "corrupt").writes(task.pairs, 0)
        with as_circuit(model, space, space.mask, ablated):
            torch.testing.assert_close(model(tokens), inside)
        assert float((inside - before).abs().max()) > 0.1
        raise KeyboardInterrupt
    assert torch.equal(model(tokens), before)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_random_circuits_are_of_its_size_and_the_knocked_out_ones_of_the_rest() -> None:
    case = find_case("hist")
    true = case.truth()
    drawn = draw_masks(true, 10, 5, 3, seed=0)
    assert {int(mask.sum()) for mask in drawn.randoms} == {true.n_edges}
    assert drawn.knocked is not None
    for mask in drawn.knocked:
        assert int((true.space.mask & ~mask).sum()) == true.n_edges
        assert bool((mask & true.mask).sum() == true.n_edges)
    assert len(drawn.edges) == 3
    assert all(int(mask.sum()) == true.n_edges + 1 for mask in drawn.added)
    most = Circuit(true.space, true.space.mask & ~true.mask)
    assert draw_masks(most, 3, 2, 2, seed=0).knocked is None


def test_pairs_that_occur_twice_count_once(tiny_task: Task) -> None:
    assert len(different_pairs(tiny_task[[0, 1, 0, 2, 1]])) == 3
    assert different_pairs(tiny_task) is tiny_task


def test_a_review_is_saved_shown_and_drawn(tmp_path: Path) -> None:
    case = find_case("induction")
    review = mw.referee(case.model, case.task, case.truth(), n_random=30, n_random_edges=3)
    again = CircuitReview.load(review.save(tmp_path / "review"))
    assert str(again) == str(review)
    assert list(again.to_dataframe()["task"].unique()) == ["task", "null", "random model"]
    assert "input-&gt;a0.h0&lt;v&gt;" in review.to_html()
