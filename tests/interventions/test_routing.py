"""Experts on, off and offset: against a mixture-of-experts block written as a loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.errors import InputError
from mechwork.interventions import Routing, intervene
from mechwork.tasks.task import Task
from tests.families import borrowed

EXPERTS = ["mixtral", "olmoe", "qwen3_moe"]
CHANGES = {
    "off": Routing(1, off=(0, 2)),
    "on": Routing(1, on=(3,)),
    "offset": Routing(1, offsets={0: 2.0, 3: -1.0}),
    "both": Routing(1, offsets={1: 0.5}, on=(2,), off=(0,)),
}


def block_by_hand(block: Any, x: Tensor, change: Routing) -> Tensor:
    """Every token's experts, one by one, with the router's logits changed as the definition says."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for position in range(x.shape[1]):
            token = x[row, position]
            logits = [float(block.gate.weight[e] @ token) for e in range(4)]
            for expert, offset in change.offsets.items():
                logits[expert] += offset
            top = max(logits)
            for expert in change.on:
                logits[expert] = top + 0.01
            share = torch.tensor(logits).softmax(dim=0)
            allowed = [e for e in range(4) if e not in change.off]
            share = share / share[allowed].sum()
            chosen = sorted(allowed, key=lambda e: -float(share[e]))[:2]
            total = sum(float(share[e]) for e in chosen) if getattr(block.gate, "norm_topk_prob", True) else 1.0
            for e in chosen:
                gate, up = (block.experts.gate_up_proj[e] @ token).chunk(2)
                hidden = torch.nn.functional.silu(gate) * up
                out[row, position] += float(share[e]) / total * (block.experts.down_proj[e] @ hidden)
    return out


@pytest.mark.parametrize("family", EXPERTS, indirect=True)
@pytest.mark.parametrize("name", list(CHANGES))
def test_routing_equals_a_loop_over_tokens(family_model64: Any, tiny_task: Task, name: str) -> None:
    tokens, change = tiny_task.pairs.clean_tokens, CHANGES[name]
    with borrowed(family_model64) as model, torch.no_grad():
        plain = model(tokens)
        with intervene(model, [change]):
            mine = model(tokens)
        block = model.blocks[1].mlp.original_component
        seen: list[Tensor] = []
        hooks = [
            ("blocks.1.mlp.hook_in", lambda x, hook: seen.append(x.clone())),
            ("blocks.1.hook_mlp_out", lambda x, hook: block_by_hand(block, seen[-1], change)),
        ]
        theirs = model.run_with_hooks(tokens, fwd_hooks=hooks)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # the router's softmax is in float32
        assert float((mine - plain).abs().max()) > 1e-3
        assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("family", ["mixtral"], indirect=True)
def test_generation_and_batches(family_model64: Any) -> None:
    prompt = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with borrowed(family_model64) as model, torch.no_grad():
        found = {}
        for first, stop in ((0, None), (0, 5), (5, None)):
            change = [Routing(0, off=(0, 1), first=first, stop=stop), Routing(2, on=(3,), first=first, stop=stop)]
            with intervene(model, change):
                texts = [model.generate(prompt, use_past_kv_cache=cached, **settings) for cached in (True, False)]
                assert torch.equal(*texts)
                assert torch.equal(model.generate(prompt[:1], **settings)[0], texts[0][0])
                found[first, stop] = model(torch.cat([prompt, prompt], dim=1))
        assert float((found[0, None] - found[0, 5]).abs().max()) > 1e-3
        torch.testing.assert_close(found[0, None][:, :5], found[0, 5][:, :5], rtol=0, atol=1e-12)
        plain = model(torch.cat([prompt, prompt], dim=1))
        torch.testing.assert_close(plain[:, :5], found[5, None][:, :5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["mixtral"], indirect=True)
def test_contracts(family_model64: Any, tiny_gpt2_64: Any) -> None:
    with pytest.raises(InputError, match="not both"):
        Routing(0, on=(1,), off=(1, 2))
    with pytest.raises(InputError, match="finite"):
        Routing(0, offsets={1: float("inf")})
    for change, message in (
        (Routing(0, off=(0, 1, 2)), "at most 2 are off"),
        (Routing(0, on=(0, 1, 2)), "2 are on"),
        (Routing(0, off=(9,)), "experts of this model"),
        (Routing(7, off=(0,)), "experts of this model"),
    ):
        with pytest.raises(InputError, match=message), intervene(family_model64, [change]):
            pass
    with pytest.raises(InputError, match="no experts"), intervene(tiny_gpt2_64, [Routing(0, off=(0,))]):
        pass
