"""Copy suppression on text: the replacement against loops, the choice of heads, and a head built to suppress."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import study_copy_suppression, study_text_suppression, weigh_suppressors
from mechwork.ablation.suppression_weights import logit_directions
from mechwork.ablation.text_suppression import _means, _windows_that_fit, suppression_alone, top_sources
from mechwork.errors import InputError
from mechwork.runs import record_run
from tests.ablation.test_suppression import V, suppressed_task, suppressor
from tests.families import build_model, build_task


def test_the_built_head_is_chosen_by_its_weights_and_explained_on_text() -> None:
    model = suppressor()
    rows = weigh_suppressors(model, n_tokens=V)
    assert rows[0].head == "a1.h0"
    assert rows[0].evidence == 1.0
    study = study_text_suppression(model, suppressed_task().pairs.clean_tokens, n_heads=1, n_sources=2)
    (row,) = study.rows
    assert row.head == "a1.h0"
    assert row.kl_ablated > 0.05
    assert row.share > 0.8
    assert row.share_interval[0] < row.share < row.share_interval[1] + 1e-9
    chosen = study_copy_suppression(model, suppressed_task(), n_heads=1, tokens=torch.arange(V))
    assert "a1.h0" in [r.head for r in chosen.rows]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_replacement_equals_loops(family: str) -> None:
    """One query, one key, one token at a time, with the logit's direction from a gradient."""
    model, tokens = build_model(family), build_task(n=2).pairs.clean_tokens
    tokens[:, 4] = tokens[:, 1]  # a token that stands twice
    layer, head, n_sources = 1, 2, 3
    run = record_run(model, build_task(n=2).pairs[:2], ["resid_pre"])
    kinds = ("z", "v", "pattern", "resid_pre")
    from mechwork.tasks.pairs import PromptPairs

    pairs = PromptPairs.from_tokens(tokens, tokens, [0, 0], [1, 1], alone=True)
    run = record_run(model, pairs, kinds)
    part = {kind: run.layers[kind][layer] for kind in kinds}
    found = suppression_alone(model, tokens, part, layer, head, n_sources)
    attn, anatomy_group = model.blocks[layer].attn, model.blocks[layer].attn.W_V.shape[0]
    kv = head // (model.cfg.n_heads // anatomy_group)
    W_U, norm = model.W_U, model.ln_final

    def logits(x: torch.Tensor) -> torch.Tensor:
        out = norm(x[None, None])[0, 0] @ W_U
        return out - out.mean()

    table = torch.stack([torch.stack([logits(x) for x in row]) for row in part["resid_pre"]])
    above = table - table.mean(dim=(0, 1))
    expected = torch.zeros_like(found)
    for b in range(2):
        for q in range(tokens.shape[1]):
            context = sorted(set(tokens[b, : q + 1].tolist()), key=lambda t: -float(above[b, q, t]))[:n_sources]
            for k in range(q + 1):
                token = int(tokens[b, k])
                if token not in context:
                    continue
                (u,) = logit_directions(model, torch.tensor([token]))
                u = u / u.norm()
                along = float((part["v"][b, k, kv] @ attn.W_O[head]) @ u)
                expected[b, q] += float(part["pattern"][b, head, q, k]) * min(0.0, along) * u
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_directions_are_gradients_of_logits() -> None:
    """At unit scale a step along u raises the token's logit over the mean by u . gradient: compared by autograd."""
    model = build_model("gpt2")
    token = torch.tensor([5])
    gain, W_U = model.ln_final.original_component.weight.detach(), model.W_U.detach()
    x = torch.randn(32, dtype=W_U.dtype, requires_grad=True)
    logits = (gain * (x - x.mean())) @ W_U
    (gradient,) = torch.autograd.grad(logits[5] - logits.mean(), x)
    torch.testing.assert_close(logit_directions(model, token)[0], gradient, rtol=1e-6, atol=1e-9)


def test_only_the_context_counts_and_only_so_many_tokens() -> None:
    above = torch.tensor([[9.0, 1, 5], [9, 1, 5], [9, 1, 5], [0, 3, 5]])
    found = top_sources(above, torch.tensor([1, 2, 0, 1]), 2)
    assert found.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1]]


def test_what_is_found_does_not_depend_on_the_memory_budget() -> None:
    """Base rates and means are of the whole text, also when one window runs at a time."""
    model, tokens = build_model("gpt2"), build_task(n=4).pairs.clean_tokens
    with pytest.raises(InputError, match="must hold the runs of one prompt") as refused:
        study_text_suppression(model, tokens, ["a1.h0"], memory_budget=1)
    least = int(str(refused.value).split(" bytes")[0].split()[-1].replace(",", ""))
    assert [_windows_that_fit(model, tokens, b) for b in (least, 2**30)] == [1, 4]
    studies = [study_text_suppression(model, tokens, ["a1.h0"], memory_budget=b) for b in (least, 2**30)]
    a, b = (study.rows[0] for study in studies)
    assert a.kl_explained > 0.01
    assert (a.share, a.kl_explained) == pytest.approx((b.share, b.kl_explained), rel=1e-9)


def test_contracts() -> None:
    model: Any = build_model("gpt2")
    with pytest.raises(InputError, match="at least two windows"):
        study_text_suppression(model, torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(InputError, match="norm after"):
        study_text_suppression(build_model("gemma2"), torch.ones(2, 4, dtype=torch.long))


def test_base_rates_are_means_over_every_position_of_every_batch() -> None:
    model, tokens = build_model("gpt2"), torch.randint(97, (3, 6), generator=torch.Generator().manual_seed(1))
    found = _means(model, [tokens[:2], tokens[2:]], ["a1.h2", "a0.h1"], 2)
    with torch.no_grad():
        cache = model.run_with_cache(tokens)[1]
    for means, (layer, head) in zip(found, ((1, 2), (0, 1)), strict=True):
        assert (means.layer, means.head) == (layer, head)
        z, stream = cache[f"blocks.{layer}.attn.hook_z"][:, :, head], cache[f"blocks.{layer}.hook_resid_pre"]
        writes = [row @ model.blocks[layer].attn.W_O[head] for row in z.flatten(0, 1)]
        scaled = [row / (row.var(unbiased=False) + 1e-5).sqrt() for row in stream.flatten(0, 1)]
        torch.testing.assert_close(means.write, sum(writes) / 18)
        torch.testing.assert_close(means.stream, sum(scaled) / 18)
