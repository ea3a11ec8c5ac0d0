"""Recording equals the host's cache; restarting equals running from the start; attention adds up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError, MetricError
from mechwork.runs import attention_between, record_attention, record_run
from mechwork.runs.record import Baseline
from mechwork.runs.restart import restart_at
from mechwork.tasks.task import Task
from tests.families import borrowed
from tests.reference import literal


def test_records_what_the_host_caches(family_model64: Any, tiny_task: Task) -> None:
    kinds = ["resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern"]
    with borrowed(family_model64) as model:
        run = record_run(model, tiny_task.pairs, kinds, corrupt=True)
        graph = record_run(model, tiny_task.pairs, kinds, corrupt=True, grad=True)
    cache = literal.cached(family_model64, tiny_task.pairs.corrupt_tokens)
    for kind in kinds:
        for layer in range(3):
            assert torch.equal(run[kind][layer], cache[literal.hook(kind, layer)])
            assert torch.equal(graph.layers[kind][layer].detach(), run[kind][layer])
    assert torch.equal(graph.logits.detach(), run.logits)
    assert not run.logits.requires_grad
    assert graph.logits.requires_grad
    assert run.n_bytes > 0
    with pytest.raises(InputError, match="has not recorded"):
        _ = run["mlp_in"]


def test_restarting_is_exact_and_skips_the_blocks_below(family_model64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    with borrowed(family_model64) as model:
        run = record_run(model, tiny_task.pairs, ["resid_pre"])
        for layer in range(3):
            ran: list[int] = []
            hooks = [
                (literal.hook("mlp_out", i), lambda activation, hook, i=i, ran=ran: ran.append(i)) for i in range(3)
            ]
            with torch.no_grad(), restart_at(model, layer, run["resid_pre"][layer]), model.hooks(fwd_hooks=hooks):
                logits = model(tokens)
            assert torch.equal(logits, run.logits)
            assert ran == list(range(layer, 3))
        with pytest.raises(KeyboardInterrupt), restart_at(model, 2, run["resid_pre"][2]):
            raise KeyboardInterrupt


def test_attention_of_heads(tiny_gpt2_64: Any) -> None:
    task = Task.from_tokens(
        [[5, 6, 7, 8], [5, 6, 7]], [[5, 60, 7, 8], [5, 60, 7]], [1, 2], [3, 4], spans=[{"A": [1]}] * 2
    )
    patterns = record_attention(tiny_gpt2_64, task, ["a1.h2", "a0.h0"], row=1)
    assert patterns.patterns.shape == (2, 3, 3)
    torch.testing.assert_close(patterns.patterns.sum(dim=-1), torch.ones(2, 3).double())
    names = list(task.pairs.spans)
    alone = attention_between(tiny_gpt2_64, task[[0]], [("END", name) for name in names])
    torch.testing.assert_close(torch.stack(list(alone.values())).sum(dim=0), torch.ones(3, 4).double())
    mass = attention_between(tiny_gpt2_64, task, [("END", "A")])
    cache = literal.cached(tiny_gpt2_64, task.pairs.clean_tokens)
    by_hand = (cache["blocks.1.attn.hook_pattern"][0, 2, 3, 1] + cache["blocks.1.attn.hook_pattern"][1, 2, 2, 1]) / 2
    assert float(mass["END", "A"][1, 2]) == pytest.approx(float(by_hand), abs=1e-12)
    for bad in ("a9.h0", "a0.h9", "L1H2"):
        with pytest.raises(InputError, match="heads are written"):
            record_attention(tiny_gpt2_64, task, [bad])
    with pytest.raises(InputError, match="pairs 0 to 1"):
        record_attention(tiny_gpt2_64, task, ["a0.h0"], row=2)
    with pytest.raises(InputError, match="has the spans"):
        attention_between(tiny_gpt2_64, task, [("END", "B")])


def test_a_baseline_without_gap() -> None:
    assert Baseline(torch.tensor([2.0, 4.0]), torch.tensor([0.0, 1.0])).gap == pytest.approx(2.5)
    with pytest.raises(MetricError, match="same metric"):
        Baseline(torch.ones(2), torch.ones(2)).require_gap()
