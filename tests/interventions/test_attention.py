"""Attention moved towards keys: loops over cells in float64, the two forms as one, caches and batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.errors import InputError
from mechwork.interventions import Highlight, LookOnly, OffsetScores, Write, aim_attention, intervene, reweigh_attention
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed

FIVE = ["gpt2", "neox", "llama", "gemma2", "mixtral"]
KEYS = torch.tensor([[False, True, True, False, False, False, True, False, False, False]])


def by_hand(pattern: Tensor, head: int, factor: float) -> Tensor:
    """PASTA's definition, cell by cell: the other keys times 1 / factor, then every row divided by its sum."""
    new = pattern.clone()
    for row in range(pattern.shape[0]):
        for query in range(pattern.shape[2]):
            line = [
                float(pattern[row, head, query, key]) / (1 if KEYS[0, key] else factor)
                for key in range(pattern.shape[3])
            ]
            for key, value in enumerate(line):
                new[row, head, query, key] = value / sum(line)
    return new


@pytest.mark.parametrize("family", FIVE, indirect=True)
def test_highlighting_is_pasta_and_an_offset_of_the_scores(family_model64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    with borrowed(family_model64) as model, torch.no_grad():
        plain = model(tokens)
        with intervene(model, reweigh_attention(["a1.h2"], KEYS, factor=20.0)):
            mine = model(tokens)
        with intervene(model, reweigh_attention(["a1.h2"], KEYS, factor=20.0, before_softmax=True)):
            before = model(tokens)
        put = ("blocks.1.attn.hook_pattern", lambda x, hook: by_hand(x, 2, 20.0))
        theirs = model.run_with_hooks(tokens, fwd_hooks=[put])
        # the host's softmax is in float32, so that a row's sum before and after it differs by its rounding
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(mine, before, rtol=0, atol=1e-5)
        assert float((mine - plain).abs().max()) > 1e-3
        assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("family", FIVE[:4], indirect=True)
def test_a_head_looks_at_nothing_but_the_keys_it_may_see(family_model64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    queries = torch.zeros(1, tokens.shape[1], dtype=torch.bool)
    queries[:, [0, 4, 9]] = True  # the first sees no key and keeps its row

    def put(pattern: Tensor, hook: Any) -> Tensor:
        new = pattern.clone()
        for query in (4, 9):
            seen = [key for key in range(query + 1) if KEYS[0, key]]
            new[:, 2, query] = 0
            new[:, 2, query, seen] = 1 / len(seen)
        return new

    with borrowed(family_model64) as model, torch.no_grad():
        with intervene(model, aim_attention(["a1.h2"], KEYS, queries=queries)):
            mine = model(tokens)
        theirs = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_pattern", put)])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # the host's softmax is in float32
        assert float((mine - model(tokens)).abs().max()) > 1e-3
    late = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)[None]  # one query behind a cache of two keys
    found = LookOnly(torch.tensor([[True, False, True]])).place(late, 2)
    torch.testing.assert_close(found.softmax(-1), torch.tensor([[[0.5, 0.0, 0.5]]], dtype=torch.float64))
    hidden = torch.tensor([[-torch.inf, 3.0, 5.0]], dtype=torch.float64)[None]
    assert torch.equal(LookOnly(torch.tensor([[True, False, False]])).place(hidden, 2), hidden)


def test_rows_keep_their_sum_and_nothing_else_changes() -> None:
    x = torch.rand(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tril()
    keys = torch.tensor([[False, True, False, False]])
    new = Highlight(keys, 3.0).place(x, 0)
    torch.testing.assert_close(new.sum(-1), x.sum(-1))
    assert torch.equal(new[:, 0], x[:, 0])  # the first query does not see the key: what is 0 stays 0
    assert float((new - x)[:, 1:].abs().max()) > 0.01
    torch.testing.assert_close(Highlight(keys, 1.0).place(x, 0), x)
    hidden = Highlight(keys, 0.0).place(x, 0)
    assert not hidden[:, :, 1].any()
    torch.testing.assert_close(hidden.sum(-1), x.sum(-1))
    only = Highlight(keys, 3.0, queries=torch.tensor([[False, False, True, False]])).place(x, 0)
    assert torch.equal(only[:, [0, 1, 3]], x[:, [0, 1, 3]])
    assert float((only - x)[:, 2].abs().max()) > 0.01
    scores = torch.tensor([[[1.0, torch.finfo(torch.float32).min], [-torch.inf, 2.0]]])
    moved = OffsetScores(torch.tensor([[True, True]]), 3.0).place(scores, 0)
    assert moved.tolist() == [[[4.0, scores[0, 0, 1].item()], [-math.inf, 5.0]]]


@pytest.mark.parametrize("family", ["gpt2", "mistral"], indirect=True)
@pytest.mark.parametrize("how", ["after", "before", "only"])
def test_generation_with_a_cache_equals_generation_without(family_model64: Any, how: str) -> None:
    prompt = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    keys = torch.tensor([[False, False, True, False, False], [False, True, False, False, False]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "verbose": False, "stop_at_eos": False}
    heads = [f"a{layer}.h{head}" for layer in range(3) for head in range(4)]

    def made(rows: Tensor, where: Tensor, *, cached: bool) -> Tensor:
        weighed = reweigh_attention(heads, where, factor=1000.0, before_softmax=how == "before")
        with intervene(model, aim_attention(heads, where) if how == "only" else weighed):
            return model.generate(rows, use_past_kv_cache=cached, **settings)

    with borrowed(family_model64) as model, torch.no_grad():
        with_cache, without = (made(prompt, keys, cached=cached) for cached in (True, False))
        assert torch.equal(with_cache, without)
        assert torch.equal(made(prompt[1:], keys[1:], cached=True)[0], with_cache[1])
        assert not torch.equal(model.generate(prompt, **settings), with_cache)


def test_contracts(tiny_gpt2_64: Any) -> None:
    for factor in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="finite factor"):
            Highlight(KEYS, factor)
    with pytest.raises(InputError, match="factor 0 hides keys"):
        OffsetScores(KEYS, -math.inf)
    with pytest.raises(InputError, match="above 0"):
        reweigh_attention(["a1.h0"], KEYS, factor=0.0, before_softmax=True)
    with pytest.raises(InputError, match="heads are written"):
        reweigh_attention(["L1H0"], KEYS, factor=2.0)
    with (
        pytest.raises(InputError, match="heads at 'pattern' are 0 to 3"),
        intervene(tiny_gpt2_64, reweigh_attention(["a1.h9"], KEYS, factor=2.0)),
    ):
        pass
    write = Write(Site("pattern", 0, 0), Highlight(KEYS.expand(3, -1), 2.0))
    with pytest.raises(InputError, match="given for 3 prompts"), intervene(tiny_gpt2_64, [write]):
        tiny_gpt2_64(torch.tensor([[1, 2, 3]]))
