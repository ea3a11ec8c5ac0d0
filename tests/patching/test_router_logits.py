"""Router logits as a site: read, written, patched and attributed, against a mixture written as a loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.directions import Examples, fit_direction
from mechwork.errors import InputError
from mechwork.interventions import Add, Constant, Entries, Routing, Write, intervene
from mechwork.models.load import load_model
from mechwork.patching import Tricks, attribute, patch
from mechwork.runs.record import record_run
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_hard_task, build_model, build_module, build_task
from tests.gate import fewer
from tests.reference.experts import mixture_by_hand, router_by_hand

EXPERTS = fewer(["mixtral", "olmoe", "qwen3_moe"], ["mixtral", "olmoe"])
LAYER = 1
PLACES = (0, 3, 9)
FLOAT32 = 1e-5
"""The router's softmax is taken in float32, whatever the model's dtype."""


def ready(family: str) -> Any:
    """A model that has run once, so that hooks which the host puts on in its first forward are there."""
    model = build_model(family)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    return model


def block_of(model: Any) -> Any:
    return model.blocks[LAYER].mlp.original_component


def inputs_of(model: Any, tokens: Tensor) -> Tensor:
    """What the block reads."""
    seen: list[Tensor] = []
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{LAYER}.mlp.hook_in", lambda x, hook: seen.append(x))])
    return seen[0]


def run_by_hand(model: Any, tokens: Tensor, change: Any) -> Tensor:
    """Logits of the model when the layer's router says ``change(logits)``."""
    seen: list[Tensor] = []

    def mixed(out: Tensor, hook: Any) -> Tensor:
        return mixture_by_hand(block_of(model), seen[-1], change(router_by_hand(block_of(model), seen[-1])))

    hooks = [
        (f"blocks.{LAYER}.mlp.hook_in", lambda x, hook: seen.append(x)), (f"blocks.{LAYER}.hook_mlp_out", mixed)
    ]  # fmt: skip
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


@pytest.mark.parametrize("family", EXPERTS)
def test_is_read_and_written_before_the_choice(family: str) -> None:
    model, task = ready(family), build_task()
    tokens = task.pairs.clean_tokens
    with torch.no_grad():
        plain = model(tokens)
    with borrowed(model), torch.no_grad():
        found = record_run(model, task, ["router_logits"])
        assert torch.equal(found.logits, plain)
        for grad in (False, True):  # a node of the graph is chosen from again, and gives the same to the bit
            assert torch.equal(record_run(model, task, ["router_logits"], grad=grad).logits, plain)
        mine = found["router_logits"][LAYER]
        torch.testing.assert_close(mine, router_by_hand(block_of(model), inputs_of(model, tokens)), rtol=0, atol=1e-9)
        where = torch.zeros(tokens.shape, dtype=torch.bool)
        where[:, 4:] = True
        with intervene(model, [Write(Site("router_logits", LAYER), Entries(Constant(9.0), (2,)), where)]):
            written = model(tokens)

        def change(logits: Tensor) -> Tensor:
            new = logits.clone()
            new[:, 4:, 2] = 9.0
            return new

        torch.testing.assert_close(written, run_by_hand(model, tokens, change), rtol=0, atol=FLOAT32)
        assert float((written - plain).abs().max()) > 1e-2
        assert torch.equal(written[:, :4], plain[:, :4])
        offset = torch.tensor([0.0, 2.0, 0.0, -1.0])
        with intervene(model, [Write(Site("router_logits", LAYER), Add(offset))]):
            added = model(tokens)
        with intervene(model, [Routing(LAYER, offsets={1: 2.0, 3: -1.0})]):
            torch.testing.assert_close(added, model(tokens), rtol=0, atol=1e-12)
        assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("family", EXPERTS)
