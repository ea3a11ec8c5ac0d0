"""Planted circuits: what a seed draws, that training plants it, refusal when it did not, and AUROC with intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechwork.circuits.ground_truth import build_table, find_case, plant_circuit
from mechwork.circuits.ground_truth.compare import find_auroc, find_levels
from mechwork.circuits.ground_truth.planted import RECIPE, draw_plan, measure_planted, planted_task
from mechwork.circuits.ground_truth.rank import rank_edges, rank_pairs
from mechwork.circuits.ground_truth.table import auroc_interval
from mechwork.errors import MetricError
from mechwork.statistics import bootstrap_weights
from tests.gate import fewer


def test_a_plan_is_its_seeds_and_programs_answer() -> None:
    assert {str(draw_plan(seed)) for seed in range(12)} > {str(draw_plan(0))}
    plan = draw_plan(0)
    assert str(plan) == str(draw_plan(0))
    task = planted_task(plan, n=20)
    for row, answer in zip(task.pairs.clean_tokens.tolist(), task.pairs.correct[:, 0].tolist(), strict=True):
        a, b = (row[i] for i in plan.letters)
        holds = a == b if plan.question == "equal" else (a + b) % 2 == 0
        assert answer == (6 if holds else 7)


def test_a_model_that_did_not_learn_is_refused() -> None:
    with pytest.raises(MetricError, match="did not learn its circuit"):
        plant_circuit(0, recipe=replace(RECIPE, steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("steps", fewer([250, 500], [250]))
def test_training_plants_the_circuit_and_methods_find_it(steps: int) -> None:
    seed = 0
    case = plant_circuit(seed, recipe=replace(RECIPE, steps=steps))
    found = measure_planted(case.model, case.task, draw_plan(seed))
    assert found["inside"] > 2 * found["outside"]
    table = build_table([case], methods=["eap-ig"])
    assert table.auroc[case.name]["exact"] == 1.0


def test_intervals_are_of_resampled_pairs() -> None:
    case = find_case("hist")
    truth = case.truth()
    values, rows = rank_pairs(case, "gradient")
    assert rows is not None
    torch.testing.assert_close(rows.mean(dim=0), values[truth.space.mask])
    torch.testing.assert_close(values, rank_edges(case, "gradient"))
    g = torch.Generator().manual_seed(0)
    noisy = rows + rows.abs().max() * torch.randn(rows.shape, generator=g, dtype=rows.dtype)
    true = truth.mask[truth.space.mask]
    literal = []
    for w in bootstrap_weights(len(noisy), 200, 0).to(noisy):
        mean = sum(float(x) * row for x, row in zip(w, noisy, strict=True))
        literal.append(find_auroc(find_levels(torch.as_tensor(mean)), true))
    low, high = auroc_interval(noisy, truth)
    ends = torch.tensor(literal, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert (low, high) == pytest.approx(tuple(ends.tolist()))
    assert low < high
    table = build_table([find_case("hist"), find_case("and_gate")], methods=["gradient"])
    assert set(table.intervals["hist"]) == {"exact", "gradient"}
    mean, (a, b) = table.mean("gradient")
    assert a <= mean <= b
    assert "[" in str(table)
