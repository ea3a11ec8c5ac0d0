"""Telemetry against loops over entries, and on a stream with a planted massive activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import record_telemetry, telemetry_over_training
from mechwork.errors import InputError
from tests.families import borrowed, build_model, build_native, build_task


def test_summaries_are_what_they_say(tiny_gpt2_64: Any) -> None:
    task = build_task(n=5)
    tokens = task.pairs.clean_tokens
    with borrowed(tiny_gpt2_64) as model:
        found = record_telemetry(model, task, tolerance=0.02)
        logits, cache = model.run_with_cache(tokens)
    for layer in range(3):
        stream = cache[f"blocks.{layer}.hook_resid_post"]
        assert float(found.norm[layer]) == pytest.approx(
            float(torch.stack([stream[b, p].norm() for b in range(5) for p in range(1, 10)]).mean())
        )
        assert float(found.norm_first[layer]) == pytest.approx(float(stream[:, 0].norm(dim=-1).mean()))
        best = next(one for one in found.largest if one.layer == layer)
        assert abs(best.value) == pytest.approx(float(stream.abs().max()))
        assert float(stream[best.prompt, best.position, best.dimension]) == pytest.approx(best.value)
        assert best.ratio == pytest.approx(float(stream.abs().max() / stream.abs().median()))
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        for head in range(4):
            rows = [pattern[b, head, q] for b in range(5) for q in range(1, 10)]
            assert float(found.sink[layer, head]) == pytest.approx(float(torch.stack([row[0] for row in rows]).mean()))
            entropies = [
                float(-(pattern[b, head, q, : q + 1] * pattern[b, head, q,
                : q + 1].log()).sum() / torch.tensor(q + 1.0).log())
                for b in range(5) for q in range(1, 10)
            ]  # fmt: skip
            assert float(found.entropy[layer, head]) == pytest.approx(sum(entropies) / 45, abs=1e-6)
    picked = [float(logits[b, p].log_softmax(-1)[tokens[b, p + 1]]) for b in range(5) for p in range(9)]
    assert found.perplexity == pytest.approx(float(torch.tensor(-sum(picked) / 45).exp()), rel=1e-5)
    assert not found.massive
    assert "none massive" in str(found)
    assert len(found.to_dataframe()) == 3


def test_the_sparsity_is_the_largest_share_within_the_tolerance(tiny_gpt2_64: Any) -> None:
    task = build_task(n=5)
    found = record_telemetry(tiny_gpt2_64, task, tolerance=0.02)
    tokens = task.pairs.clean_tokens
    name = "blocks.1.mlp.hook_post"
    with torch.no_grad():
        values = tiny_gpt2_64.run_with_cache(tokens)[1][name]

    def perplexity(share: float) -> float:
        threshold = values.abs().flatten().sort().values[round(share * values.numel()) - 1]
        with torch.no_grad():
            logits = tiny_gpt2_64.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x * (x.abs() > threshold))])
        return float((-logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()).exp())

    share = found.sparsity[1]
    assert 0 < share < 1
    assert perplexity(share) <= found.perplexity * 1.02
    assert perplexity(min(1.0, share + 0.05)) > found.perplexity * 1.02


def test_a_planted_massive_activation_is_found() -> None:
    model = build_model("gpt2")
    with torch.no_grad():
        model.blocks[0].mlp.out.original_component.bias[7] += 5e4
    found = record_telemetry(model, build_task(n=3), sparsity=False)
    assert {one.dimension for one in found.massive} == {7}
    assert found.massive[0].layer == 0
    assert found.sparsity == ()


def test_models_without_one_table_of_activations_say_so() -> None:
    assert "left out" in str(record_telemetry(build_model("mixtral"), build_task(n=3)))
    assert "left out" in str(record_telemetry(build_native("attention only"), build_task(n=3)))
    with pytest.raises(InputError, match="tolerance"):
        record_telemetry(build_model("gpt2"), build_task(n=3), tolerance=-1)


def test_over_checkpoints() -> None:
    found = telemetry_over_training("attn-only-2l", lambda model: mw.tasks.induction(model, n=8), steps=[0, 2500])
    assert [one.model for one in found.found] == ["attn-only-2l@0", "attn-only-2l@2500"]
    assert found.found[1].perplexity < found.found[0].perplexity
    frame = found.to_dataframe()
    assert frame["step"].tolist() == [0, 0, 2500, 2500]
    assert frame["norm"].tolist() == pytest.approx([*found.found[0].norm.tolist(), *found.found[1].norm.tolist()])
    assert str(found).count("\n") == 5
    assert "Telemetry over training" in found.to_html()
    with pytest.raises(InputError, match="no checkpoints"):
        telemetry_over_training("gpt2-6l", lambda model: mw.tasks.induction(model, n=8))
