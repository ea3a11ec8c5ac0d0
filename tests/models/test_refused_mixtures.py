"""Mixtures of DeepSeek's shape: the host runs them right, and what it calls by our names is something else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf

from mechwork.errors import UnsupportedModelError
from mechwork.models.load import load_model
from mechwork.models.routers import choose_experts

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 32,
    "intermediate_size": 48, "vocab_size": 97, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "head_dim": 8,
}  # fmt: skip
SHARED: dict[str, Any] = {**SIZES, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT: dict[str, Any] = {
    **SHARED, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8,
    "n_group": 2, "topk_group": 1,
}  # fmt: skip
TOKENS = torch.arange(20).view(2, 10)


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "Qwen2MoeForCausalLM":
        config: Any = hf.Qwen2MoeConfig(**SIZES, num_experts=4, shared_expert_intermediate_size=40)
    elif name == "Glm4MoeForCausalLM":
        config = hf.Glm4MoeConfig(**SHARED)
    else:
        config = getattr(hf, name.replace("ForCausalLM", "Config"))(**LATENT)
    module = getattr(hf, name)(config).eval()
    module.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DeepseekV2ForCausalLM", "positions would be taken for heads"),
        ("DeepseekV3ForCausalLM", "positions would be taken for heads"),
        ("Qwen2MoeForCausalLM", "every token goes to"),
        ("Glm4MoeForCausalLM", "every token goes to.*adds a bias"),
    ],
)
def test_refused_by_name_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"this model is {name}. It is not claimed because .*{reason}"):
        load_model(build(name))


def test_the_reasons_are_true() -> None:
    """DeepSeek V3 through the host: the same logits, heads where positions stand, no weights, another choice."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = build("DeepseekV3ForCausalLM")
    with torch.no_grad():
        expected = module(TOKENS).logits
    bridge: Any = build_bridge_from_module(
        copy.deepcopy(module), "DeepseekV3ForCausalLM", hf_config=module.config, tokenizer=None
    ).eval()
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert cache["blocks.1.attn.hook_q"].shape == (2, 4, 10, 16)  # 4 heads before 10 positions
    assert cache["blocks.1.attn.hook_v"].shape == (2, 4, 10, 8)
    assert cache["blocks.1.attn.hook_z"].shape == (2, 10, 4, 8)
    with pytest.raises(NotImplementedError, match="not available on MLA"):
        _ = bridge.blocks[1].attn.W_Q
    assert not hasattr(module.model.layers[0].mlp, "gate")
    block = module.model.layers[1].mlp
    x, seen = torch.randn(10, 32, generator=torch.Generator().manual_seed(0)), []
    handle = block.experts.register_forward_pre_hook(lambda m, args: seen.append(args[1:]))
    with torch.no_grad():
        out = block(x[None])
        weights, _ = choose_experts(block.gate, x @ block.gate.weight.T)
    handle.remove()
    assert not torch.allclose(weights.sort().values, seen[0][1].to(weights).sort().values, atol=1e-3)
    with torch.no_grad():
        routed = block.experts(x, *seen[0])
    assert float((out[0] - routed).abs().max()) > 1e-3  # what the shared expert adds


def test_a_shared_expert_is_missing_from_the_routed_ones() -> None:
    block = build("Qwen2MoeForCausalLM").model.layers[1].mlp
    x, seen = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(0)), []
    handle = block.experts.register_forward_hook(lambda m, args, output: seen.append(output))
    with torch.no_grad():
        out = block(x)
    handle.remove()
    assert float((out[0] - seen[0]).norm() / out.norm()) > 0.1
