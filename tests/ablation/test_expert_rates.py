"""Rates of experts against a loop over tokens, and switched experts against the router's own change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import contrast_experts, record_routers
from mechwork.ablation.expert_rates import ExpertContrast
from mechwork.errors import InputError, UnsupportedModelError
from mechwork.interventions import Routing, intervene
from mechwork.interventions.routing import check_router
from mechwork.tasks.task import Task
from tests.families import borrowed, build_hard_task, build_model

EXPERTS = ["mixtral", "olmoe", "qwen3_moe"]


@pytest.mark.parametrize("family", EXPERTS, indirect=True)
def test_rates_are_those_of_a_loop_over_tokens(family_model64: Any, tmp_path: Any) -> None:
    model, task = family_model64, build_hard_task()
    pairs = task.pairs
    inputs: list[torch.Tensor] = []
    hooks = [(f"blocks.{layer}.mlp.hook_in", lambda x, hook: inputs.append(x.clone())) for layer in range(3)]
    with torch.no_grad():
        model.run_with_hooks(pairs.clean_tokens, fwd_hooks=hooks)
    found = record_routers(model, pairs.clean_tokens)
    rates = found.rates(pairs.mask)
    for layer in range(3):
        weight = model.blocks[layer].mlp.original_component.gate.weight
        for row in (0, 4):
            counts, length = [0] * 4, int(pairs.lengths[row])
            for token in inputs[layer][row, :length]:
                logits = [float(w @ token) for w in weight]
                for e in sorted(range(4), key=lambda e: -logits[e])[:2]:
                    counts[e] += 1
            assert rates[layer, row].tolist() == pytest.approx([count / length for count in counts])
    torch.testing.assert_close(rates.sum(dim=-1), torch.full((3, len(task)), 2.0, dtype=torch.float64))
    study = contrast_experts(model, task, n=2, n_random=3)
    torch.testing.assert_close(study.clean, rates.mean(dim=1))
    suppress = study.changes[0]
    assert len(suppress.experts) == 2
    assert len(suppress.by_lot) == 3
    offs: dict[int, tuple[int, ...]] = {}
    for name in suppress.experts:
        layer, expert = (int(part[1:]) for part in name.split("."))
        offs[layer] = (*offs.get(layer, ()), expert)
        assert float(study.contrast[layer, expert]) > 0
    with torch.no_grad(), intervene(model, [Routing(layer, off=off) for layer, off in offs.items()]):
        changed = float(task.metric(model(pairs.clean_tokens), pairs).mean())
    assert suppress.effect == pytest.approx(changed - study.baseline, abs=1e-6)
    assert abs(suppress.effect) > 1e-6
    assert ExpertContrast.load(study.save(tmp_path / "experts")).changes == study.changes
    assert "by lot" in str(study)


def test_models_without_experts_and_other_routers_are_refused(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="no experts"):
        contrast_experts(tiny_gpt2_64, tiny_task)
    with pytest.raises(InputError, match="no experts"):
        record_routers(tiny_gpt2_64, tiny_task.pairs.clean_tokens)
    model = build_model("mixtral")
    record_routers(model, tiny_task.pairs.clean_tokens)
    with borrowed(model):
        with pytest.raises(InputError, match="at least 1"):
            contrast_experts(model, tiny_task, n=0)
        with pytest.raises(InputError, match="suppress or promote"):
            contrast_experts(model, tiny_task, changes=["kill"])
        with pytest.raises(InputError, match="ask for fewer"):
            contrast_experts(model, tiny_task, n=12)
    gate = model.blocks[0].mlp.original_component.gate
    while not hasattr(gate, "top_k"):
        gate = gate.original_component
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(UnsupportedModelError, match="softmax and top k"):
        check_router(gate, logits, torch.tensor([[0.5, 0.5]]), torch.tensor([[3, 2]]))  # a sigmoid router's weights
