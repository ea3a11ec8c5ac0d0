"""How many passes an attribution takes, what of them is unembedded, what it holds in memory, and what it says
meanwhile.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from mechwork.errors import InputError
from mechwork.models.load import load_model
from mechwork.patching import attribute
from mechwork.patching.passes import PassPlan
from mechwork.tasks.task import Task
from tests.families import UNLIKE, build_model, build_task
from tests.patching.test_memory import measured

SITES = ["resid_pre", "attn_out", "mlp_out"]


def one_pair(model: Any, task: Task, sites: list[str]) -> int:
    """Bytes that the count says one pair takes."""
    with pytest.raises(InputError, match="the backward pass of one pair") as refusal:
        attribute(model, task, sites, memory_budget=1)
    return int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", ""))


def test_two_forwards_and_only_the_columns_that_are_read(tiny_gpt2: Any, tiny_task: Task) -> None:
    columns: list[int] = []
    hooks = [("unembed.hook_in", lambda x, hook: columns.append(x.shape[1]))]
    with tiny_gpt2.hooks(fwd_hooks=hooks):
        attribute(tiny_gpt2, tiny_task, SITES)
        assert columns == [1, 1]
        columns.clear()
        attribute(tiny_gpt2, tiny_task, SITES, ig_steps=3)
        assert columns == [1] * 5
        columns.clear()
        every = tiny_task.with_metric(lambda logits, pairs: logits[:, :, 0].mean(dim=1))
        attribute(tiny_gpt2, every, SITES)
        assert columns == [10, 10]


@pytest.mark.parametrize("rules", ["relp", "atp_star"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_micro_batches_give_the_same_numbers(
    tiny_gpt2_64: Any, monkeypatch: pytest.MonkeyPatch, rules: str, direction: str
) -> None:
    task, sites = build_task(n=5), ["resid_pre", "q", "z"]
    whole = attribute(tiny_gpt2_64, task, sites, rules=rules, direction=direction)
    monkeypatch.setattr("mechwork.patching.attribution.plan_passes", lambda *args, **settings: PassPlan(2))
    parts = attribute(tiny_gpt2_64, task, sites, rules=rules, direction=direction)
    for kind in sites:
        assert float(whole[kind].values.abs().max()) > 1e-4
        torch.testing.assert_close(parts[kind].per_example, whole[kind].per_example, rtol=0, atol=1e-11)
        ends = [effects[kind].baseline.clean_per_example for effects in (parts, whole)]
        torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


def test_micro_batches_of_unequal_prompts(tiny_gpt2_64: Any) -> None:
    """A block is as wide as its own longest prompt; spans and tails follow."""
    clean = [[3, 5, 7, 9, 11], [3, 5, 7], [2, 4, 6, 8], [1, 5, 9, 2]]
    corrupt = [[4, 5, 7, 9, 11], [4, 5, 7], [3, 4, 6, 8], [2, 5, 9, 2]]
    spans = [{"A": [0], "END": [len(row) - 1]} for row in clean]
    task = Task.from_tokens(clean, corrupt, [20] * 4, [21] * 4, spans=spans)
    whole = attribute(tiny_gpt2_64, task, ["resid_pre"])
    parts = attribute(tiny_gpt2_64, task, ["resid_pre"], memory_budget=one_pair(tiny_gpt2_64, task, ["resid_pre"]))
    assert whole["resid_pre"].axes == parts["resid_pre"].axes == ("layer", "pos")
    torch.testing.assert_close(parts["resid_pre"].per_example, whole["resid_pre"].per_example, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", UNLIKE)
@pytest.mark.parametrize("rules", ["gradient", "relp"])
def test_memory_stays_within_the_budget(family: str, rules: str) -> None:
    model, task = build_model(family, torch.float32), build_task(n=8)
    attribute(model, task[:1], SITES, rules=rules)
    budget = 3 * one_pair(model, task, SITES)
    with measured(model) as meter:
        attribute(model, task, SITES, rules=rules, memory_budget=budget)
    small = meter.peak
    assert small <= budget
    with measured(model) as meter:
        attribute(model, task, SITES, rules=rules)
    assert meter.peak > small


def test_a_budget_that_holds_no_pair_is_refused_before_anything_runs(tiny_gpt2: Any, tiny_task: Task) -> None:
    ran: list[int] = []
    with (
        tiny_gpt2.hooks(fwd_hooks=[("hook_embed", lambda x, hook: ran.append(1))]),
        pytest.raises(InputError, match="backward pass of one pair"),
    ):
        attribute(tiny_gpt2, tiny_task, SITES, memory_budget="1 KB")
    with pytest.raises(InputError, match="positive number of bytes"):
        attribute(tiny_gpt2, tiny_task, SITES, memory_budget=float("nan"))
    assert not ran


def test_a_large_vocabulary_costs_the_columns_that_are_read() -> None:
    """Memory beside the weights: logits of one column in place of all, in both runs and the backward pass."""
    config = hf.LlamaConfig(
        num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=50_000,
    )  # fmt: skip
    model, task = load_model(hf.LlamaForCausalLM(config).eval()), build_task(n=4)
    attribute(model, task[:1], ["resid_pre"])
    with measured(model) as meter:
        attribute(model, task, ["resid_pre"])
    assert meter.peak < 4 * 4 * 50_000 * 10  # all columns of one run alone
