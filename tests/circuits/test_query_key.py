"""Query-key attribution: parts add up to the model's own attention score, and single parts are what bilinearity says,
in float64 on every architecture family whose attention is open.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits.scoring.query_key import QueryKeyAttribution, attribute_attention
from mechwork.display import page
from mechwork.errors import InputError, UnsupportedModelError
from mechwork.models.anatomy import read_anatomy
from mechwork.tasks.task import Task
from tests.families import build_model
from tests.reference import literal

QUERY, KEY, LAYER, HEAD = 8, 5, 2, 3


def score_of(model: Any, tokens: torch.Tensor, hooks: list[Any]) -> float:
    """The score before the soft cap, of a whole forward with hooks."""
    found: list[torch.Tensor] = []

    def keep(activation: torch.Tensor, hook: Any) -> None:
        found.append(activation[0, HEAD, QUERY, KEY])

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, (f"blocks.{LAYER}.attn.hook_attn_scores", keep)])
    cap = read_anatomy(model).attn_soft_cap
    return float(found[0] if cap is None else cap * torch.atanh(found[0] / cap))


def test_parts_add_up_and_a_writer_scales_its_own_parts(family_model64: Any, tiny_task: Task) -> None:
    model, anatomy = family_model64, read_anatomy(family_model64)
    tokens = tiny_task.pairs.clean_tokens[1:2]
    if not anatomy.open_attention:
        with pytest.raises(UnsupportedModelError, match="out of reach"):
            attribute_attention(model, tiny_task, f"a{LAYER}.h{HEAD}", QUERY, KEY, row=1)
        return
    found = attribute_attention(model, tiny_task, f"a{LAYER}.h{HEAD}", QUERY, KEY, row=1)
    loose = 1e-4 if anatomy.norm_kind == "rms" or anatomy.architecture == "GPTJForCausalLM" else 1e-8
    assert found.total == pytest.approx(score_of(model, tokens, []), abs=loose)
    assert float(found.values.abs().max()) > 1e-3
    assert abs(found.remainder) <= loose * max(1.0, float(found.values.abs().sum()))
    if anatomy.qk_norm:
        return
    # Without q/k-norms the query is a sum: taking one writer's part from it takes that row of the table.
    writer = found.writers.index("m1")
    norm = model.blocks[LAYER].ln1
    cache = literal.cached(model, tokens)
    x, write = cache[f"blocks.{LAYER}.hook_resid_pre"][:, QUERY], cache[literal.hook("mlp_out", 1)][:, QUERY]
    original = norm.original_component
    if isinstance(original, torch.nn.LayerNorm):
        share = (write - write.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + original.eps).sqrt()
    else:
        eps = getattr(original, "eps", None) or original.variance_epsilon
        share = write / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    share = share * (norm.weight + 1 if norm.uses_weight_offset else norm.weight)
    part = share @ model.blocks[LAYER].attn.W_Q[HEAD]

    def take(q: torch.Tensor, hook: Any) -> torch.Tensor:
        new = q.clone()
        new[:, QUERY, HEAD] -= part
        return new

    without = score_of(model, tokens, [(literal.hook("q", LAYER), take)])
    assert float(found.by_query[writer]) == pytest.approx(found.total - without, abs=loose * 10)


def test_wrong_places(tiny_gpt2_64: Any, tiny_task: Task, tmp_path: Any) -> None:
    for query, key, message in ((3, 5, "at or before it"), (40, 0, "0 to 9"), (-1, -11, "0 to 9")):
        with pytest.raises(InputError, match=message):
            attribute_attention(tiny_gpt2_64, tiny_task, "a1.h0", query, key)
    found = attribute_attention(tiny_gpt2_64, tiny_task, "a1.h0")
    assert (found.query, found.key) == (9, 0)
    again = QueryKeyAttribution.load(found.save(tmp_path / "found"))
    assert torch.equal(again.values, found.values)
    assert "What makes a1.h0 look" in page(found)
    assert found.to_dataframe().shape == (len(found.writers) ** 2, 3)


def test_a_norm_over_all_heads_together_scales_by_the_one_head_alone(tiny_task: Task) -> None:
    """OLMo 2 norms the queries (and keys) of all heads as one vector."""
    test_parts_add_up_and_a_writer_scales_its_own_parts(build_model("olmo2"), tiny_task)
