"""Neurons at spans: scores against those without positions, measured units by hand, budgets, and contracts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import score_neurons, study_neurons
from mechwork.circuits.scoring.neurons import measure_neurons
from mechwork.circuits.testing.neurons import measure_units
from mechwork.errors import InputError
from mechwork.tasks.task import Task


def test_spans_add_up_to_the_neuron_and_units_are_measured(tiny_gpt2: Any, tiny_task: Task) -> None:
    study = study_neurons(tiny_gpt2, tiny_task, positions="each", counts=(3, 40), rules="relp")
    plain = score_neurons(tiny_gpt2, tiny_task, rules="relp").values
    torch.testing.assert_close(study.scores.sum(dim=0), plain)
    assert float(plain.abs().max()) > 1e-4
    together = study_neurons(tiny_gpt2, tiny_task, positions="all", counts=(3, 40))
    torch.testing.assert_close(together.scores[0], plain)
    masks = [together.scores[0].abs() >= together.scores.abs().flatten().sort().values[-n] for n in (3, 40)]
    literal = measure_neurons(tiny_gpt2, tiny_task, [torch.zeros_like(masks[0]), *masks])
    found = measure_units(tiny_gpt2, tiny_task, [m[None] for m in (torch.zeros_like(masks[0]), *masks)], "all", 2)
    torch.testing.assert_close(found[2:], literal)
    none, few, many = literal.mean(dim=1).tolist()
    whole = float(found[0].mean())
    for row, value in zip(together.rows, (few, many), strict=True):
        assert row.faithfulness == pytest.approx((value - none) / (whole - none), rel=1e-6)
    none_, whole_, corrupt = (float(row.mean()) for row in (found[2], found[0], found[1]))
    assert together.share_of_neurons == pytest.approx((whole_ - none_) / (whole_ - corrupt), rel=1e-6)
    for row in study.rows:
        assert row.n_neurons == len({name.split("@")[0] for name, _ in study.top(row.n)})
    everything = study_neurons(tiny_gpt2, tiny_task, positions="each", counts=(study.scores.numel(),))
    assert everything.rows[0].faithfulness == pytest.approx(1)
    assert "@" in study.top(1)[0][0]


def test_the_budget_changes_nothing_and_is_checked(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="the neurons of one pair") as refused:
        study_neurons(tiny_gpt2, tiny_task, positions="all", memory_budget=1)
    least = int(str(refused.value).split(" bytes")[0].split()[-1].replace(",", ""))
    budgets = (least, 2**30)
    one, all_ = (study_neurons(tiny_gpt2, tiny_task, positions="all", counts=(5,), memory_budget=b) for b in budgets)
    torch.testing.assert_close(one.scores, all_.scores)
    assert one.rows[0].faithfulness == pytest.approx(all_.rows[0].faithfulness, rel=1e-6)
    with pytest.raises(InputError, match="from 1"):
        study_neurons(tiny_gpt2, tiny_task, counts=())
    with pytest.raises(InputError, match="'each', 'spans'"):
        study_neurons(tiny_gpt2, tiny_task, positions="words")
