"""The tiny models are what the other tests take them for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.models.anatomy import CLAIMED, read_anatomy
from mechwork.tasks.task import Task
from tests.families import FAMILIES, N_POS, SLIDING_WINDOW, borrowed, build_model, build_module


def test_every_claimed_architecture_has_a_family() -> None:
    assert {type(make()).__name__ for make in FAMILIES.values()} == set(CLAIMED)


def test_same_seed_gives_the_same_model() -> None:
    first, second, other = (dict(build_module("llama", seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_model_is_far_from_linear_and_from_its_initialisation(family_model64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    with torch.no_grad():
        logits = family_model64(tokens)
    assert logits.dtype == torch.float64
    assert 0.3 < float(logits.std()) < 100
    norms = {n: p for n, p in family_model64.named_parameters() if p.ndim == 1}
    assert norms
    assert all(float(p.std()) > 0.05 for p in norms.values())


def test_windows_are_shorter_than_the_prompts() -> None:
    assert SLIDING_WINDOW < N_POS


def test_anatomy_tells_the_families_apart() -> None:
    facts = {name: read_anatomy(build_model(name)) for name in ("neox", "gemma2", "olmo2", "qwen3", "mixtral")}
    assert facts["neox"].parallel
    assert facts["gemma2"].attn_soft_cap == pytest.approx(3.0)
    assert facts["gemma2"].norm_place == "both"
    assert facts["olmo2"].norm_place == "post"
    assert facts["qwen3"].qk_norm
    assert facts["mixtral"].n_experts == 4


def test_a_borrowed_model_must_come_back_unchanged() -> None:
    model = build_model("gpt2")
    with pytest.raises(AssertionError, match="came back changed"), borrowed(model):
        model.train()
    model.eval()
    with pytest.raises(AssertionError, match="hooks of"), borrowed(model):
        model.add_hook("blocks.0.hook_resid_pre", lambda activation, hook: None)
