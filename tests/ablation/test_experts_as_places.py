"""Experts ablated alone and routers rewired, against loops and autograd on the router's own formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import ExpertEffects, Rewiring, ablate, rewire_experts, sweep_experts
from mechwork.ablation.spec import AblationSpec
from mechwork.errors import InputError, UnknownNameError
from mechwork.interventions import Routing, intervene
from mechwork.tasks.task import Task
from tests.families import borrowed, build_hard_task, build_model, build_task
from tests.gate import fewer

EXPERTS = fewer(["mixtral", "olmoe", "qwen3_moe"], ["mixtral"])


@pytest.mark.parametrize("family", EXPERTS)
def test_every_expert_alone(family: str, tmp_path: Any) -> None:
    model, task = build_model(family), build_hard_task(n=4)
    with torch.no_grad():
        plain = task.metric(model(task.pairs.clean_tokens), task.pairs)
    with borrowed(model):
        found, off = sweep_experts(model, task), sweep_experts(model, task, kind="off")
    block = model.blocks[1].mlp.original_component.experts
    before = block.down_proj.detach().clone()
    for expert in range(4):  # an expert whose output weights are zero writes nothing
        with torch.no_grad():
            block.down_proj[expert] = 0
            changed = task.metric(model(task.pairs.clean_tokens), task.pairs)
            block.down_proj.copy_(before)
        torch.testing.assert_close(found.per_example[:, 1, expert], plain - changed, rtol=0, atol=1e-6)
        with torch.no_grad(), intervene(model, [Routing(1, off=(expert,))]):
            changed = task.metric(model(task.pairs.clean_tokens), task.pairs)
        torch.testing.assert_close(off.per_example[:, 1, expert], plain - changed, rtol=0, atol=1e-9)
    assert float(found.values.abs().max()) > 1e-3
    name, value = found.top(1)[0]
    assert value == pytest.approx(ablate(model, task, AblationSpec([name], "zero")).effect)
    assert float(found.used.sum(dim=1)[0]) == pytest.approx(2)
    assert ExpertEffects.load(found.save(tmp_path / "experts")).kind == "zero"


def test_an_expert_without_tokens_has_no_effect_and_says_so() -> None:
    model, task = build_model("mixtral"), build_task(n=8)
    gate = model.blocks[0].mlp.original_component.gate.original_component
    with torch.no_grad():
        gate.weight[3] = 0
        inputs: list[torch.Tensor] = []
        model.run_with_hooks(
            task.pairs.clean_tokens, fwd_hooks=[("blocks.0.mlp.hook_in", lambda x, hook: inputs.append(x))]
        )
        mean = inputs[0].flatten(0, 1).mean(dim=0)
        gate.weight[3] = -100 * mean  # seldom or never chosen
        logits = inputs[0].flatten(0, 1) @ gate.weight.T
    chosen = logits.topk(2).indices
    found = sweep_experts(model, task, kind="mean")
    assert float(found.used[0, 3]) == pytest.approx(float((chosen == 3).any(dim=1).double().mean()))
    idle = found.used == 0
    assert bool((found.values[idle] == 0).all())
    if bool(idle.any()):
        assert "used for no token" in str(found)


@pytest.mark.parametrize("family", EXPERTS)
def test_routers_are_rewired_by_the_gradient_of_the_context(family: str, tmp_path: Any) -> None:
    model = build_model(family)
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(tokens)
    with borrowed(model):
        found = rewire_experts(model, tokens[:, :10], tokens[:, 10:], n_steps=8, rate=0.05)
        one = rewire_experts(model, tokens[:, :10], tokens[:, 10:], n_steps=1, rate=0.05, n_random=0)
    eps, nll = 1e-4, torch.nn.functional.cross_entropy

    def loss(layer: int, expert: int, offset: float) -> float:
        """Surprisal of the context with one offset put into the router by hand."""
        with torch.no_grad(), intervene(model, [Routing(layer, offsets={expert: offset})]):
            logits = model(tokens[:, :10])[:, :-1]
        return float(nll(logits.flatten(0, 1), tokens[:, 1:10].flatten()))

    for layer in range(3):
        for expert in range(4):
            slope = (loss(layer, expert, eps) - loss(layer, expert, -eps)) / (2 * eps)
            if abs(slope) > 1e-3:  # Adam's first step is the rate, down the slope
                assert float(one.offsets[layer, expert]) == pytest.approx(-0.05 * (1 if slope > 0 else -1), rel=1e-3)
    assert found.losses[-1] < found.losses[0]
    assert found.context[1] < found.context[0]
    with torch.no_grad(), intervene(model, found.writes()):
        logits = model(tokens)
    follows = nll(logits[:, 9:-1].flatten(0, 1), tokens[:, 10:].flatten()) / 0.6931471805599453
    assert found.follows[1] == pytest.approx(float(follows), rel=1e-6)
    assert Rewiring.load(found.save(tmp_path / "rewired")).losses == found.losses
    assert "by lot" in str(found)


def test_bad_input_is_refused(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    tokens = torch.ones(1, 8, dtype=torch.long)
    with pytest.raises(InputError, match="has no experts"):
        sweep_experts(tiny_gpt2_64, tiny_task)
    with pytest.raises(InputError, match="nothing is routed"):
        rewire_experts(tiny_gpt2_64, tokens, tokens)
    model = build_model("mixtral")
    with pytest.raises(UnknownNameError, match="kind of ablation"):
        sweep_experts(model, tiny_task, kind="resample")
    with pytest.raises(InputError, match="tokens that follow"):
        rewire_experts(model, tokens, tokens[:, :0])
    with pytest.raises(InputError, match="at least two tokens"):
        rewire_experts(model, tokens[:, :1], tokens)