def test_patching_puts_the_other_runs_logits_in(family: str) -> None:
    model, task = ready(family), build_task()
    pairs = task.pairs
    host, donor = pairs.corrupt_tokens, pairs.clean_tokens
    with borrowed(model):
        sites = [f"router_logits.{LAYER}@{pos}" for pos in PLACES]
        stepped = patch(model, task, sites)["router_logits"]
        whole = patch(model, task, sites, tricks=Tricks(False, False, False))["router_logits"]
        noise = patch(model, task, ["router_logits"], direction="noise", positions="all")["router_logits"]
    assert stepped.axes == ("layer", "pos")
    torch.testing.assert_close(stepped.per_example, whole.per_example, rtol=0, atol=FLOAT32)
    with torch.no_grad():
        given = router_by_hand(block_of(model), inputs_of(model, donor))
        theirs = router_by_hand(block_of(model), inputs_of(model, host))
        plain = task.metric(model(host), pairs)
        for i, pos in enumerate(PLACES):

            def at(logits: Tensor, pos: int = pos) -> Tensor:
                new = logits.clone()
                new[:, pos] = given[:, pos]
                return new

            expected = task.metric(run_by_hand(model, host, at), pairs) - plain
            torch.testing.assert_close(stepped.per_example[:, 0, i], expected, rtol=0, atol=FLOAT32)
        clean = task.metric(model(donor), pairs)
        expected = clean - task.metric(run_by_hand(model, donor, lambda logits: theirs), pairs)
        torch.testing.assert_close(noise.per_example[:, LAYER], expected, rtol=0, atol=FLOAT32)
    assert float(stepped.values.abs().max()) > 1e-3


def test_pairs_of_unequal_length_go_by_span() -> None:
    model, task = build_model("mixtral"), build_hard_task(n=3, aligned=False)
    stepped = patch(model, task, ["router_logits"], positions="spans")["router_logits"]
    whole = patch(model, task, ["router_logits"], positions="spans", tricks=Tricks(False, False, False))
    torch.testing.assert_close(stepped.per_example, whole["router_logits"].per_example, rtol=0, atol=FLOAT32)
    assert float(stepped.values.abs().max()) > 1e-4


@pytest.mark.parametrize("family", EXPERTS)
def test_estimates_are_the_gradient_through_the_chosen_experts(family: str) -> None:
    model, task = ready(family), build_task()
    pairs = task.pairs
    with borrowed(model):
        found = attribute(model, task, ["router_logits"], rules="gradient")["router_logits"]
        frozen = attribute(model, task, ["router_logits"], rules="relp")["router_logits"]
    leaf: list[Tensor] = []

    def start(logits: Tensor) -> Tensor:
        leaf[:] = [logits.detach().requires_grad_(True)]
        return leaf[0]

    with torch.enable_grad():
        value = task.metric(run_by_hand(model, pairs.corrupt_tokens, start), pairs).sum()
        gradient = torch.autograd.grad(value, leaf[0])[0]
    with torch.no_grad():
        change = router_by_hand(block_of(model), inputs_of(model, pairs.clean_tokens)) - leaf[0]
    expected = (change * gradient).sum(dim=-1)
    torch.testing.assert_close(found.per_example[:, LAYER], expected, rtol=0, atol=FLOAT32)
    assert float(expected.abs().max()) > 1e-3
    assert float(frozen.values.abs().max()) == 0  # RelP takes the experts' weights as constants


def test_directions_are_fitted_there_and_generation_keeps_them() -> None:
    model = ready("mixtral")
    tokens = torch.randint(97, (8, 7), generator=torch.Generator().manual_seed(0)).tolist()
    examples = Examples.of_tokens(tokens, [True, False] * 4)
    direction = fit_direction(model, examples, Site("router_logits", LAYER))
    assert direction.vector.shape == (4,)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with borrowed(model), torch.no_grad(), intervene(model, [Write(direction.site, Add(8 * direction.vector))]):
        prompt = torch.tensor(tokens[:2])
        texts = [model.generate(prompt, use_past_kv_cache=cached, **settings) for cached in (True, False)]
    assert torch.equal(*texts)


def test_refused_without_experts_and_opened_in_ready_bridges(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="has no experts"):
        patch(tiny_gpt2_64, tiny_task, ["router_logits"])
    with pytest.raises(InputError, match="has no experts"):
        record_run(tiny_gpt2_64, tiny_task, ["router_logits"])
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = build_module("mixtral")
    ready = load_model(build_bridge_from_module(module, "MixtralForCausalLM", hf_config=module.config, tokenizer=None))
    run = record_run(ready, build_task(), ["router_logits"])
    assert run["router_logits"].shape == (3, 3, 10, 4)
