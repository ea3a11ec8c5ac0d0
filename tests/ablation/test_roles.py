"""Roles on the hand-built induction model, where they are known, and scores against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import measure_roles, repeated_tokens
from mechwork.ablation.repeated import candidate_tokens
from mechwork.circuits.ground_truth.induction import build_induction
from mechwork.errors import InputError
from tests.families import borrowed, build_model


def test_built_heads_have_their_roles_and_the_others_none() -> None:
    model = build_induction()
    table = measure_roles(model, repeated_tokens(model, 16, 3, again=2))
    score = {role: dict(zip(table.heads, values.tolist(), strict=True)) for role, values in table.scores.items()}
    assert score["previous token"]["a0.h0"] == pytest.approx(1.0)
    assert score["induction"]["a1.h0"] == pytest.approx(1.0)
    assert score["copying"]["a1.h0"] == pytest.approx(1.0)
    assert table.roles_of("a0.h0") == ("previous token",)
    assert set(table.roles_of("a1.h0")) == {"induction", "copying"}
    for idle in ("a0.h1", "a1.h1"):
        assert table.roles_of(idle) == ()
        for role in table.scores:
            row = table.heads.index(idle)
            chance = float(table.null_mean[role][row]) + 3 * float(table.null_sd[role][row])
            assert score[role][idle] <= max(chance, 0.25), (idle, role)
    assert score["duplicate token"]["a1.h0"] == pytest.approx(0, abs=1e-9)
    assert "chance" in str(table)
    assert len(table.to_dataframe()) == 4 * 5


def test_scores_are_what_they_say(tiny_gpt2_64: Any) -> None:
    prompts = repeated_tokens(tiny_gpt2_64, 6, 8, again=5, tokens=torch.arange(1, 97), seed=3)
    with borrowed(tiny_gpt2_64) as model:
        table = measure_roles(model, prompts, n_null=20)
        _, cache = model.run_with_cache(prompts.tokens)
    first = prompts.start + 8
    for row, (layer, head) in enumerate((layer, h) for layer in range(3) for h in range(4)):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head]
        for role, back in (("duplicate token", 8), ("induction", 7)):
            cells = [float(pattern[b, q, q - back]) for b in range(6) for q in range(first, first + 5)]
            assert float(table.scores[role][row]) == pytest.approx(sum(cells) / len(cells), abs=1e-9)
        cells = [float(pattern[b, q, q - 1]) for b in range(6) for q in range(2, pattern.shape[1])]
        assert float(table.scores["previous token"][row]) == pytest.approx(sum(cells) / len(cells), abs=1e-9)
        total, weight = 0.0, 0.0
        values = cache[f"blocks.{layer}.attn.hook_v"][:, :, head] @ model.blocks[layer].attn.W_O[head]
        gain = model.ln_final.weight
        for b in range(6):
            for k in range(pattern.shape[1]):
                write = values[b, k] - values[b, k].mean()
                logits = (gain * write) @ model.W_U
                token = int(prompts.tokens[b, k])
                share = float((logits < logits[token]).sum()) / 96
                received = sum(float(pattern[b, q, k]) for q in range(first, first + 5) if q != k)
                total, weight = total + received * (2 * share - 1), weight + received
        assert float(table.scores["copying"][row]) == pytest.approx(total / weight, abs=1e-6)
    assert float(table.null_mean["induction"].mean()) == pytest.approx(1 / 11, abs=0.06)
    assert float(table.null_mean["copying"].abs().mean()) < 0.3


def test_the_task_of_repeated_tokens(bundled_model: Any) -> None:
    prompts = repeated_tokens(bundled_model, 16, 10)
    pairs = prompts.task.pairs
    assert pairs.clean_tokens.shape == (16, 1 + 10 + 9)
    assert torch.equal(pairs.clean_tokens[:, 11:], pairs.clean_tokens[:, 1:10])
    assert torch.equal(pairs.correct[:, 0], pairs.clean_tokens[:, 10])
    assert not (pairs.corrupt_tokens[:, 11:] == pairs.clean_tokens[:, 11:]).all(dim=1).any()
    with torch.no_grad():
        logits = bundled_model(pairs.clean_tokens)
    following = torch.cat([pairs.clean_tokens[:, 12:], pairs.correct], dim=1)
    by_hand = [float(logits[3, 11 + i].log_softmax(-1)[int(t)]) for i, t in enumerate(following[3])]
    assert float(prompts.task.measure(logits)[3]) == pytest.approx(sum(by_hand) / 9, abs=1e-5)
    texts = bundled_model.tokenizer.convert_ids_to_tokens(candidate_tokens(bundled_model).tolist())
    assert all(text[0] == "Ġ" for text in texts)


def test_prompts_that_cannot_be_made() -> None:
    model = build_model("gpt2")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"length": 2}, "at least 3"),
        ({"length": 40}, "context of 64"),
        ({"length": 8, "again": 8}, "length - 1"),
        ({"tokens": torch.arange(9)}, "candidates"),
    )
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            repeated_tokens(model, 4, **arguments)
