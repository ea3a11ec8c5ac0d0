"""Studies of several targets against the definitions, one plain ablation at a time; and on logic gates, where the
answer is known.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import (
    AblationSpec,
    ablate,
    fit_ablation,
    study_cumulative,
    study_impairment,
    study_interactions,
    study_knock_out_in,
)
from mechwork.ablation.impairment import matched_random, random_sets
from mechwork.ablation.targets import parse_target
from mechwork.errors import InputError
from tests.families import build_model, build_task

SOME = ("a0.h0", "a1.h2", "a2.h3", "m1")


def effect(model: Any, task: Any, spec: AblationSpec, *targets: str) -> torch.Tensor:
    """Of one set, with the tables of the whole spec."""
    return ablate(model, task, spec.only(*targets)).per_example


def test_cumulative_curves_are_nested_ablations(tiny_gpt2_64: Any) -> None:
    task = build_task(n=9)
    found = study_cumulative(tiny_gpt2_64, task, SOME, sizes=[1, 2, 4], n_random=2)
    spec = AblationSpec(SOME)
    alone = {name: float(effect(tiny_gpt2_64, task, spec, name).mean()) for name in SOME}
    assert list(found.ranking) == sorted(SOME, key=lambda name: -abs(alone[name]))
    for curve, order in (("most important first", found.ranking), ("least important first", found.ranking[::-1])):
        for row, n in enumerate((1, 2, 4)):
            left = found.clean - effect(tiny_gpt2_64, task, spec, *order[:n])
            torch.testing.assert_close(found.curves[curve][row], left, rtol=0, atol=1e-9)
    last = [curve[-1] for curve in found.curves.values()]
    assert all(torch.allclose(last[0], other) for other in last)
    low, high = found.interval("random 0")
    assert bool((low <= found.mean("random 0")).all() & (found.mean("random 0") <= high).all())
    assert {"order", "ablated", "metric", "low", "high", "accuracy"} == set(found.to_dataframe())
    assert "least important first" in str(found)
    with pytest.raises(InputError, match="increasing"):
        study_cumulative(tiny_gpt2_64, task, SOME, sizes=[2, 1])


def test_interactions_are_what_the_pair_costs_beyond_its_parts(tiny_gpt2_64: Any) -> None:
    task, spec = build_task(n=9), AblationSpec(SOME)
    found = study_interactions(tiny_gpt2_64, task, SOME)
    by_hand = (
        effect(tiny_gpt2_64, task, spec, "a1.h2", "m1")
        - effect(tiny_gpt2_64, task, spec, "a1.h2")
        - effect(tiny_gpt2_64, task, spec, "m1")
    )
    torch.testing.assert_close(found.per_example[1, 3], by_hand, rtol=0, atol=1e-9)
    assert torch.equal(found.values, found.values.T)
    assert not found.values.diagonal().any()
    assert float(by_hand.abs().max()) > 1e-4
    assert len(found.to_dataframe()) == 6
    with pytest.raises(InputError, match="two targets"):
        study_interactions(tiny_gpt2_64, task, ["m1"])


@pytest.mark.parametrize(("gate", "sign"), [("or_gate", 1), ("and_gate", -1)])
def test_gates_are_redundant_and_synergistic(gate: str, sign: int) -> None:
    """OR: both inputs must go before anything is lost. AND: losing either loses it all."""
    case = mw.ground_truth.CASES[gate]
    model, task = case.build_model(), case.build_task()
    found = study_interactions(model, task, ["a0.h0", "a0.h1"], kind="corrupt")
    expected = float(found.alone.mean(dim=1).sum())
    assert sign * float(found.values[0, 1]) > 0.5 * max(1e-3, abs(expected) / 2)
    assert "redundant" in str(found)


def test_knock_in_is_what_one_does_alone(tiny_gpt2_64: Any) -> None:
    task, spec = build_task(n=9), AblationSpec(SOME)
    found = study_knock_out_in(tiny_gpt2_64, task, SOME)
    others = effect(tiny_gpt2_64, task, spec, "a0.h0", "a2.h3", "m1")
    everything = effect(tiny_gpt2_64, task, spec, *SOME)
    torch.testing.assert_close(found.alone[1], everything - others, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.out[1], effect(tiny_gpt2_64, task, spec, "a1.h2"), rtol=0, atol=1e-9)
    assert found.clean - found.empty == pytest.approx(float(everything.mean()))
    assert len(found.to_dataframe()) == 4


def test_impairment_shares_and_matched_controls(bundled_model: Any) -> None:
    tasks = [mw.tasks.ioi(bundled_model, n=32), mw.tasks.docstring(bundled_model, n=32)]
    found = study_impairment(bundled_model, tasks, n_chosen=2, n_random=5)
    assert found.drops.shape == found.accuracy_drops.shape == found.controls.shape == (2, 30)
    column = found.components.index("a1.h3")
    fitted = fit_ablation(bundled_model, AblationSpec(found.components), tasks[0].train)
    one = ablate(
        bundled_model,
        tasks[0].test,
        type(fitted)(AblationSpec(["a1.h3"]), fitted.tables, fitted.model, fitted.reference),
    )
    share = one.effect / float(one.clean_per_example.mean())
    assert float(found.drops[0, column]) == pytest.approx(share, abs=1e-4)
    assert float(found.accuracy_drops[0, column]) == pytest.approx(one.accuracy_drop, abs=1e-6)
    same_layer = [found.components.index(f"a1.h{h}") for h in (0, 1, 2)]
    assert float(found.controls[0, column]) == pytest.approx(float(found.drops[0, same_layer].mean()), abs=1e-6)
    assert [(s.chosen_for, s.task) for s in found.sets] == [(a, b) for a in found.tasks for b in found.tasks]
    assert all(len(s.controls) == 5 and 0 < s.p <= 1 for s in found.sets)
    assert "chosen for" in str(found)


def test_random_sets_match_in_kind_and_layer() -> None:
    candidates = [f"a{layer}.h{h}" for layer in range(3) for h in range(4)] + ["m0", "m1", "m2"]
    for seed in range(20):
        drawn = matched_random(["a1.h0", "a1.h3", "m2"], candidates, random.Random(seed))
        targets = [parse_target(name) for name in drawn]
        assert [t.kind for t in targets] == ["head", "head", "mlp"]
        assert [t.layer for t in targets[:2]] == [1, 1]
        assert len(set(drawn)) == 3
        assert not {"a1.h0", "a1.h3", "m2"} & set(drawn)
    sets = random_sets(["a1.h0"], candidates, 9, random.Random(0))
    assert len({frozenset(one) for one in sets}) == len(sets) == 9
    assert {one[0] for one in sets[:3]} == {"a1.h1", "a1.h2", "a1.h3"}
    assert len(random_sets(["m0"], ["m0", "m1", "m2"], 9, random.Random(0))) == 2
    with pytest.raises(InputError, match="no other mlp"):
        matched_random(["m0"], ["a0.h0", "m0"], random.Random(0))


def test_tasks_that_cannot_be_compared() -> None:
    model, task = build_model("gpt2"), build_task(n=9)
    with pytest.raises(InputError, match="two tasks"):
        study_impairment(model, [task])
    with pytest.raises(InputError, match="two tasks"):
        study_impairment(model, [task, task])
